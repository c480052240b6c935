"""Lengths of recorded answers, and of what servers accept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.load.traffic_files import (
    ANSWER,
    QUESTION,
    USER,
    body,
    lines,
    reading,
    sent,
    tokens,
)
from tuner.errors import UsageError
from tuner.load.fit import fitted, local_counter
from tuner.load.prompts import Prompts
from tuner.load.reading import LeftOut, WhyLeftOut, reading_line
from tuner.load.workload import workload

LENGTHS: list[tuple[dict[str, object], int]] = [
    ({"max_tokens": 1024, "usage": {"completion_tokens": 17}}, 17),
    ({"max_tokens": 1024, "completion_tokens": 17}, 17),
    ({"max_tokens": 4096, "output_tokens": 33}, 33),
    ({"output_length": 500}, 500),
    ({"output_tokens_count": 12}, 12),
    ({"usage": {"input": 5, "output": 21}}, 21),
    ({"usageDetails": {"output_tokens": 22}}, 22),
    ({"response": {"body": {"usage": {"completion_tokens": 23}}}}, 23),
    ({"usage": {"completion_tokens": 100}, "max_tokens": 64}, 64),
    ({"usage": {"completion_tokens": 90}, "n": 3}, 30),
    ({"max_completion_tokens": 40}, 40),
    ({"output_len": "41"}, 41),
    ({"output_len": 42.0}, 42),
    ({"model_parameters": {"max_tokens": 43}}, 43),
    ({"tokenUsage": {"completionTokens": 44}, "maxTokens": 900}, 44),
    ({"response_body": {"usage": {"completion_tokens": 45}}, "max_tokens": 900}, 45),
    ({"response": 'data: {"choices": [], "usage": {"completion_tokens": 46}}\n\ndata: [DONE]'}, 46),
    ({"output": {"outputTokenCount": 47}}, 47),
    ({"usage.completion_tokens": 48}, 48),
    ({"completion_tokens": "", "max_tokens": 49}, 49),
    ({"completion_tokens": float("nan"), "params": {"max_tokens": 50}}, 50),
    ({"options": {"num_predict": 51}}, 51),
    ({"status": "success", "status_code": 200, "completion_tokens": 52}, 52),
    ({"usage": {"prompt_tokens": 5, "total_tokens": 58}}, 53),
    ({"choices": ["red", "green"], "answer": 1}, 256),
    ({"max_tokens": -1}, 256),
    ({"max_tokens": None}, 256),
    ({}, 256),
]


@pytest.mark.parametrize(("fields", "length"), LENGTHS, ids=[json.dumps(fields) for fields, _ in LENGTHS])
def test_a_recorded_length_comes_before_the_cap(
    fields: dict[str, object], length: int, tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"messages": [USER], **fields})
    assert [body(request)["max_tokens"] for request in sent(text, tiny_model)] == [length]
    assert reading(text).output.high == length


@pytest.mark.parametrize(
    "answered",
    [
        {"response": ANSWER},
        {"output": {"role": "assistant", "content": ANSWER}},
        {"response": {"choices": [{"message": {"content": ANSWER}}, {"message": {"content": "another"}}]}},
        {"response": {"status_code": 200, "body": {"choices": [{"message": {"content": ANSWER}}]}}},
        {"response": {"content": [{"type": "text", "text": ANSWER}]}},
        {"choices": [{"text": ANSWER}]},
        {"response": {"choices": [{"message": {"reasoning_content": ANSWER[:9], "content": ANSWER[9:]}}]}},
        {"output": {"content": [{"type": "thinking", "thinking": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}]}},
        {
            "response": [
                {"choices": [{"delta": {"content": ANSWER[:9]}}]},
                {"choices": [{"delta": {"content": ANSWER[9:]}}]},
            ]
        },
        {"response": f'data: {{"choices": [{{"delta": {{"content": "{ANSWER}"}}}}]}}\n\ndata: [DONE]\n\n'},
        {"response_text": ANSWER},
        {"response": json.dumps({"choices": [{"message": {"content": ANSWER}}]})},
        {"candidates": [{"content": {"parts": [{"text": ANSWER}]}}], "response": {"candidates": [{"content": ANSWER}]}},
    ],
)
def test_a_recorded_answer_is_counted_before_the_cap(
    answered: dict[str, object], tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"messages": [USER], "max_tokens": 1024, **answered})
    assert sent(text, tiny_model)[0].max_tokens == tokens(tiny_model, ANSWER)


@pytest.mark.parametrize("further", ["And then?", {"text": "And then?"}, {"role": "user", "content": "And then?"}])
def test_a_further_question_is_no_answer(further: object, tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "t.jsonl", {"turns": [QUESTION, further], "max_tokens": 77})
    assert (sent(text, tiny_model)[0].max_tokens, reading(text).capped) == (77, 1)


@pytest.mark.parametrize("answer", ['{"city": "Bergen"}', "data: none was there", '["a", "b"]'])
def test_an_answer_that_looks_like_an_envelope_is_counted_as_it_is(
    answer: str, tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"prompt": QUESTION, "response": answer})
    assert sent(text, tiny_model)[0].max_tokens == tokens(tiny_model, answer)


def test_the_line_tells_where_output_lengths_come_from(tmp_path: Path) -> None:
    rows = [{"output_len": 5}, {"output_len": 6}, {"max_tokens": 7}, {}]
    line = reading_line(reading(lines(tmp_path / "t.jsonl", *({"prompt": QUESTION, **row} for row in rows))))
    assert "2 as recorded, 1 from max_tokens, which may be only a cap, 1 not told, 256 assumed" in line
    assert "all a plain prompt, sent as one user message of a chat" in line and "no arrival times" in line


def test_mean_and_longest_are_those_of_real_rows(tmp_path: Path, tiny_model: str) -> None:
    """One long row moves neither the mean to its middle nor the longest to a row that is not there."""
    rows = [{"prompt": QUESTION, "output_length": 20}] * 199 + [{"prompt": QUESTION * 50, "output_length": 10}]
    text = lines(tmp_path / "t.jsonl", *rows, {"prompt": "a", "output_length": 300})
    planned = fitted(workload(text), local_counter(tiny_model), None)
    short, long, one = (tokens(tiny_model, prompt) for prompt in (QUESTION, QUESTION * 50, "a"))
    assert planned.mean == pytest.approx((199 * (short + 20) + long + 10 + one + 300) / 201)
    assert planned.longest == max(long + 10, one + 300)


@pytest.mark.parametrize("row", [{"prompt": QUESTION * 60}, {"prompt": "a", "output_length": 2000}])
def test_a_row_that_servers_would_refuse_is_left_out_of_every_start(
    row: dict[str, object], tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"prompt": "one"}, row, {"prompt": "two"})
    planned = fitted(workload(text), local_counter(tiny_model), 512)
    assert planned.reading is not None
    assert planned.reading.left_out == (LeftOut(WhyLeftOut.TOO_LONG, 1, "line 2"),)
    requests = Prompts.for_model(planned, tiny_model, 0, None).requests("a", 4)
    assert {request.messages[0][1] for request in requests} == {"one", "two"}
    with pytest.raises(UsageError, match="longer than servers accept"):
        fitted(workload(text), local_counter(tiny_model), 130)


def test_counts_of_a_large_file_are_kept_on_disk(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = lines(tmp_path / "t.jsonl", *({"prompt": f"{QUESTION} {i}" * 20} for i in range(1600)))
    planned = fitted(workload(text), local_counter(tiny_model), None)
    (kept,) = (tmp_path / "cache" / "tuner" / "tokens").iterdir()
    assert b"river" not in kept.read_bytes()
    other = fitted(workload(lines(tmp_path / "o.jsonl", {"prompt": "x"})), local_counter(tiny_model), None)
    assert other.mean != planned.mean  # in memory only the last file is kept
    assert fitted(workload(text), local_counter(tiny_model), None) == planned
    kept.write_bytes(b"torn")
    fitted(workload(str(tmp_path / "o.jsonl")), local_counter(tiny_model), None)
    assert fitted(workload(text), local_counter(tiny_model), None) == planned
