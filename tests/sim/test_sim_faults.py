"""Every fault does what its name says, and only on the requested start."""

from __future__ import annotations

import signal
import time

import pytest

from tests.server.support import eventually
from tests.sim.conftest import Serve, Server
from tests.sim.test_sim_process import chunks
from tuner.sim import held_bytes
from tuner.sim.faults import FAULTS, Fault, count_start, parse_fault

TESTED: set[str] = set()


def faulty(serve: Serve, fault: str, **env: str) -> Server:
    """Start a server with the fault from the environment, as a whole search gets it."""
    TESTED.add(parse_fault(fault).name)
    return serve(env={"TUNER_SIM_FAULTS": fault, **env})


def load(server: Server, requests: int = 3) -> list[tuple[int, str]]:
    return [server.chat(tokens=6) for _ in range(requests)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stall", Fault("stall", "3", None)),
        ("stall:0.5", Fault("stall", "0.5", None)),
        ("die-under-load@2", Fault("die-under-load", "20", 2)),
        ("die-under-load:5@3", Fault("die-under-load", "5", 3)),
        ("die-under-load:5@3%gpu2", Fault("die-under-load", "5", 3, "gpu2")),
        ("stall%engine1", Fault("stall", "3", None, "engine1")),
    ],
)
def test_a_fault_is_read_as_written(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["nothing", "stall:x", "stall@x", "metrics-old:3", "stall%card1", "stall%gpu"])
def test_a_fault_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="fault"):
        parse_fault(text)


def test_starts_are_counted_in_the_folder(tmp_path: object) -> None:
    assert [count_start(tmp_path) for _ in range(3)] == [1, 2, 3]  # type: ignore[arg-type]
    assert count_start(None) == 1


def test_a_fault_strikes_only_its_start(serve: Serve) -> None:
    first = faulty(serve, "metrics-missing@2").ready()
    second = faulty(serve, "metrics-missing@2", CUDA_VISIBLE_DEVICES="1").ready()
    assert (first.call("/metrics")[0], second.call("/metrics")[0]) == (200, 404)


