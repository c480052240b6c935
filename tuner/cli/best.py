"""Command `tuner best`: the recorded deployment in production's form."""

from __future__ import annotations

import sys
from pathlib import Path

from tuner.cli.folders import checked_price, study_folder, write_file
from tuner.deploy.formats import file_name, render
from tuner.deploy.recorded import Recorded, recorded_in
from tuner.deploy.start import write_pair
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.report.tables import read_study


def show_best(
    studies: Path,
    name: str,
    format: str,
    out: Path | None,
    *,
    trial: int | None,
    replicas: int | None,
    gpu_price: float | None,
) -> None:
    if replicas is not None and replicas < 1:
        raise UsageError(f"--replicas {replicas} is out of range", hint="at least 1")
    folder, price = study_folder(studies, name), checked_price(gpu_price)
    recorded = recorded_in(read_study(folder), trial)
    text = render(format, recorded, gpu_price=price, replicas=replicas)
    if out is None:
        sys.stdout.write(text)
    elif format == "sh":
        for path in _scripts(recorded, out.absolute()):
            print(path)
    else:
        print(write_file(out.absolute() / file_name(format, recorded), text))


def _scripts(recorded: Recorded, out: Path) -> tuple[Path, Path]:
    """Write start.sh with its stop.sh, both executable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        return write_pair(out, recorded)
    except OSError as error:
        raise EnvironmentFaultError(
            f"{out} cannot be written: {error.strerror}", hint="name another folder with --out"
        ) from error
