"""Command `tuner report`: the page from a study's files."""

from __future__ import annotations

import sys
import webbrowser
from enum import Enum
from pathlib import Path

from tuner.cli.folders import checked_price, study_folder
from tuner.errors import EnvironmentFaultError
from tuner.report.page import write_report
from tuner.report.translations import Language


class Then(Enum):
    """Next step after a page's path was printed."""

    SAY = "say"
    OPEN = "open"


def make_report(studies: Path, name: str, language: Language, gpu_price: float | None, then: Then) -> None:
    folder = study_folder(studies, name)
    try:
        path = write_report(folder, language=language, gpu_price=checked_price(gpu_price))
    except OSError as error:
        raise EnvironmentFaultError(
            f"{folder / 'report.html'} cannot be written: {error.strerror}",
            hint="copy the study's folder to where you may write, and name it with --studies",
        ) from error
    show(path, then)


def show(path: Path, then: Then) -> None:
    print(path, flush=True)
    if then is Then.OPEN and not webbrowser.open(path.as_uri()):
        print("no browser here: copy the file to where there is one, it needs nothing else", file=sys.stderr)
