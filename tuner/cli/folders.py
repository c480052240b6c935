"""Study names → folders. An unknown name fails at once and suggests the closest match."""

from __future__ import annotations

import difflib
import math
from enum import StrEnum
from pathlib import Path
from shlex import quote

from tuner.config import checked_study_name
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.jsonfile import write_atomically


class State(StrEnum):
    """State of a study. `INTERRUPTED` means not complete, with no tuner at work."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


def study_names(studies: Path) -> list[str]:
    return sorted(path.parent.name for path in studies.glob("*/plan.json"))


def study_folder(studies: Path, name: str) -> Path:
    folder = studies.absolute() / checked_study_name(name)
    if not (folder / "plan.json").is_file():
        names = study_names(studies)
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif names:
            elsewhere = "" if studies == Path("studies") else f" --studies {quote(str(studies))}"
            hint = f"`tuner studies{elsewhere}` lists the {len(names)} there are"
        else:
            hint = f"there is no study in {studies.absolute()}: name its folder with --studies DIR"
        raise UsageError(f"no study {name!r} in {studies}", hint=hint)
    return folder


def checked_price(gpu_price: float | None) -> float | None:
    if gpu_price is not None and not (math.isfinite(gpu_price) and gpu_price >= 0):
        raise UsageError(
            f"--gpu-price {gpu_price:g} is out of range", hint="the price of one GPU for one hour, such as 2.5"
        )
    return gpu_price


def write_file(path: Path, text: str) -> Path:
    """Write a file whole, and make its folders."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise EnvironmentFaultError(
            f"{path} cannot be written: {error.strerror}", hint="name another place with --out"
        ) from error
    return path
