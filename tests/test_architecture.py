"""The picture of docs/architecture.md: import contracts (pyproject.toml) and budgets."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scripts.prose import docstrings, fragment_share

ROOT = Path(__file__).resolve().parents[1]
TUNER = ROOT / "tuner"
SOURCES = {path: path.read_text(encoding="utf-8") for path in TUNER.rglob("*.py")}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
LINES = {path: len(text.splitlines()) for path, text in SOURCES.items()}


def test_imports_keep_the_contracts() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_modules_are_short() -> None:
    assert not {path.name for path, count in LINES.items() if count > 400}
    assert statistics.median(LINES.values()) <= 120


def test_functions_are_short() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = [
        (node.end_lineno or 0) - node.lineno + 1
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, functions)
    ]
    assert statistics.quantiles(lengths, n=20)[-1] <= 45


def broad_excepts() -> Iterator[tuple[Path, int]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "BaseException"
                if caught in ("Exception", "BaseException"):
                    yield path, node.lineno


def test_broad_excepts_are_few_and_say_why() -> None:
    found = list(broad_excepts())
    assert len(found) <= 6
    for path, line in found:
        assert "# " in "".join(SOURCES[path].splitlines()[line - 1 : line + 1]), f"{path}:{line} gives no reason"


def test_no_mock_library() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert "mock" not in " ".join([base, *names]).lower(), path


def test_no_class_name_stands_for_two_things() -> None:
    names = Counter(
        node.name
        for path, tree in TREES.items()
        if TUNER / "sim" not in path.parents
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """`python scripts/prose.py --list tuner` prints the fragments."""
    assert fragment_share(docstrings(TUNER)) <= 0.02
