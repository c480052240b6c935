"""Copy the parts of a study that belong in git: what start.sh and the report are made of, without traces of the
machine.

    usage: scripts/keep_study.py .cache/example/example studies/example

Kept: plan, environment, result, records, the Optuna study, and the telemetry of winner and default. Not kept: server
logs, single requests, vLLM's cache. Paths below the working directory become relative to it. The path of a model
elsewhere is cut to its last two names. The host's name and the rest of the kernel's version are left out. start.sh and
stop.sh are then built from the copy alone. The report holds 5 MB of plotly: `tuner report NAME` makes it again.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

from tuner import jsonfile
from tuner.deploy.start import write_scripts
from tuner.environment import Environment
from tuner.report.tables import read_study

MOST_BYTES = 2_000_000


def keep(source: Path, target: Path) -> None:
    """Replace `target`. Ends with a message if `source` is not finished, or if something of the machine is left."""
    source = source.absolute()
    study = read_study(source)
    if study.result is None or not study.result.complete or study.winner is None:
        sys.exit(f"{source} has no winner yet: go on with `tuner resume`")
    model = Path(study.plan.model)
    elsewhere = [(model.parent, model.parent.name)] if model.is_absolute() else []
    folders = [(source.parent, "studies"), (Path(sys.prefix), ".venv"), (Path.cwd(), "."), *elsewhere]
    shutil.rmtree(target, ignore_errors=True)
    for path in (*source.glob("*.json"), *source.glob("trials/*/record.json")):
        kept = target / path.relative_to(source)
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        for folder, instead in folders:
            text = text.replace(f"{folder}/", f"{instead}/".removeprefix("./"))
        kept.write_text(text, encoding="utf-8")
    shutil.copy(source / "study.db", target)
    for figures in filter(None, (study.winner, study.default)):
        for record in study.starts_of(figures.candidate):
            telemetry = Path("trials") / f"{record.trial:04d}" / "telemetry.parquet"
            if (source / telemetry).is_file():
                shutil.copy(source / telemetry, target / telemetry)
    environment = jsonfile.load(target / "environment.json", Environment)
    nameless = dataclasses.replace(environment, host="left out", kernel=environment.kernel.split("-")[0])
    jsonfile.dump(target / "environment.json", nameless)
    write_scripts(target)
    _check(target)


def _check(target: Path) -> None:
    files = [path for path in target.rglob("*") if path.is_file()]
    for folder in (Path.cwd(), Path.home()):
        if named := [str(path) for path in files if f"{folder}/".encode() in path.read_bytes()]:
            sys.exit(f"{folder} is still named in {', '.join(named)}")
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        sys.exit(f"{target} has {size / 1e6:.1f} MB: too much for git")
    print(f"{target}: {len(files)} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
