"""Rows → aligned text, cut to a terminal's width only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuner import jsonfile
from tuner.formatting import one_line

_NEVER_CUT = 10_000
"""Columns and lines of a pipe."""


class Form(StrEnum):
    TEXT = "text"
    JSON = "json"


def print_json(value: object) -> None:
    sys.stdout.write(jsonfile.dumps(value))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table. `right` names the columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, head in enumerate(heads):
        # Only the last column gives way on a narrow terminal.
        widest = max(cell_len(one_line(cells[i])) for cells in (heads, *rows)) if i < len(heads) - 1 else None
        justify: Literal["left", "right"] = "right" if head in right else "left"
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis", min_width=widest)
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    print_drawn(table)


def print_drawn(drawn: RenderableType) -> None:
    """Print with colour on a terminal only. A pipe gets full lines without control characters."""
    if sys.stdout.isatty():
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in (None, "", "dumb")
        Console(highlight=False, no_color=plain, color_system=None if plain else "auto").print(drawn)
        return
    console = Console(width=_NEVER_CUT, height=_NEVER_CUT, color_system=None, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(drawn)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def lines(parts: Sequence[Sequence[tuple[str, str]]]) -> RenderableType:
    """Compose lines of (text, style), folded without loss on a narrow terminal."""
    return Group(*(Text.assemble(*((spaced(text), style) for text, style in line), overflow="fold") for line in parts))


def spaced(text: str) -> str:
    """Clean the text as one_line does, but keep the spaces at both ends."""
    inner = one_line(text)
    return text[: len(text) - len(text.lstrip(" "))] + inner + (text[len(text.rstrip(" ")) :] if inner else "")
