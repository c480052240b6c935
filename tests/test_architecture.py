"""Reads the imports of tuner/ and fails where the picture of the house is broken."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tuner"

LEAVES = ("errors", "http", "clock", "formatting", "jsonfile", "environment", "quantiles", "model", "flagwords")
SENTENCE = (
    "vllm",
    "space",
    "capacity",
    "placement",
    "candidate",
    "launch",
    "server",
    "load",
    "telemetry",
    "cautions",
    "measurement",
    "slo",
    "verdict",
    "bench",
    "study",
)
"""A later word may import an earlier one, never the other way round."""

VALUES = ("candidate", "slo", "placement")
"""Single modules of plain values that any word may use."""

OUTPUTS = ("report", "deploy")
EDGES = ("config", "machine", "cli")
THIRD_PARTY_ROOMS = {
    "optuna": ("study/search.py",),
    "pynvml": ("telemetry/gpu.py",),
    "aiohttp": ("load/", "sim/"),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "yaml": ("space/files.py", "deploy/"),
    "setproctitle": ("sim/",),
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if base == "tuner")


def room(name: str) -> str:
    return name.split(".")[1] if name.startswith("tuner.") else ""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_third_party_libraries_stay_in_their_rooms(path: Path) -> None:
    for name in imported(path):
        rooms = THIRD_PARTY_ROOMS.get(name.split(".")[0])
        assert rooms is None or name_of(path).startswith(rooms), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_data_goes_one_way(path: Path) -> None:
    here = room_of(path)
    for name in imported(path):
        there = room(name)
        if not there or there == here:
            continue
        if here in LEAVES:
            assert there in LEAVES, f"a leaf knows nothing of the rest: {name_of(path)} imports {name}"
        elif here in SENTENCE:
            assert there in LEAVES + SENTENCE, f"{name_of(path)} imports {name}"
            earlier = there in VALUES or there in LEAVES or SENTENCE.index(there) < SENTENCE.index(here)
            assert earlier, f"{name_of(path)} imports {name}, a later word"
        elif here == "sim":
            assert there == "model", f"the stand-in knows nothing of the tuner: {name_of(path)} imports {name}"
        else:
            assert there not in EDGES or here in EDGES, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) in OUTPUTS], ids=name_of)
def test_outputs_are_built_from_files_alone(path: Path) -> None:
    doors = (
        "tuner.server.service",
        "tuner.server.process",
        "tuner.load.drive",
        "tuner.load.stream",
        "tuner.study.loop",
    )
    assert not [name for name in imported(path) if name.startswith(doors)]


def test_no_import_cycle() -> None:
    graph = {
        ".".join(("tuner", *path.relative_to(PACKAGE).with_suffix("").parts)): {
            name for name in imported(path) if name.startswith("tuner")
        }
        for path in modules()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())
