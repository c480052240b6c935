"""Runs of the matrix, each executed once and examined by many tests."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.faults.all_runs import RunSeen, StudySeen, run_named
from tests.faults.table import MEMORY_ROWS, Row, TunerRow
from tests.faults.words import as_table

WORKERS = 3
_BEGUN_S = time.time()

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288,
    "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip


@pytest.fixture(scope="session")
def sim_model(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a folder with the shape of an 8B model, so that a token takes time, and a tokenizer, so that prompts cost
    none."""
    folder = tmp_path_factory.mktemp("sim-model") / "eight"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    shutil.copy(Path(tiny_model) / "tokenizer.json", folder)
    return str(folder)


@pytest.fixture(scope="session")
def runs(
    sim_model: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Mapping[str, Future[RunSeen | StudySeen]]]:
    """Execute all runs that the selected tests examine, by name, three at a time: most of a run is waiting."""
    root = tmp_path_factory.mktemp("runs")
    rows = [row for item in request.session.items if (row := row_of(item)) is not None]
    wanted = dict.fromkeys(row.run for row in rows if row not in MEMORY_ROWS)
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        yield {name: pool.submit(run_named, name, root, sim_model) for name in wanted}


def row_of(item: pytest.Item) -> Row | TunerRow | None:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return None
    row = item.callspec.params.get("row")
    return row if isinstance(row, Row | TunerRow) else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the matrix with its results to this file")


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--fault-table")
    if path is not None:
        rows = [(row, item.nodeid) for item in session.items if (row := row_of(item)) is not None]
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        passed = {report.nodeid for report in getattr(reporter, "stats", {}).get("passed", ())}
        path.write_text(as_table([(row, node in passed) for row, node in rows], time.time() - _BEGUN_S))
