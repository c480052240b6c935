"""Command `tuner check`: is this machine fit for trusted figures? Each line says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuner.cli.tables import Form, print_drawn, print_json
from tuner.cli.tables import lines as drawn_lines
from tuner.errors import EnvironmentFaultError
from tuner.machine import Finding, Grade, findings

_STYLES = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.ERROR: "bold red"}


@dataclass(frozen=True, slots=True)
class _Findings:
    """Output of --json."""

    findings: tuple[Finding, ...]
    schema: int = 1


def check_machine(vllm: str, gpus: str | None, studies: Path, form: Form) -> None:
    """Show all findings, then raise EnvironmentFaultError if one of them is an error."""
    found = tuple(findings(vllm, gpus, studies, lambda text: print(text, file=sys.stderr)))
    if form is Form.JSON:
        print_json(_Findings(found))
    else:
        print_drawn(drawn_lines([line for f in found for line in _lines(f)]))
    wrong = [f.what for f in found if f.grade is Grade.ERROR]
    if wrong:
        raise EnvironmentFaultError(
            f"this machine is not ready: {', '.join(wrong)}", hint="do what the lines above say, then check again"
        )


def _lines(f: Finding) -> Iterator[tuple[tuple[str, str], ...]]:
    yield ((f"{f.grade:<8}", _STYLES[f.grade]), (f"{f.what:<15}", "bold"), (f.says, ""))
    if f.todo:
        yield ((f"{'':<23}→ {f.todo}", ""),)