def test_metrics_can_go_in_the_middle_at_a_signal(serve: Serve) -> None:
    server = faulty(serve, "metrics-gone").ready()
    before = server.call("/metrics")[0]
    server.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 20
    while server.call("/metrics")[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (before, server.call("/metrics")[0], server.call("/health")[0]) == (200, 404, 200)


def test_a_hanging_start_never_gets_ready(serve: Serve) -> None:
    server = faulty(serve, "hang-before-ready")
    time.sleep(1.5)
    assert server.process.poll() is None and server.call("/health")[0] == 0


def test_a_slow_start_is_late(serve: Serve) -> None:
    begun_s = time.monotonic()
    faulty(serve, "slow-start:1.5").ready()
    assert time.monotonic() - begun_s > 1.5


def test_an_engine_killed_while_loading_is_named_with_its_code(serve: Serve) -> None:
    server = faulty(serve, "die-before-ready")
    assert server.wait() == 1
    assert "Failed core proc(s): {'EngineCore': -9}" in server.log


def test_a_port_taken_before_listen_is_exit_1(serve: Serve) -> None:
    server = faulty(serve, "port-taken")
    assert server.wait() == 1
    assert "[Errno 98] error while attempting to bind on address" in server.log


def test_held_memory_refuses_the_start(serve: Serve) -> None:
    server = faulty(serve, "refuse-memory-held")
    assert server.wait() == 1
    assert "Free memory on device" in server.log


@pytest.mark.parametrize(("fault", "code"), [("die-under-load:2", 1), ("exit-zero-under-load:2", 0)])
def test_a_server_can_die_under_load(serve: Serve, fault: str, code: int) -> None:
    server = faulty(serve, fault).ready()
    answers = load(server)
    assert server.wait() == code
    assert [status for status, _ in answers] == [200, 0, 0]
    assert eventually(lambda: not server.children())


@pytest.mark.parametrize(
    ("fault", "words"),
    [("engine-dies-under-load:2", "illegal memory access"), ("oom-under-load:2", "CUDA out of memory. Tried to")],
)
def test_an_engine_that_dies_under_load_ends_the_server_with_0(serve: Serve, fault: str, words: str) -> None:
    server = faulty(serve, fault).ready()
    load(server)
    assert server.wait() == 0
    assert words in server.log and "EngineCore encountered a fatal error." in server.log


def test_an_orphaned_engine_keeps_its_memory(serve: Serve) -> None:
    server = faulty(serve, "orphan-engine:2").ready()
    load(server)
    assert server.wait() == -signal.SIGKILL
    assert list(server.children().values()) == ["VLLM::EngineCore"]
    assert held_bytes(server.gpu_dir, 0) > 0


def test_stopping_can_orphan_the_engine(serve: Serve) -> None:
    server = faulty(serve, "orphan-on-stop").ready()
    server.process.terminate()
    assert server.wait() == -signal.SIGKILL
    assert held_bytes(server.gpu_dir, 0) > 0


def test_sigterm_can_be_ignored(serve: Serve) -> None:
    server = faulty(serve, "ignore-sigterm").ready()
    server.process.terminate()
    time.sleep(0.7)
    assert server.process.poll() is None and server.call("/health")[0] == 200


def test_a_hung_engine_is_healthy_and_silent(serve: Serve) -> None:
    server = faulty(serve, "hung-engine:2").ready()
    assert server.chat()[0] == 200
    assert server.call("/v1/completions", {"prompt": "x", "max_tokens": 3}, timeout_s=0.7) == (0, "TimeoutError")
    assert server.call("/health")[0] == 200


def test_metrics_can_be_late(serve: Serve) -> None:
    server = faulty(serve, "metrics-late:0.6").ready()
    begun_s = time.monotonic()
    assert server.call("/metrics")[0] == 200
    assert time.monotonic() - begun_s > 0.6


def test_metrics_can_have_older_names(serve: Serve) -> None:
    text = faulty(serve, "metrics-old").ready().call("/metrics")[1]
    assert "vllm:gpu_cache_usage_perc" in text and "vllm:time_per_output_token_seconds" in text
    assert "kv_cache_usage_perc" not in text and "request_num_preemptions" not in text


def test_a_server_can_refuse_to_be_kept_from_ending(serve: Serve) -> None:
    assert faulty(serve, "refuse-ignore-eos").ready().chat()[0] == 400


def test_an_error_can_come_inside_a_200(serve: Serve) -> None:
    status, text = load(faulty(serve, "error-chunk:3").ready())[2]
    assert status == 200
    assert "error" in chunks(text)[-1]


def test_a_stream_can_be_reset(serve: Serve) -> None:
    answers = load(faulty(serve, "reset-mid-stream:3").ready())
    assert [status for status, _ in answers] == [200, 200, 0]


def test_a_stream_can_end_early_without_a_word(serve: Serve) -> None:
    server = faulty(serve, "truncated-output:1", TUNER_SIM_SPEED="10", TUNER_SIM_STARTUP_S="0.3").ready()
    status, text = server.chat(tokens=40)
    assert status == 200 and "[DONE]" not in text and "usage" not in text
    assert all(event["choices"][0]["finish_reason"] is None for event in chunks(text))  # type: ignore[index]


def test_a_stream_can_have_a_role_and_no_content(serve: Serve) -> None:
    events = chunks(faulty(serve, "role-only:1").ready().chat()[1])
    assert not any(event["choices"][0]["delta"]["content"] for event in events if event["choices"])  # type: ignore[index]


def test_tokens_can_come_in_bursts(serve: Serve) -> None:
    events = chunks(faulty(serve, "bursts:8").ready().chat(tokens=33)[1])
    assert len(events) <= 8
    assert events[-1]["usage"]["completion_tokens"] == 33  # type: ignore[index]


def test_a_stream_can_stall(serve: Serve) -> None:
    server = faulty(serve, "stall:0.8").ready()
    for _ in range(9):
        server.chat()
    begun_s = time.monotonic()
    assert server.chat()[0] == 200
    assert time.monotonic() - begun_s > 0.8


def test_first_tokens_can_get_later_and_later(serve: Serve) -> None:
    server = faulty(serve, "ttft-leak:40").ready()
    times = []
    for _ in range(6):
        begun_s = time.monotonic()
        server.chat()
        times.append(time.monotonic() - begun_s)
    assert times[-1] > times[0] + 0.15


def test_a_log_can_flood(serve: Serve) -> None:
    server = faulty(serve, "log-flood:20").ready()
    assert server.log_path.stat().st_size > 19_000_000


def test_every_fault_has_been_tested() -> None:
    """Last in this file on purpose: it means something only after the whole file ran."""
    if len(TESTED) < 10:
        pytest.skip("only part of the file ran")
    assert set(FAULTS) == TESTED
