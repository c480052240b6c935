#!/usr/bin/env python3
"""Measure docstrings: `python scripts/prose.py tuner tests`.

It counts the docstrings of modules, classes and functions, and the string below a constant or a field. A fragment
begins with a preposition, a relative or an interrogative word ("Of the …", "Where …"). It is no sentence without the
name above it.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FRAGMENT_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        about above after against along among around as at because before behind below beneath beside besides
        between beyond but by despite down during except for from how if in inside into like near neither none nor
        of off on onto or out outside over past per since than that though through till to toward towards under
        unless until up upon what when where whether which while who whom whose why with within without
        """,
    )
)
_SENTENCE_END = re.compile(r"\.\s|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring and where it begins."""

    path: Path
    line: int
    text: str

    @property
    def first_sentence(self) -> str:
        """Text up to a full stop, a blank line or the end."""
        return _SENTENCE_END.split(self.text.strip(), maxsplit=1)[0]

    @property
    def words(self) -> int:
        return len(self.first_sentence.split())

    @property
    def is_fragment(self) -> bool:
        first = re.match(r"[A-Za-z]+", self.text.strip())
        return first is not None and first[0].lower() in FRAGMENT_WORDS


def docstrings(tree: Path) -> list[Docstring]:
    """Read every docstring of a Python file, or of all below a folder."""
    paths = sorted(tree.rglob("*.py")) if tree.is_dir() else [tree]
    return [found for path in paths for found in _of_file(path)]


def _of_file(path: Path) -> Iterator[Docstring]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for before, statement in zip([None, *node.body], node.body, strict=False):
            if before is not None and not isinstance(before, ast.Assign | ast.AnnAssign):
                continue
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield Docstring(path, statement.lineno, text)


def fragment_share(found: list[Docstring]) -> float:
    return sum(d.is_fragment for d in found) / len(found)


def median_words(found: list[Docstring]) -> float:
    return statistics.median(d.words for d in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, metavar="TREE", help="a folder or a file")
    parser.add_argument("--list", action="store_true", help="print every fragment, and first sentences over 20 words")
    options = parser.parse_args()
    for tree in options.trees:
        found = docstrings(tree)
        if options.list:
            for one in found:
                if one.is_fragment or one.words > 20:
                    print(f"{one.path}:{one.line}: {' '.join(one.first_sentence.split())}")
        print(
            f"{tree}: {len(found)} docstrings, {fragment_share(found):.1%} fragments,"
            f" median {median_words(found):g} words in the first sentence"
        )


if __name__ == "__main__":
    main()
