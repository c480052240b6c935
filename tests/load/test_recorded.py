from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.load.traffic_files import lines, reading
from tuner.errors import UsageError
from tuner.load.prompts import SEARCH_TRACE, Prompts, Request
from tuner.load.reading import LeftOut, TimesFound, WhyLeftOut, reading_line
from tuner.load.workload import workload


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
        ("2026-11-25 08:00:00 UTC", "2026-11-25 08:00:01.5 GMT", "2026-11-25 09:00:04 +0100"),
        (
            {"$date": "2026-11-25T08:00:00Z"},
            {"$date": {"$numberLong": "1795593601500"}},
            "Wed, 25 Nov 2026 08:00:04 GMT",
        ),
        ("20261125080000", "2026-11-25T08:00:01,5", 20261125080004),
        ("25/Nov/2026:08:00:00 +0000", 1795593601.5, "25 Nov 2026 08:00:04 GMT"),
    ],
)
def test_times_may_be_seconds_or_dates(times: tuple[object, ...], tmp_path: Path, tiny_model: str) -> None:
    requests = made(timed(tmp_path / "t.jsonl", *times), tiny_model, SEARCH_TRACE, 3)
    assert [r.arrival_s for r in requests] == [0, 1.5, 4]


@pytest.mark.parametrize(
    "times",
    [
        (1, None, 3),
        (1, -1, 3),
        (1, float("nan"), 3),
        (1, 10**400, 3),
        (1, True, 3),
        (1, [2], 3),
        (1, "2026-11-25T08:00:00", 3),
        ("2026-11-25T08:00:00", "2026-11-25T08:00:01Z", "2026-11-25T08:00:02"),
        ("2026-11-25T08:00:00", "25 November", "2026-11-25T08:00:02"),
    ],
)
def test_a_row_without_a_time_like_the_others_is_left_out(times: tuple[object, ...], tmp_path: Path) -> None:
    found = reading(timed(tmp_path / "t.jsonl", *times))
    assert found.times is TimesFound.REPLAYED
    assert found.left_out == (LeftOut(WhyLeftOut.NO_TIME, 1, "line 2"),)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ((None, None), TimesFound.NONE),
        ((4, 4, 4), TimesFound.ALL_ALIKE),
        ((4,), TimesFound.ALL_ALIKE),
        (("25 November", "26 November"), TimesFound.TOO_FEW),
        (("2026-11-25", "2026-11-26"), TimesFound.TOO_FEW),
        ((1, None, None, None), TimesFound.TOO_FEW),
        ((1, 1764057600, 2, 1764057601), TimesFound.TOO_FEW),
    ],
)
def test_times_that_cannot_be_replayed_are_said_and_cost_no_request(
    times: tuple[object, ...], found: TimesFound, tmp_path: Path
) -> None:
    planned = workload(timed(tmp_path / "t.jsonl", *times))
    assert planned.reading is not None and planned.reading.requests == len(times)
    assert planned.reading.times is found and planned.timed is (found is TimesFound.REPLAYED)
    assert "arrival times" in reading_line(planned.reading)


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize(
    "key", ["timestamp", "created", "created_at", "startTime", "timestamp_ms", "arrivedAt", "msec"]
)
@pytest.mark.parametrize("form", [int, str])
def test_times_have_many_names_and_units(unit: int, key: str, form: type, tmp_path: Path, tiny_model: str) -> None:
    rows = ({"prompt": f"p{i}", key: form((1764057600 + at) * unit)} for i, at in enumerate((4, 0, 2)))
    text = lines(tmp_path / "t.jsonl", *rows)
    requests = made(text, tiny_model, SEARCH_TRACE, 3)
    assert [(r.messages[0][1], r.arrival_s) for r in requests] == [("p1", 0), ("p2", 2), ("p0", 4)]
    assert reading(text).moved == 2


def test_a_duration_is_no_time_of_arrival(tmp_path: Path, tiny_model: str) -> None:
    logged = ((7.5, "2026-11-25T08:00:00Z"), (0.25, "2026-11-25T08:00:02Z"))
    rows = ({"request_time": took, "time_iso8601": at, "prompt": at[17:19]} for took, at in logged)
    requests = made(lines(tmp_path / "t.jsonl", *rows), tiny_model, SEARCH_TRACE, 2)
    assert [(r.messages[0][1], r.arrival_s) for r in requests] == [("00", 0), ("02", 2)]


def test_times_of_several_units_in_one_file_are_converted_and_counted(tmp_path: Path, tiny_model: str) -> None:
    text = timed(tmp_path / "t.jsonl", 1764057600, 1764057602000, "1764057603000000", 1764057604)
    assert [r.arrival_s for r in made(text, tiny_model, SEARCH_TRACE, 4)] == [0, 2, 3, 4]
    assert reading(text).mended == 2 and "2 in another unit, converted" in reading_line(reading(text))


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
        ("{", "1 cut off by the end of the file (first: entry 1, line 1)"),
        ("[1]", "not an object (first: entry 1)"),
        ('{"max_tokens": 5}', "with neither prompt nor messages (first: line 1)"),
        ('{"prompt": "x", "max_tokens": 0}', "impossible output length"),
        ('{"prompt": "x", "max_tokens": "many"}', "impossible output length"),
        ('{"messages": [{"role": "alien", "content": "x"}]}', "unknown role"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}', "images"),
        ("", "has no request"),
        ("\n".join(['{"prompt": "x"}', *["null"] * 12]), "only 1 of 13 requests"),
    ],
)
def test_a_file_of_which_hardly_anything_can_be_sent_is_refused_with_place_and_reason(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        workload(str(path))
    assert says in caught.value.message and caught.value.hint


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError):
        workload("/no/such/file.jsonl")
