"""Imports of tuner/ beside the dependencies that pyproject.toml declares."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

BROUGHT_BY_VLLM = {"uvloop"}
"""Imported if it is there; the client does without it."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def imported(paths: list[Path]) -> set[str]:
    """Return the distributions that the files import, standard library and tuner aside."""
    modules: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                modules.add((node.module or "").split(".")[0])
    providers = packages_distributions()
    third_party = modules - sys.stdlib_module_names - {"tuner"} - BROUGHT_BY_VLLM
    return {normal(name) for module in third_party for name in providers[module]}


def files(*, sim: bool) -> list[Path]:
    return [p for p in (ROOT / "tuner").rglob("*.py") if ("sim" in p.relative_to(ROOT / "tuner").parts) is sim]


def test_what_the_tuner_imports_is_what_it_declares() -> None:
    assert imported(files(sim=False)) == declared(PROJECT["dependencies"])


def test_the_stand_in_needs_no_more_than_its_extra() -> None:
    assert imported(files(sim=True)) - declared(PROJECT["dependencies"]) == declared(
        PROJECT["optional-dependencies"]["sim"]
    )


def test_every_dependency_has_its_reason_beside_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\ndependencies = [")[1].split("\n]")[0]
    assert [line for line in block.strip().splitlines() if "  # " not in line] == []


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = "import sys, tuner.cli.app; print(*{m.split('.')[0] for m in sys.modules})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"scipy", "numpy", "pandas", "plotly", "optuna", "pyarrow", "tokenizers", "httpx"}
    assert heavy & set(ended.stdout.split()) == set()
