"""Command `tuner compare`: two studies on one page."""

from __future__ import annotations

import sys
from pathlib import Path

from tuner.cli.folders import checked_price, study_folder, write_file
from tuner.cli.report import Then, show
from tuner.report.compare import compare
from tuner.report.translations import Language


def compare_studies(
    studies: Path, names: tuple[str, str], out: Path | None, language: Language, gpu_price: float | None, then: Then
) -> None:
    first, second = (study_folder(studies, name) for name in names)
    page = compare(first, second, language=language, gpu_price=checked_price(gpu_price))
    if out is not None and str(out) == "-":
        sys.stdout.write(page)
        return
    show(write_file((out or Path(f"{first.name}-against-{second.name}.html")).absolute(), page), then)
