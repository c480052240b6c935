from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuner.errors import UsageError
from tuner.load.prompts import SEARCH_TRACE, Prompts, Request
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


def test_own_traffic_is_found_from_another_folder(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "own.jsonl", {"prompt": "Hello", "max_tokens": 5})
    monkeypatch.chdir(tmp_path)
    planned = workload("own.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    (request,) = Prompts.for_model(planned, tiny_model, 0, None).requests("a", 1)
    assert request.messages == (("user", "Hello"),)


def timed(path: Path, *times: object) -> str:
    return lines(path, *({"prompt": f"p{i}", "max_tokens": 5, "arrival_s": at} for i, at in enumerate(times)))


def test_traffic_with_times_keeps_its_order_and_begins_anew_a_mean_gap_behind_its_end(
    tmp_path: Path, tiny_model: str
) -> None:
    text = timed(tmp_path / "t.jsonl", 103, 105, 109)
    requests = made(text, tiny_model, SEARCH_TRACE, 7)
    assert [r.arrival_s for r in requests] == [0, 2, 6, 9, 11, 15, 18]
    assert [r.messages[0][1] for r in requests] == ["p0", "p1", "p2", "p0", "p1", "p2", "p0"]
    assert len({r.extra_body["cache_salt"] for r in requests}) == 3
    assert workload(text).timed and "with their arrival times" in workload(text).source


def test_fresh_traffic_is_the_same_recording_from_another_place(tmp_path: Path, tiny_model: str) -> None:
    """Claims of other seeds and numbers, over 50 requests: none begins where the search does."""
    text = timed(tmp_path / "t.jsonl", *(i * i for i in range(50)))
    starts = set()
    for seed in range(3):
        prompts = Prompts.for_model(workload(text), tiny_model, seed, None)
        for number in range(3):
            requests = prompts.requests(f"claim-0-{number}", 60)
            order = [int(r.messages[0][1][1:]) for r in requests]
            assert order == [(order[0] + i) % 50 for i in range(60)]
            times = [r.arrival_s or 0.0 for r in requests]
            assert times == sorted(times) and times[50] - times[0] == 49 * 49 * 50 / 49
            assert prompts.requests(f"claim-0-{number}", 60) == requests
            starts.add(order[0])
    assert 0 not in starts and len(starts) > 3


@pytest.mark.parametrize(
    "times",
    [
        ("2026-11-25T08:00:00", "2026-11-25 08:00:01.5", "2026-11-25T08:00:04"),
        ("2026-11-25T08:00:00Z", "2026-11-25T09:00:01.500+01:00", "2026-11-25T08:00:04+00:00"),
        (1764057600, 1764057601.5, 1764057604),
    ],
)
def test_times_may_be_seconds_or_iso(times: tuple[object, ...], tmp_path: Path, tiny_model: str) -> None:
    requests = made(timed(tmp_path / "t.jsonl", *times), tiny_model, SEARCH_TRACE, 3)
    assert [r.arrival_s for r in requests] == [0, 1.5, 4]


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ((9, 3, 5), "line 2 arrived before the request above it"),
        ((1, None, 3), "line 2 has no arrival time, and others have one"),
        ((None, 2, 3), "line 1 has no arrival time, and others have one"),
        ((-1, 2, 3), "line 1 has an arrival time of -1"),
        ((1, float("nan"), 3), "line 2 has an arrival time of nan"),
        ((1, 10**400, 3), "line 2 has an arrival time of 1000"),
        ((1, True, 3), "line 2 has an arrival time of True"),
        ((1, [2], 3), "line 2 has an arrival time of [2]"),
        ((1, "2026-11-25T08:00:00", 3), "line 2 has an arrival time of another form"),
        (("2026-11-25T08:00:00", "2026-11-25T08:00:01Z"), "line 2 has an arrival time of another form"),
        (("25 November", "26 November"), "line 1 has an arrival time of '25 November'"),
        ((4, 4, 4), "are all the same"),
        ((4,), "are all the same"),
    ],
)
def test_times_that_cannot_be_replayed_are_refused_with_the_line(
    times: tuple[object, ...], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        workload(timed(tmp_path / "t.jsonl", *times))
    assert says in caught.value.message and caught.value.hint


def test_a_file_that_changed_since_the_plan_is_not_loaded(tmp_path: Path, tiny_model: str) -> None:
    planned = workload(timed(tmp_path / "t.jsonl", 1, 2))
    timed(tmp_path / "t.jsonl", 1, 3)
    with pytest.raises(UsageError, match="has changed since"):
        Prompts.for_model(planned, tiny_model, 0, None)


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
