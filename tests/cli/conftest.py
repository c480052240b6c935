"""Sample studies, written once: a finished one, a small one, one with hostile words, and an unreadable one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.report.studies import build_study, hostile
from tests.report.surface import PLAN

HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\nnext[bold]line[/bold] \u202egnp"


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    build_study(folder, telemetry=False)
    build_study(folder, trials=9, telemetry=False, plan=dataclasses.replace(PLAN, study="small"))
    hostile(HOSTILE, folder)
    (folder / "torn").mkdir()
    (folder / "torn" / "plan.json").write_text('{"study": "torn"')
    return folder
