#!/usr/bin/env python3
"""List refusals of the installed vLLM that no pattern knows: `python scripts/unread_refusals.py [FOLDER]`.

Run it by hand on a new vLLM. It reads the texts of every `raise` and `assert` in the package, and prints those that
mention a searched flag and that tuner/vllm/log_patterns.py cannot name.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuner.space.files import presets, read_space
from tuner.vllm import knobs
from tuner.vllm.log_patterns import BROAD, SPECIFIC
from tuner.vllm.refusals import CONTEXTS

LEFT_OUT = ("benchmarks/", "model_executor/models/", "tests/", "tokenizers/", "tool_parsers/", "reasoning/")
"""Folders that refuse requests or models, not launches."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Text of one `raise`, with 1 for every figure in it."""

    path: Path
    line: int
    text: str

    @property
    def is_known(self) -> bool:
        return any(pattern.regex.search(self.text) for pattern in (*SPECIFIC, *BROAD))


def refusals(package: Path) -> Iterator[Refusal]:
    """Read every text that the package raises."""
    for path in sorted(package.rglob("*.py")):
        if str(path.relative_to(package)).startswith(LEFT_OUT):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            value = node.exc if isinstance(node, ast.Raise) else node.msg if isinstance(node, ast.Assert) else None
            if isinstance(value, ast.Call) and value.args:
                value = value.args[0]
            if value is not None and (text := _text(value)):
                yield Refusal(path.relative_to(package), value.lineno, text)


def _text(node: ast.expr) -> str:
    """Return a literal's text. "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "1" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return ""


def mentions(flags: frozenset[str]) -> re.Pattern[str]:
    """Return the pattern of any of these flags, with underscores or dashes."""
    names = "|".join(re.escape(name).replace(r"\-", "[-_]") for name in sorted(flags, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{names})(?![\w-])")


def searched_flags() -> frozenset[str]:
    """Return the flags of all spaces that tuner brings, of its layouts, and of the rules that it learns."""
    searched = {parameter.flag for name in presets() for parameter in read_space(name).parameters}
    learnt = {flag for context in CONTEXTS.values() for flag in context.axes}
    return frozenset(searched | learnt | {knobs.TENSOR_PARALLEL, knobs.PIPELINE_PARALLEL, knobs.BLOCK_SIZE})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "package", nargs="?", type=Path, help="folder of the package vllm; the installed one if not given"
    )
    package = parser.parse_args().package
    if package is None:
        found = importlib.util.find_spec("vllm")
        if found is None or found.origin is None:
            parser.error("vLLM is not installed here: give the folder of its package")
        package = Path(found.origin).parent
    pattern = mentions(searched_flags())
    about = [one for one in refusals(package) if pattern.search(one.text)]
    unknown = [one for one in about if not one.is_known]
    for one in unknown:
        print(f"{one.path}:{one.line}: {' '.join(one.text.split())}")
    print(f"{len(about) - len(unknown)} of {len(about)} known")


if __name__ == "__main__":
    main()
