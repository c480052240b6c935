from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuner.errors import UsageError
from tuner.load.prompts import Prompts, Request
from tuner.load.workload import workload


def lines(path: Path, *rows: object) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def made(text: str, model: str, key: str = "a", count: int = 10) -> list[Request]:
    return Prompts.for_model(workload(text), model, 0, None).requests(key, count)


def test_own_traffic_is_sent_as_it_was(tmp_path: Path, tiny_model: str) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is a fjord?"},
        {"role": "assistant", "content": "A valley full of sea."},
        {"role": "user", "content": "And a sund?"},
    ]
    text = lines(tmp_path / "own.jsonl", {"prompt": "Hello", "max_tokens": 5}, {"messages": turns, "max_tokens": 9})
    by_length = {r.max_tokens: r for r in made(text, tiny_model, count=2)}
    assert by_length[5].messages == (("user", "Hello"),)
    assert [role for role, _ in by_length[9].messages] == ["system", "user", "assistant", "user"]


def test_a_recorded_answer_gives_the_length_to_ask_for(tmp_path: Path, tiny_model: str) -> None:
    path = tmp_path / "sharegpt.json"
    talk = [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "the time and the water"}]
    path.write_text(json.dumps([{"id": "1", "conversations": talk}, {"id": "2", "conversations": talk[1:]}]))
    (request,) = made(str(path), tiny_model, count=1)
    assert request.messages == (("user", "Say it."),)
    assert 5 <= request.max_tokens <= 12


def test_vllms_custom_form_is_read(tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "custom.jsonl", {"prompt": "One", "output_tokens": 7}, {"prompt": "Two"})
    assert sorted(r.max_tokens for r in made(text, tiny_model, count=2)) == [7, 256]


def test_traffic_with_times_keeps_its_order(tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "t.jsonl", *({"prompt": f"p{at}", "arrival_s": at} for at in (9, 3, 5)))
    requests = made(text, tiny_model, count=3)
    assert [r.arrival_s for r in requests] == [3, 5, 9]


def test_no_level_shares_its_cache_with_another_and_repeats_within_one_do_not_either(
    tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "own.jsonl", *({"prompt": f"question {i}", "max_tokens": 5} for i in range(4)))
    salts = [r.extra_body["cache_salt"] for key in "ab" for r in made(text, tiny_model, key, 8)]
    assert [salts.count(s) for s in salts] == [4] * 16
    first, second = (made(text, tiny_model, key, 4) for key in "ab")
    assert sorted(r.messages for r in first) == sorted(r.messages for r in second)


def test_a_repeat_is_the_same_traffic_under_another_salt(tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "own.jsonl", *({"prompt": f"question {i}", "max_tokens": 5} for i in range(4)))
    prompts = Prompts.for_model(workload(text), tiny_model, 0, None)
    first, second = (prompts.requests("a", 8, repeat) for repeat in (0, 1))
    assert [r.messages for r in first] == [r.messages for r in second]
    assert not {r.extra_body["cache_salt"] for r in first} & {r.extra_body["cache_salt"] for r in second}


def test_the_workload_estimates_lengths_on_the_long_side(tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "own.jsonl", {"prompt": "where the river meets the sea " * 20, "max_tokens": 64})
    (share,) = workload(text).shares
    assert share.prompt.high == 200 and share.output.high == 64
    assert workload(text).file_sha256 is not None and len(str(workload(text).file_sha256)) == 64


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "line 1"),
        ("[1]", "is not an object"),
        ('{"max_tokens": 5}', "neither prompt nor messages"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens of 0"),
        ('{"prompt": "x", "max_tokens": "9"}', "max_tokens of '9'"),
        ('{"prompt": "x", "arrival_s": "now"}', "arrival time of 'now'"),
        ('{"messages": [{"role": "alien", "content": "x"}]}', "known role"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "known role"),
        ("", "has no request"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_reason(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        workload(str(path))
    assert says in caught.value.message and caught.value.hint


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError):
        workload("/no/such/file.jsonl")
