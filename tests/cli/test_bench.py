from __future__ import annotations

import json
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.support import TUNER, tuner
from tests.load.scripted_server import ScriptedServer, answer, serving
from tests.load.test_recorded import timed
from tests.load.traffic_files import lines
from tests.sim.conftest import Serve, Server, serve
from tuner.cli.self_check import check_client, sentence
from tuner.cli.tables import Form
from tuner.errors import EnvironmentFaultError
from tuner.load.self_check import CheckedRate, SelfCheck

__all__ = ["serve"]  # a fixture

SHORT = ("--workload", "random:32,4", "--slo", "p99 ttft <= 60s", "--warm-up-seconds", "0.2", "--level-seconds", "2",
         "--probe-seconds", "2")  # fmt: skip
"""A limit so wide that a busy machine's own lag neither breaks it nor spoils the level."""

ONE_MODEL = json.dumps({"object": "list", "data": [{"id": "llama"}]}).encode()


def refused(ended: subprocess.CompletedProcess[str], code: int) -> str:
    """The last two lines: a message and a hint, nothing of ours before them but progress."""
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    *_, message, hint = ended.stderr.strip().splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("hint: ")
    return f"{message}\n{hint}"


@pytest.fixture
def stand_in(serve: Serve) -> Server:
    return serve(env={"TUNER_SIM_SPEED": "100", "TUNER_SIM_STARTUP_S": "0.2"}).ready()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


# ── a server with vLLM's metrics


