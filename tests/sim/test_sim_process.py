"""The process as others see it: argv, log, endpoints, signals, exit codes, children, remains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.support import eventually
from tests.sim.conftest import Serve, Server
from tuner.server.proctable import shared_memory_files
from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    Shape,
    Started,
    hardware_profile,
    held_bytes,
    load_model,
    simulate,
    startup,
)


def chunks(text: str) -> list[dict[str, object]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tuner.sim", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_version_and_help_are_vllms() -> None:
    assert command("--version").stdout == "0.32.0+sim\n"
    text = command("serve", "--help=all").stdout
    for flag in ("--max-num-seqs", "--long-prefill-token-threshold-adaptive", "--no-enable-chunked-prefill"):
        assert flag in text
    assert "--max-num-partial-prefills" not in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--max-num-partial-prefills", "2"), "error: unrecognized arguments: --max-num-partial-prefills 2"),
        (("--max-num-seqs", "many"), "error: argument --max-num-seqs: invalid int value: 'many'"),
        (("--kv-cache-dtype", "fp3"), "error: argument --kv-cache-dtype: invalid choice: 'fp3'"),
        (("--fault", "flood"), "error: unknown fault 'flood'"),
    ],
)
def test_what_argparse_cannot_take_exits_with_2(words: tuple[str, ...], error: str) -> None:
    done = command("serve", "x", *words)
    assert done.returncode == 2
    assert error in done.stderr


def test_endpoints_answer_as_vllm(serve: Serve) -> None:
    server = serve("--served-model-name", "chatty", "--stream-interval", "1", env={"VLLM_SERVER_DEV_MODE": "1"}).ready()
    assert json.loads(server.call("/v1/models")[1])["data"][0]["id"] == "chatty"
    assert json.loads(server.call("/v1/models")[1])["data"][0]["max_model_len"] == 2048
    assert json.loads(server.call("/version")[1]) == {"version": "0.32.0+sim"}
    count = json.loads(server.call("/tokenize", {"prompt": "one two three"})[1])["count"]
    status, text = server.call("/v1/completions", {"model": "chatty", "prompt": "one two three", "max_tokens": 7})
    assert status == 200 and json.loads(text)["usage"]["prompt_tokens"] == count
    assert json.loads(server.call("/reset_prefix_cache", {})[1]) == {"success": True}
    assert server.call("/v1/completions", {"model": "another", "prompt": "x"})[0] == 404


def test_a_chat_stream_is_role_content_usage_done(serve: Serve) -> None:
    server = serve().ready()
    status, text = server.chat(tokens=5)
    events = chunks(text)
    assert status == 200 and text.endswith("data: [DONE]\n\n")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}  # type: ignore[index]
    assert all(event["choices"][0]["delta"]["content"] for event in events[1:-1])  # type: ignore[index]
    assert events[-2]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 5  # type: ignore[index]


def test_lengths_are_clipped_and_refused_as_in_0_32(serve: Serve) -> None:
    server = serve("--max-model-len", "64").ready()
    prompt = list(range(60))
    ask = {"prompt": prompt, "max_tokens": 50, "ignore_eos": True}
    assert json.loads(server.call("/v1/completions", ask)[1])["usage"]["completion_tokens"] == 4
    status, text = server.call("/v1/completions", {**ask, "prompt": list(range(80))})
    assert status == 400 and "maximum context length is 64 tokens. However, your prompt contains 80" in text
    assert server.call("/v1/completions", {**ask, "max_tokens": 65})[0] == 400


def test_metrics_count_what_was_served(serve: Serve) -> None:
    server = serve().ready()
    for _ in range(3):
        server.chat(tokens=4)
    assert server.metric("vllm:generation_tokens_total") == 12
    assert server.metric("vllm:request_success_total") == 3
    assert server.metric("vllm:time_to_first_token_seconds_count") == 3
    assert server.metric("vllm:inter_token_latency_seconds_count") == 9
    assert 'kv_cache_size_tokens="' in server.call("/metrics")[1]
    assert server.metric("vllm:num_requests_running") == 0


def test_a_client_that_leaves_aborts_its_request(serve: Serve) -> None:
    server = serve(env={"TUNER_SIM_SPEED": "1", "TUNER_SIM_STARTUP_S": "0.3"}).ready()
    server.call("/v1/completions", {"prompt": "x", "max_tokens": 2000, "ignore_eos": True}, timeout_s=0.3)
    assert eventually(lambda: server.metric("vllm:request_success_total") == 1)
    assert eventually(lambda: server.metric("vllm:num_requests_running") == 0 or not server.chat(tokens=1)[0])


def test_log_has_the_lines_that_tools_read(serve: Serve) -> None:
    server = serve("--max-num-batched-tokens", "4k").ready()
    for line in (
        "Chunked prefill is enabled with max_num_batched_tokens=4000.",
        "GPU KV cache size: ",
        "Maximum concurrency for 2,048 tokens per request: ",
        "init engine (profile, create kv cache, warmup model) took ",
        "Application startup complete.",
    ):
        assert line in server.log


def test_processes_have_vllms_titles(serve: Serve) -> None:
    server = serve("--tensor-parallel-size", "2").ready()
    assert sorted(server.children().values()) == ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_exits_with_0_and_leaves_nothing(serve: Serve, number: signal.Signals) -> None:
    server = serve().ready()
    segments = shared_memory_files(server.process.pid)
    assert segments and list(server.rpc_dir.iterdir())
    server.process.send_signal(number)
    assert server.wait() == 0
    assert not server.children()
    assert not any(segment.exists() for segment in segments) and not list(server.rpc_dir.iterdir())
    assert held_bytes(server.gpu_dir, 0) == 0


def test_sigterm_while_starting_is_death_by_sigint(serve: Serve) -> None:
    server = serve("--fault", "hang-before-ready")
    assert eventually(lambda: "Initializing a V1 LLM engine" in server.log)
    server.process.terminate()
    assert server.wait() == -signal.SIGINT
    assert not server.children()


def test_sigkill_leaves_the_engine_its_memory_and_its_files(serve: Serve) -> None:
    server = serve("--tensor-parallel-size", "2").ready()
    segments = shared_memory_files(server.process.pid)
    server.process.kill()
    server.wait()
    time.sleep(0.3)
    assert len(server.children()) == 3
    assert held_bytes(server.gpu_dir, 0) > 0 and held_bytes(server.gpu_dir, 1) > 0
    assert segments and all(segment.exists() for segment in segments) and list(server.rpc_dir.iterdir())
    second = serve()
    assert second.wait() == 1
    assert "Free memory on device cuda:0 (" in second.log and "Engine core initialization failed." in second.log
    third = serve(env={"CUDA_VISIBLE_DEVICES": "3"}).ready()
    assert held_bytes(third.gpu_dir, 3) > 0


def test_memory_is_free_again_when_the_orphan_is_killed(serve: Serve) -> None:
    server = serve().ready()
    server.process.kill()
    server.wait()
    for pid in server.children():
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: held_bytes(server.gpu_dir, 0) == 0)


def test_a_killed_engine_is_503_and_then_exit_0(serve: Serve) -> None:
    server = serve(env={"TUNER_SIM_SPEED": "5", "TUNER_SIM_STARTUP_S": "0.3"}).ready()
    engine = next(pid for pid, title in server.children().items() if title == "VLLM::EngineCore")
    os.kill(engine, signal.SIGKILL)
    assert eventually(lambda: server.call("/health")[0] == 503, 0.9)
    assert server.chat()[0] == 500
    assert server.wait() == 0
    assert "AsyncLLM output_handler failed." in server.log
    assert "EngineCore encountered an issue. See stack trace (above)" in server.log


def test_a_killed_worker_takes_the_engine_with_it(serve: Serve) -> None:
    server = serve("--tensor-parallel-size", "2").ready()
    worker = next(pid for pid, title in server.children().items() if title == "VLLM::Worker_TP1")
    os.kill(worker, signal.SIGKILL)
    assert server.wait() == 0
    assert "Worker proc VLLM::Worker_TP1 died unexpectedly (exit code: -9), shutting down executor." in server.log
    assert not server.children()


def test_a_refused_start_exits_with_1_and_says_why_in_the_engine(serve: Serve) -> None:
    server = serve("--kv-cache-memory-bytes", "100M")
    assert server.wait() == 1
    log = server.log
    assert "(EngineCore pid=" in log and "EngineCore failed to start." in log
    assert log.index("To serve at least one request with the model's max seq len (2048)") < log.index(
        "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
    )


def test_an_unknown_model_and_a_broken_rule_exit_with_1(serve: Serve) -> None:
    unknown, rule = serve(model="nobody/nothing"), serve("--max-num-seqs", "64", "--max-num-batched-tokens", "32")
    assert (unknown.wait(), rule.wait()) == (1, 1)
    assert "OSError: nobody/nothing is not a local folder and is not a valid model identifier" in unknown.log
    assert "must be greater than or equal to max_num_seqs (64)" in rule.log


def test_a_busy_port_is_refused_at_once(serve: Serve) -> None:
    server = serve().ready()
    second = serve("--port", str(server.port))
    assert second.wait() == 1
    assert "[Errno 98] Address already in use" in second.log


def test_the_second_start_with_the_same_shape_finds_its_compile_cache(serve: Serve) -> None:
    def compiled(server: Server) -> bool:
        server.ready().process.terminate()
        server.wait()
        return "Directly load the compiled graph(s)" not in server.log

    assert [compiled(serve()), compiled(serve()), compiled(serve("--max-num-seqs", "32"))] == [True, False, True]


def test_speed_makes_everything_faster_alike(serve: Serve) -> None:
    def answer_s(speed: int) -> float:
        env = {"TUNER_SIM_SPEED": str(speed), "TUNER_SIM_STARTUP_S": "0.3", "CUDA_VISIBLE_DEVICES": str(speed)}
        server = serve(env=env).ready()
        begun_s = time.monotonic()
        server.call("/v1/completions", {"prompt": "x", "max_tokens": 400, "ignore_eos": True})
        return time.monotonic() - begun_s

    assert 2.0 < answer_s(1) / answer_s(5) < 7.0


def test_the_process_is_as_fast_as_the_library_says(serve: Serve) -> None:
    """Eight clients on one RTX 4090: sockets, JSON and sleeps add little to what virtual time predicts."""
    clients, seconds, shape = 8, 4.0, Shape(100, 40)
    hardware, model = hardware_profile("rtx4090"), load_model("Qwen/Qwen3-8B")
    started = startup(EngineArguments(max_model_len=2048), hardware, model)
    assert isinstance(started, Started)
    expected = simulate(started, hardware, model, ClosedLoop([shape], clients, 30.0, warmup_s=5.0)).qps
    env = {"TUNER_SIM_PROFILE": "rtx4090", "TUNER_SIM_SPEED": "1", "TUNER_SIM_STARTUP_S": "0.3"}
    server = serve("--no-enable-prefix-caching", env=env, model="Qwen/Qwen3-8B").ready()
    body = {"prompt": list(range(shape.prompt_tokens)), "max_tokens": shape.output_tokens, "ignore_eos": True}
    end_s = time.monotonic() + seconds

    def client() -> int:
        count = 0
        while time.monotonic() < end_s:
            count += server.call("/v1/completions", {**body, "stream": True})[0] == 200
        return count

    with ThreadPoolExecutor(clients) as pool:
        done = sum(future.result() for future in [pool.submit(client) for _ in range(clients)])
    assert done / (seconds + 0.5 * clients / expected) == pytest.approx(expected, rel=0.25)
