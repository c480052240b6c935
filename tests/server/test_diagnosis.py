"""Golden logs → causes: kind, fault and the bound that the message teaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.server.diagnosis import Bound, Cause, Fault, ServerPhase, diagnose, over_limit
from tuner.vllm.log_patterns import BROAD, GENERIC, SEARCHED, SILENT_DEATHS, SPECIFIC

LOGS = Path(__file__).with_name("logs")
C, S, E, U = Fault.CANDIDATE, Fault.STUDY, Fault.ENVIRONMENT, Fault.UNKNOWN
START, SERVE = ServerPhase.STARTING, ServerPhase.SERVING

GOLDEN: dict[str, tuple[int, ServerPhase, str, Fault, tuple[Bound, ...]]] = {
    "0.32-bad-int": (2, START, "bad-argument", C, ()),
    "0.32-bad-value": (1, START, "bad-value", C, ()),
    "0.32-batched-below-len": (1, START, "batched-below-len", C, (Bound("max-num-batched-tokens", ">=", 512),)),
    "0.32-batched-below-seqs": (1, START, "batched-below-seqs", C, (Bound("max-num-seqs", "<=", 2),)),
    "0.32-cpu-utilization": (1, START, "host-memory-wanted", C, (Bound("gpu-memory-utilization", "<=", 0.802),)),
    "0.32-dp-engine-killed": (0, SERVE, "engine-died", U, ()),
    "0.32-dp-engine-of-api-servers-killed": (1, SERVE, "engine-died", U, ()),
    "0.32-dp-terminated": (0, SERVE, "terminated", E, ()),
    "0.32-engine-killed": (0, SERVE, "engine-died", U, ()),
    "0.32-kv-too-big": (1, START, "host-kv-memory", C, (Bound("kv-cache-memory-bytes", "<=", 6 * 2**30),)),
    "0.32-kv-too-small": (1, START, "kv-too-small", C, (Bound("max-model-len", "<=", 10112),)),
    "0.32-len-above-model": (1, START, "len-above-model", C, (Bound("max-model-len", "<=", 16384),)),
    "0.32-model-not-found": (1, START, "model-not-found", E, ()),
    "0.32-no-kv-memory": (1, START, "host-kv-memory", C, (Bound("gpu-memory-utilization", ">=", 0.082),)),
    "0.32-port-in-use": (1, START, "port-in-use", E, ()),
    "0.32-threshold-above-len": (
        1, START, "threshold-above-len", C, (Bound("long-prefill-token-threshold", "<=", 512),)
    ),
    "0.32-tokenizer-missing": (1, START, "tokenizer-missing", E, ()),
    "0.32-unknown-flag": (2, START, "unknown-flag", S, ()),
    "0.32-worker-killed": (0, SERVE, "worker-died", U, ()),
    "constructed-0.20-kv-too-small": (1, START, "kv-too-small", C, (Bound("max-model-len", "<=", 16128),)),
    "constructed-0.20-memory-wanted": (1, START, "memory-wanted", C, (Bound("gpu-memory-utilization", "<=", 0.958),)),
    "constructed-0.20-not-found": (1, START, "model-not-found", E, ()),
    "constructed-0.20-oom-start": (1, START, "oom", C, ()),
    "constructed-0.20-oom-under-load": (0, SERVE, "oom-under-load", C, ()),
    "constructed-0.22-gated": (1, START, "model-gated", E, ()),
    "constructed-0.24-driver": (1, START, "driver", E, ()),
    "constructed-0.24-oom-neighbour": (1, START, "oom", E, ()),
    "constructed-0.26-no-kv-memory": (1, START, "no-kv-memory", C, (Bound("gpu-memory-utilization", ">=", 0.85),)),
    "constructed-0.26-oom-sampler": (1, START, "oom-warm-up", C, (Bound("max-num-seqs", "<=", 1023),)),
    "constructed-0.26-partial-prefills": (
        1, START, "partial-prefills", C,
        (Bound("max-num-partial-prefills", "<=", 1), Bound("max-long-partial-prefills", "<=", 1)),
    ),
    "constructed-0.27-memory-moved": (1, START, "memory-moved", E, ()),
    "constructed-0.28-disk-full": (1, START, "disk-full", E, ()),
    "constructed-0.28-memory-held": (1, START, "memory-wanted", E, ()),
    "constructed-0.29-too-few-gpus": (1, START, "too-few-gpus", S, ()),
    "constructed-0.30-core-killed": (1, START, "killed", E, ()),
    "constructed-0.31-shm-full": (1, START, "shm-full", E, ()),
    "constructed-0.32-no-device": (1, START, "no-device", E, ()),
    "constructed-0.33-kv-too-small": (1, START, "kv-too-small", C, (Bound("max-model-len", "<=", 61600),)),
}  # fmt: skip


def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_log_gives_its_cause(name: str) -> None:
    exit_code, phase, kind, fault, bounds = GOLDEN[name]
    cause = diagnose(log(name), exit_code=exit_code, phase=phase)
    assert (cause.kind, cause.fault, cause.bounds) == (kind, fault, bounds)
    assert cause.line.removesuffix("…") in log(name)
    assert len(cause.line) <= 400
    assert "\n" not in cause.explanation and cause.hint


def test_every_log_has_an_expectation() -> None:
    facts_only = {"constructed-0.26-facts-gpu", "constructed-0.28-facts-gpu", "0.32-normal-stop"}
    assert {path.stem for path in LOGS.glob("*.log")} - facts_only == set(GOLDEN)


@pytest.mark.parametrize(
    ("free", "held_gib", "fault"),
    [
        ("13.5", 0.6, E),
        ("13.5", 66.0, E),
        ("72.5", 0.6, E),
        ("76.5", 0.2, C),
        ("72.5", 6.0, C),
        ("72.5", None, C),
        ("78.4", 0.2, C),
    ],
)
def test_memory_that_others_took_since_the_count_teaches_no_bound(
    free: str, held_gib: float | None, fault: Fault
) -> None:
    text = log("constructed-0.28-memory-held").replace("(13.5/", f"({free}/")
    cause = diagnose(text, exit_code=1, phase=START, held_by_others_gib=held_gib)
    assert cause.fault is fault
    assert bool(cause.bounds) == (fault is C)


def test_host_memory_that_others_hold_for_the_most_part_is_not_the_candidates_fault() -> None:
    text = log("0.32-cpu-utilization").replace("5.99/7.46", "1.20/7.46")
    cause = diagnose(text, exit_code=1, phase=START)
    assert (cause.kind, cause.fault, cause.bounds) == ("host-memory-wanted", Fault.ENVIRONMENT, ())


@pytest.mark.parametrize(
    "message",
    [
        "ValueError: Loading /m requires you to execute the configuration file in that repo on your local machine. "
        "Make sure you have read the code there, then set the option `trust_remote_code=True` to remove this error.",
        "ValueError: The checkpoint has model type `new` but Transformers does not recognize this architecture.",
    ],
)
def test_what_every_start_shares_is_the_studys_fault(message: str) -> None:
    assert diagnose(f"Traceback (most recent call last):\n{message}\n", exit_code=1, phase=START).fault is Fault.STUDY


def test_a_warning_that_quotes_an_error_is_no_cause() -> None:
    """Every 0.32 log here holds such a line: Found ulimit of … can cause … `OSError: [Errno 24] …`."""
    assert "[Errno 24]" in log("0.32-worker-killed")
    assert diagnose(log("0.32-worker-killed"), exit_code=0, phase=SERVE).kind != "too-many-files"


def test_a_logged_prompt_is_no_cause() -> None:
    prompt = "CUDA out of memory. Tried to allocate 1 GiB"
    text = f"INFO 03-02 02:14:40 [logger.py:41] Received request cmpl-1: prompt: '{prompt}'\n"
    assert diagnose(text, exit_code=0, phase=SERVE).kind == "ended"


def test_what_was_survived_at_start_does_not_explain_a_death_under_load() -> None:
    survived = "OSError: [Errno 98] Address already in use\n"
    text = survived + log("constructed-0.20-oom-under-load")
    assert diagnose(text, exit_code=0, phase=SERVE).kind == "oom-under-load"


@pytest.mark.parametrize(
    ("exit_code", "phase", "kind", "fault"),
    [
        (0, SERVE, "ended", U),
        (0, START, "ended", U),
        (1, START, "ended", U),
        (2, START, "bad-argument", C),
        (127, START, "command-not-found", E),
        (-9, SERVE, "killed", E),
        (137, START, "killed", E),  # as a container engine says it
        (143, START, "terminated", E),
        (-15, SERVE, "terminated", E),
        (-2, START, "terminated", E),
        (-7, START, "shm-full", E),
        (-11, SERVE, "crashed", U),
        (-64, SERVE, "crashed", U),
        (None, START, "no-answer", U),
    ],
)
def test_without_a_message_the_exit_code_decides(
    exit_code: int | None, phase: ServerPhase, kind: str, fault: Fault
) -> None:
    cause = diagnose("", exit_code=exit_code, phase=phase)
    assert (cause.kind, cause.fault) == (kind, fault)


def test_a_worker_that_said_why_it_died_was_not_killed() -> None:
    text = (
        "(Worker pid=7) ERROR 11-21 05:59:28 [worker.py:1] RuntimeError: something new\n"
        "(EngineCore pid=6) ERROR 11-21 05:59:29 [x.py:1] Worker proc VllmWorker-0 died unexpectedly (exit code: 1)\n"
    )
    cause = diagnose(text, exit_code=0, phase=SERVE)
    assert (cause.kind, cause.fault) == ("worker-died", Fault.UNKNOWN)
    assert "RuntimeError: something new" in cause.line


def test_the_line_of_an_unknown_crash_is_its_first_exception() -> None:
    text = "Traceback (most recent call last):\nKeyError: 'rope'\nRuntimeError: Engine core initialization failed. {}\n"
    cause = diagnose(text, exit_code=1, phase=START)
    assert (cause.kind, cause.line) == ("engine-did-not-start", "KeyError: 'rope'")


def test_the_line_is_short_clean_and_without_secrets() -> None:
    text = "\x1b[31mValueError: No available memory for the cache blocks\x1b[0m hf_abcdefghijklmnopqrstu " + "x" * 1000
    line = diagnose(text, exit_code=1, phase=START).line
    assert len(line) <= 400
    assert "\x1b" not in line and "hf_abc" not in line


def test_a_hanging_start_keeps_a_cause_that_the_log_names() -> None:
    named = diagnose(log("0.32-kv-too-small"), exit_code=None, phase=START)
    silent = diagnose("", exit_code=None, phase=START)
    assert over_limit(60, named) == named
    assert (over_limit(60, silent).kind, over_limit(60, silent).fault) == ("start-limit", Fault.UNKNOWN)


def test_every_explanation_can_be_filled_from_its_own_pattern() -> None:
    for pattern in (*SPECIFIC, *BROAD, SEARCHED, *SILENT_DEATHS, *GENERIC):
        groups = {"line": "1", **dict.fromkeys(pattern.regex.groupindex, "1")}
        assert pattern.explanation.format(**groups).endswith((".", "1", " "))
        assert pattern.kind == pattern.kind.lower()


def test_any_text_gives_a_cause() -> None:
    for text in ("", "\x00\xff", "Traceback", "{}{0}{x}", "non-default args: {'gpu_memory_utilization': }"):
        assert isinstance(diagnose(text, exit_code=1, phase=START), Cause)
