"""Bad input from users and torn files gives a message, a hint and exit code 2 or 4. No finished record changes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.study.builders import plan
from tests.study.study_run import StudyRun
from tuner.cli import app
from tuner.errors import TunerError, UsageError
from tuner.load.workload import workload
from tuner.slo import parse_slo
from tuner.space.files import read_space
from tuner.study.store import Store

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few = settings(quick, max_examples=40)

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=24)
numbers = st.one_of(st.integers(-(10**12), 10**12).map(str), st.floats().map(str), words)


def tuner(*arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line, in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    before = sys.argv
    sys.argv = ["tuner", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            app.main()
    finally:
        sys.argv = before
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
    code = ended.value.code
    assert isinstance(code, int)
    return code, texts[0], texts[1]


def assert_refused(code: int, stderr: str) -> None:
    assert code in (2, 4), stderr
    assert "Traceback" not in stderr
    *_, message, hint = stderr.rstrip("\n").split("\n")
    assert message.startswith("error: ") and len(message) > len("error: ")
    assert hint.startswith("hint: ") and len(hint) > len("hint: ")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    return folder


# ── flags


OPTIONS = (
    "--gpus", "--slo", "--workload", "--space", "--trials", "--confirm", "--time-budget", "--study", "--vllm",
    "--tensor-parallel-size", "--workers", "--seed", "--storage", "--levels", "--level-seconds", "--warm-up-seconds",
    "--start-limit-seconds", "--load", "--probe-seconds", "--burstiness", "--max-model-len", "--layouts", "--door",
    "--no-such-option",
)  # fmt: skip


@settings(quick, max_examples=150)
@given(option=st.sampled_from(OPTIONS), value=numbers)
@example(option="--space", value="x" * 5000)
@example(option="--space", value="x" * 300)
@example(option="--storage", value="sqlite:////no/where/study.db")
@example(option="--levels", value="9" * 5000)
@example(option="--layouts", value="9" * 5000)
@example(option="--layouts", value="2x1")
@example(option="--layouts", value="٢x١")
@example(option="--door", value="")
@example(option="--workers", value="999999")
@example(option="--tensor-parallel-size", value="999999")
@example(option="--trials", value="nan")
@example(option="--seed", value="-1")
@example(option="--gpus", value="0-99999999999999")
@example(option="--study", value="../x")
@example(option="--vllm", value="'")
@example(option="--vllm", value="")
@example(option="--time-budget", value="9" * 400 + "h")
@example(option="--max-model-len", value="9" * 5000)
@example(option="--max-model-len", value="auto")
@example(option="--max-model-len", value="0")
@example(option="--max-model-len", value="4097")
@example(option="--workload", value="random:" + "9" * 5000 + ",1")
def test_any_value_of_any_flag_is_refused_in_words(option: str, value: str, model: Path) -> None:
    """The command that starts vLLM does not exist: what is not wrong in itself ends there."""
    begin = ["search", "--model", str(model), "--studies", str(model / "studies")]
    code, out, err = tuner(*begin, *([] if option == "--vllm" else ["--vllm", "/no/vllm serve"]), f"{option}={value}")
    assert_refused(code, err)
    assert out == ""
    assert not (model / "studies").exists()


@few
@given(name=words)
def test_any_name_of_a_study_is_refused_in_words(name: str, tmp_path: Path) -> None:
    code, _, err = tuner("resume", "--studies", str(tmp_path), "--", name)
    assert_refused(code, err)


@few
@given(text=words)
@example(text="x" * 5000)
@example(text="~nobody-of-this-name/model")
@example(text="/" + "x" * 300)
def test_any_model_is_refused_in_words(text: str, tmp_path: Path) -> None:
    code, _, err = tuner("search", f"--model={text}", "--vllm", "/no/vllm", "--studies", str(tmp_path))
    assert_refused(code, err)


# ── limits


slo_like = st.one_of(
    words,
    st.tuples(numbers, words, st.sampled_from(["<=", "<", "=", "≤", ""]), numbers).map(" ".join),
    st.tuples(
        st.sampled_from(["p99", "p0", "p100", "P99.9", "p-1", "p99.99999999", "mean"]),
        st.sampled_from(["ttft", "tpot", "x"]),
        st.just("<="),
        st.one_of(numbers, st.sampled_from(["500ms", "1s", "0ms", "-5ms", "infms", "nan", "9" * 400 + "s"])),
    ).map(" ".join),
)


@settings(quick, max_examples=200)
@given(text=slo_like)
def test_any_text_is_a_limit_or_a_usage_error(text: str) -> None:
    try:
        slo = parse_slo(text)
    except UsageError as error:
        assert error.hint and error.message
    else:
        assert 0 < slo.quantile < 1 and 0 < slo.limit_ms < float("inf")


# ── spaces


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
kinds = st.dictionaries(
    st.sampled_from(["log-int", "int", "float", "choice", "multiple-of", "flag"]), trees, max_size=3
)
spaces = st.one_of(
    trees,
    st.fixed_dictionaries(
        {"parameters": st.one_of(trees, st.dictionaries(words, st.one_of(kinds, trees), max_size=3))},
        optional={"baseline": trees, "fixed": trees, "env": trees, "name": trees},
    ),
)


@settings(quick, max_examples=150)
@given(tree=spaces)
def test_any_tree_is_a_space_or_a_usage_error(tree: object, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    with suppress(UsageError):
        read_space(str(path)).needs_at_least(1000)


@quick
@given(data=st.binary(max_size=60))
@example(data=b"\xff\xfe")
@example(data=b"parameters: !!python/object/apply:os.system ['true']")
@example(data=b"a: &a [*a]")
@example(data=b"[" * 3000)
@example(data=b"? " * 3000)
@example(data=b"2026-99-99")
@example(data=b"parameters: {a: {int: [1, 0x" + b"f" * 5000 + b"]}}")
def test_any_bytes_are_a_space_or_a_usage_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(data)
    with suppress(UsageError):
        read_space(str(path))


# ── workloads


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
turns = st.lists(
    st.one_of(
        json_values,
        st.fixed_dictionaries(
            {},
            optional={"role": st.one_of(st.sampled_from(["user", "assistant"]), json_values), "content": json_values,
                      "from": json_values, "value": json_values},
        ),
    ),
    max_size=3,
)  # fmt: skip
requests = st.fixed_dictionaries(
    {},
    optional={
        "prompt": json_values,
        "messages": st.one_of(turns, json_values),
        "conversations": st.one_of(turns, json_values),
        "max_tokens": json_values,
        "timestamp": json_values,
    },
)


@settings(quick, max_examples=200)
@given(rows=st.lists(st.one_of(requests, json_values), max_size=3), suffix=st.sampled_from([".json", ".jsonl"]))
@example(rows=[{"prompt": "a", "timestamp": 10**400}], suffix=".jsonl")
@example(rows=[{"prompt": "\ud800"}], suffix=".jsonl")
def test_any_json_is_traffic_or_a_usage_error(rows: list[object], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"traffic{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    refused_or_sound(str(path))


@quick
@given(data=st.binary(max_size=60), suffix=st.sampled_from([".json", ".jsonl", ".txt"]))
@example(data=b"[" * 100_000, suffix=".json")
@example(data=b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", suffix=".jsonl")
def test_any_bytes_are_traffic_or_a_usage_error(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"traffic{suffix}"
    path.write_bytes(data)
    refused_or_sound(str(path))


@quick
@given(text=st.one_of(words, st.tuples(numbers, numbers).map(lambda p: f"random:{p[0]},{p[1]}")))
def test_any_name_is_a_workload_or_a_usage_error(text: str) -> None:
    refused_or_sound(text)


def refused_or_sound(text: str) -> None:
    try:
        found = workload(text)
    except UsageError as error:
        assert error.hint and error.message
    else:
        assert found.longest >= 1


# ── study folders


FILES = (
    "plan.json",
    "environment.json",
    "result.json",
    "study.db",
    "trials/0000/running.json",
    "trials/0001/record.json",
)
STARTS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "whole"
    StudyRun(plan(folder, starts=STARTS, confirm_starts=0)).loop.run()
    return folder


def cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)]


def garble(data: bytes, at: float) -> bytes:
    place = int(len(data) * at)
    return data[:place] + b"\x00\xff}" + data[place + 3 :]


Damage = Callable[[bytes, float], bytes]
damages: st.SearchStrategy[Damage] = st.sampled_from([cut, garble, lambda data, at: b"[]", lambda data, at: b"null"])


@settings(quick, max_examples=120)
@given(name=st.sampled_from(FILES), damage=damages, at=st.floats(0, 0.99))
def test_a_torn_study_is_refused_or_read_and_no_finished_record_changes(
    name: str, damage: Damage, at: float, finished: Path
) -> None:
    """Its model and its vLLM are gone: whatever is still whole is refused for that, with the study untouched."""
    path = finished / name
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    path.write_bytes(damage(before.get(path, b'{"pid": 1, "session": 2}'), at))
    try:
        records = {p: p.read_bytes() for p in (finished / "trials").glob("*/record.json")}
        code, _, err = tuner("resume", finished.name, "--studies", str(finished.parent))
        assert_refused(code, err)
        assert {p: p.read_bytes() for p in records} == records
        read_back(finished)
    finally:
        for other, data in before.items():
            other.write_bytes(data)
        if path not in before:
            path.unlink()


def read_back(folder: Path) -> None:
    """Every door of the store: a value or a TunerError."""
    store = Store(folder)
    assert len(store.records()) in (STARTS - 1, STARTS)
    for read in (store.plan, store.environment, store.result):
        with suppress(TunerError):
            read()


def test_no_lock_is_left_of_a_refused_study(finished: Path) -> None:
    with Store(finished).locked():
        pass
