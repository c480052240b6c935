from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.errors import EnvironmentFaultError, UsageError
from tuner.load.prompts import FileCounter, Prompts, Request, token_counter, tokenizer_file
from tuner.load.workload import with_body, workload


def prompts(text: str, model: str, seed: int = 0) -> Prompts:
    return Prompts.for_model(workload(text), model, seed, None)


def texts(requests: list[Request]) -> list[str]:
    return [content for request in requests for _, content in request.messages]


def counted(requests: list[Request], model: str) -> list[int]:
    return FileCounter(Path(model) / "tokenizer.json").count(texts(requests))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(low=st.integers(1, 600), more=st.integers(0, 300), seed=st.integers(0, 2**31))
def test_lengths_are_exact_by_the_models_own_tokenizer(tiny_model: str, low: int, more: int, seed: int) -> None:
    made = prompts(f"random:{low}-{low + more},8", tiny_model, seed).requests("level", 5)
    assert counted(made, tiny_model) == [r.prompt_tokens for r in made]
    assert all(low <= r.prompt_tokens <= low + more for r in made)


def test_the_same_seed_and_key_give_the_same_requests_for_every_candidate(tiny_model: str) -> None:
    first = prompts("mixed", tiny_model).requests("level-10", 50)
    assert prompts("mixed", tiny_model).requests("level-10", 50) == first
    assert prompts("mixed", tiny_model).requests("level-10", 80)[:50] == first
    assert prompts("mixed", tiny_model, seed=1).requests("level-10", 50) != first


def test_no_two_keys_share_a_kv_block(tiny_model: str) -> None:
    made = prompts("random:64,8", tiny_model)
    opening = [
        " ".join(text.split()[:6])
        for key in ("level-10", "level-30", "again")
        for text in texts(made.requests(key, 300))
    ]
    assert len(set(opening)) == len(opening)


def test_only_what_the_workload_shares_is_shared(tiny_model: str) -> None:
    made = prompts("prefix:200,40,8", tiny_model)
    all_texts = texts(made.requests("a", 20)) + texts(made.requests("b", 20))
    counter = FileCounter(Path(tiny_model) / "tokenizer.json")
    for one, other in combinations(all_texts, 2):
        same = 0
        for mine, its in zip(one.split(), other.split(), strict=False):
            if mine != its:
                break
            same += 1
        assert 200 <= counter.count([" ".join(one.split()[:same])])[0] < 216


def test_thinking_is_asked_for_only_where_the_share_thinks(tiny_model: str) -> None:
    made = prompts("mixed", tiny_model).requests("level", 1000)
    bodies = Counter(str(r.extra_body) for r in made)
    thinking = "{'ignore_eos': True, 'chat_template_kwargs': {'enable_thinking': True}}"
    assert bodies.keys() == {thinking, "{'ignore_eos': True}"}
    assert bodies[thinking] == pytest.approx(200, abs=40)


def test_a_field_of_null_is_left_out_and_others_win_over_tuners_own(tiny_model: str) -> None:
    text = '{"ignore_eos": null, "chat_template_kwargs": {"enable_thinking": false}, "stop": ["a", 1.5]}'
    own = with_body(workload("mixed"), natural_stops=False, extra_body=text)
    for request in Prompts.for_model(own, tiny_model, 0, None).requests("level", 20):
        assert request.extra_body == {"chat_template_kwargs": {"enable_thinking": False}, "stop": ["a", 1.5]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ("[1]", "no JSON object"),
        ('{"stream": false}', "names 'stream'"),
        ('{"max_tokens": 5}', "names 'max_tokens'"),
    ],
)
def test_an_extra_body_that_cannot_be_sent_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_body(workload("chat"), natural_stops=False, extra_body=text)
    assert said in caught.value.message


def test_natural_stops_send_no_word_of_the_end(tiny_model: str) -> None:
    own = replace(workload("chat"), natural_stops=True, temperature=0.5, extra_body=(("top_k", "20"),))
    (request,) = Prompts.for_model(own, tiny_model, 0, None).requests("level", 1)
    assert request.extra_body == {"temperature": 0.5, "top_k": 20}


def test_a_thousand_prompts_of_300_tokens_take_under_a_second(tiny_model: str) -> None:
    made = prompts("random:300,8", tiny_model)
    began = time.process_time()
    made.requests("level", 1000)
    assert time.process_time() - began < 1


class _Tokenize(BaseHTTPRequestHandler):
    """Server of vLLM's /tokenize, with a tokenizer of one token a word."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps({"count": len(body["prompt"].split()), "max_model_len": 100, "tokens": []}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def tokenizing_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Tokenize) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_without_a_tokenizer_the_server_counts(tokenizing_server: str) -> None:
    made = Prompts.for_model(workload("random:50,5"), "no/such-model", 0, tokenizing_server).requests("level", 3)
    assert [len(text.split()) for text in texts(made)] == [50, 50, 50]


def test_without_tokenizer_and_server_it_says_what_to_do() -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        token_counter("no/such-model", None)
    assert "tokenizer.json" in caught.value.hint


def test_a_server_that_cannot_tokenize_is_an_error_with_a_hint() -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        token_counter("no/such-model", "http://127.0.0.1:9").count(["text"])
    assert "tokenizer" in caught.value.hint


@pytest.mark.parametrize("model", ["no/such-model", "not a repository name", "/no/such/folder"])
def test_a_model_that_is_not_here_has_no_tokenizer_file(model: str) -> None:
    assert tokenizer_file(model) is None


def test_a_repeat_has_the_same_lengths_in_the_same_order_and_no_word_in_common_place(tiny_model: str) -> None:
    made = prompts("mixed", tiny_model)
    first, second = (made.requests("search", 200, repeat) for repeat in (0, 1))
    assert [(r.prompt_tokens, r.max_tokens) for r in first] == [(r.prompt_tokens, r.max_tokens) for r in second]
    assert not set(texts(first)) & set(texts(second))
    assert made.requests("search", 200, 1) == second