def test_a_rate_that_keeps_the_limits_ends_with_0_and_files_to_read(stand_in: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = tuner("bench", "--url", f"{url(stand_in)}/v1/", *SHORT, "--rate", "60", "--json", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["schema"] == 1
    assert result["model"] == "Qwen/Qwen3-0.6B"
    assert result["kept"][-1] is True
    assert result["preemptions_observed"] is True
    assert "kept p99 ttft <= 60000ms at 60.0 requests/s" in result["sentence"]
    assert json.loads((out / "bench.json").read_text()) == result
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert len(rows) == sum(level["measurement"]["sent"] for level in result["levels"])
    assert {row["level"] for row in rows} == {60.0}
    assert pq.read_table(out / "telemetry.parquet").num_rows > 0
    again = tuner("bench", "--url", url(stand_in), *SHORT, "--rate", "60", "--out", str(out))
    assert "holds a measurement already" in refused(again, 2)


def test_a_ladder_is_a_table_on_stdout_and_lines_on_stderr(stand_in: Server) -> None:
    ended = tuner("bench", "--url", url(stand_in), *SHORT, "--levels", "4")
    assert ended.returncode == 0, ended.stderr
    assert "4 concurrent" in ended.stderr
    head, row, *_, last = ended.stdout.splitlines()
    assert head.split()[:2] == ["load", "QPS"]
    assert row.split()[:2] == ["4", "concurrent"] and row.endswith("kept")
    assert last.startswith("kept p99 ttft <= 60000ms at 4 concurrent")


def test_limits_that_nothing_keeps_end_with_3_and_the_figures(stand_in: Server) -> None:
    ended = tuner("bench", "--url", url(stand_in), *SHORT, "--slo", "p99 e2e <= 0.01ms", "--levels", "4")
    assert "nothing kept" in refused(ended, 3)
    assert "p99 e2e <= 0.01ms is broken" in ended.stdout


def test_a_workload_longer_than_the_server_takes_is_refused_before_the_load(stand_in: Server) -> None:
    before = stand_in.metric("vllm:request_success_total")
    ended = tuner("bench", "--url", url(stand_in), "--workload", "random:2000,100", "--rate", "5")
    assert "2100 tokens a request, the server takes 2048" in refused(ended, 2)
    assert stand_in.metric("vllm:request_success_total") == before


def test_ctrl_c_ends_the_load_with_130_and_leaves_the_server(stand_in: Server) -> None:
    command = subprocess.Popen(
        [*TUNER, "bench", "--url", url(stand_in), *SHORT, "--levels", "4,8", "--level-seconds", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stderr is not None
    assert "workload random:32,4" in command.stderr.readline()  # the load begins, and with it the handler
    stand_in_busy(stand_in)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130, err
    assert "error: interrupted" in err
    assert "Traceback" not in err
    assert stand_in.call("/health")[0] == 200


def stand_in_busy(server: Server) -> None:
    """More than the one request that comes before the load."""
    while server.metric("vllm:request_success_total") < 3:
        assert server.process.poll() is None


# ── another engine: no /metrics, no /tokenize


@pytest.fixture
def foreign() -> Iterator[ScriptedServer]:
    with serving(answer(4, 0.001, 0.001), pages={"/v1/models": ONE_MODEL}) as server:
        yield server


def test_a_foreign_server_keeps_the_limits_with_preemptions_not_observed(
    foreign: ScriptedServer, tiny_model: str
) -> None:
    ended = tuner("bench", "--url", foreign.url, "--tokenizer", tiny_model, *SHORT, "--rate", "60", VLLM_API_KEY="")
    assert ended.returncode == 0, ended.stderr
    assert "kept p99 ttft <= 60000ms" in ended.stdout
    assert "Preemptions were not observed" in ended.stdout
    assert {served.body["model"] for served in foreign.served} == {"llama"}


def test_without_tokenizer_and_tokenize_one_message_says_what_to_give(foreign: ScriptedServer) -> None:
    said = refused(tuner("bench", "--url", foreign.url, *SHORT, "--rate", "60"), 2)
    assert "/tokenize counts no tokens" in said
    assert "--tokenizer" in said
    assert foreign.served == []


def test_answers_that_end_early_are_refused_or_allowed_as_the_user_says(tiny_model: str) -> None:
    with serving(answer(3, 0.001, 0.001), pages={"/v1/models": ONE_MODEL}) as server:
        words = ("bench", "--url", server.url, "--tokenizer", tiny_model, *SHORT, "--rate", "60")
        assert "--natural-stops" in refused(tuner(*words), 4)
        ended = tuner(*words, "--natural-stops")
    assert ended.returncode == 0, ended.stderr
    assert "Answers ended on their own" in ended.stdout


def test_a_key_of_the_environment_is_sent_and_never_shown(tiny_model: str, tmp_path: Path) -> None:
    with serving(answer(4, 0.001, 0.001), pages={"/v1/models": ONE_MODEL}) as server:
        words = ("bench", "--url", server.url, "--tokenizer", tiny_model, *SHORT, "--rate", "60", "--json")
        ended = tuner(*words, "--out", str(tmp_path / "o"), VLLM_API_KEY="", OPENAI_API_KEY="sk-very-secret")
        assert ended.returncode == 0, ended.stderr
        assert set(server.authorizations) == {"Bearer sk-very-secret"}
    assert "sk-very-secret" not in ended.stdout + ended.stderr + (tmp_path / "o" / "bench.json").read_text()


def test_an_encrypted_server_needs_trust_and_a_proxy_the_address_of_the_metrics(
    tiny_model: str, own_certificate: ssl.SSLContext
) -> None:
    page = b"sglang:num_running_reqs 0.0\nsglang:num_queue_reqs 0.0\nvllm:num_preemptions_total 0.0\n"
    with (
        serving(answer(4, 0.001, 0.001), pages={"/v1/models": ONE_MODEL}, tls=own_certificate) as server,
        serving([], pages={"/metrics": page}) as behind,
    ):
        words = ("bench", "--url", server.url, "--tokenizer", tiny_model, *SHORT, "--rate", "60")
        assert "--insecure" in refused(tuner(*words), 4)
        assert "shows no metrics" in refused(tuner(*words, "--insecure", "--metrics-url", f"{behind.url}/other"), 4)
        ended = tuner(*words, "--insecure", "--metrics-url", behind.url, VLLM_API_KEY="sk-mine")
        assert ended.returncode == 0, ended.stderr
        assert "not observed" not in ended.stdout + ended.stderr
        assert set(server.authorizations) == {"Bearer sk-mine"} and behind.authorizations == []


# ── what a person or a server can get wrong


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--url", "http://127.0.0.1:9", "--rate", "1"), 4, "no server answers"),
        (("--url", "https://127.0.0.1:9"), 4, "no server answers"),
        (("--url", "127.0.0.1:8000"), 2, "give a URL like http://"),
        (("--url", "http://127.0.0.1:port"), 2, "is not a URL"),
        (("--url", "http://:sk-secret@127.0.0.1:8000"), 2, "VLLM_API_KEY"),
        (("--workload", "chatt"), 2, "did you mean 'chat'"),
        (("--slo", "p99 ttft"), 2, "does not parse"),
        (("--rate", "0"), 2, "at least"),
        (("--rate", "nan"), 2, "at least"),
        (("--rate", "1e9"), 2, "requests or seconds at once"),
        (("--rate", "1", "--levels", "4"), 2, "exclude each other"),
        (("--levels", "8,4"), 2, "does not parse"),
        (("--claim", "--rate", "4"), 2, "--claim belongs to the search"),
        (("--self-check", "--level-seconds", "nan"), 2, "at each rate"),
        (("--seed", "-1", "--rate", "4"), 2, "at least 0"),
        (("--burstiness", "2", "--levels", "4"), 2, "no meaning"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(words: tuple[str, ...], code: int, said: str) -> None:
    ended = tuner("bench", *words)
    assert said in refused(ended, code)
    assert ended.stdout == ""
    assert "sk-secret" not in ended.stderr


def test_traffic_with_times_of_its_own_is_replayed_and_bench_says_so(stand_in: Server, tmp_path: Path) -> None:
    own = timed(tmp_path / "own.jsonl", *(i * i for i in range(30)))
    short = ("--slo", "p99 ttft <= 60s", "--warm-up-seconds", "0.2", "--level-seconds", "2", "--workload", own)
    ended = tuner("bench", "--url", url(stand_in), *short, "--rate", "60", "--json")
    assert ended.returncode == 0, ended.stderr
    assert "workload own.jsonl, arrivals as recorded" in ended.stderr
    assert f"read {own}: 30 of 30 requests" in ended.stderr and "arrival times found" in ended.stderr
    assert json.loads(ended.stdout)["reading"]["requests"] == 30
    assert json.loads(ended.stdout)["arrivals"] == "arrivals as recorded"
    assert json.loads(ended.stdout)["levels"][-1]["measurement"]["sent"] == 120


@pytest.mark.parametrize(
    ("row", "said"),
    [({"timestamp": 1, "input_length": 9, "output_length": 5}, "a trace of lengths"), ({"id": 1}, "first: line 1")],
)
def test_traffic_that_cannot_be_sent_ends_with_2_before_anything_is_loaded(
    row: dict[str, object], said: str, tmp_path: Path
) -> None:
    own = lines(tmp_path / "own.jsonl", row)
    for words in (("bench", "--rate", "4"), ("search", "--model", "Qwen/Qwen3-8B", "--vllm", "/nowhere/vllm serve")):
        assert said in refused(tuner(*words, "--workload", own), 2)


@pytest.mark.parametrize(
    ("pages", "words", "code", "said"),
    [
        ({}, (), 4, "/v1/models is not there"),
        ({"/v1/models": b"<html>"}, (), 4, "does not answer as an OpenAI-compatible server"),
        ({"/v1/models": b"[1]"}, (), 4, "does not answer as an OpenAI-compatible server"),
        ({"/v1/models": b'{"data": []}'}, (), 2, "serves 0 models"),
        ({"/v1/models": b'{"data": [{"id": "a"}, {"id": "b"}]}'}, (), 2, "choose with --model: a, b"),
        ({"/v1/models": ONE_MODEL}, ("--model", "other"), 2, "it serves llama"),
        ({"/v1/models": ONE_MODEL}, ("--tokenizer", "/nowhere"), 2, "no tokenizer.json"),
    ],
)
def test_a_server_that_is_not_what_was_meant_is_refused(
    pages: Mapping[str, bytes], words: tuple[str, ...], code: int, said: str
) -> None:
    with serving(answer(4, 0.0, 0.0), pages=pages) as server:
        assert said in refused(tuner("bench", "--url", server.url, "--rate", "4", *words), code)
        assert server.served == []


# ── the client itself


def checked(offered: float, inflation_p99_ms: float) -> CheckedRate:
    return CheckedRate(offered, 10, offered, 0.1, inflation_p99_ms, 1.5, 0.25, 10.0)


def test_the_self_check_says_what_is_safe_and_what_comes_above() -> None:
    assert sentence(SelfCheck((checked(2500, 0.5), checked(5000, 7.25)))) == (
        "Safe up to 2,500 chunks/s. At 5,000 the client adds 7.2 ms to a P99 TTFT, is 1.5 ms late at P99, "
        "on 25 % of its core."
    )
    assert sentence(SelfCheck((checked(2500, 9.0),))).startswith("No rate that was tried is safe. At 2,500 ")
    assert sentence(SelfCheck((checked(2500, 0.5),))) == "Safe up to 2,500 chunks/s. Nothing faster was tried."


def test_the_self_check_measures_a_server_of_known_times(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        check_client(Form.JSON, seconds=0.5, rates=(200,))
        ended_well = True
    except EnvironmentFaultError:  # a machine too busy to time 200 chunks/s says so
        ended_well = False
    result = json.loads(capsys.readouterr().out)
    assert result["rates"][0]["streams"] == 4
    assert (result["safe_chunks_per_s"] == 200) is ended_well
