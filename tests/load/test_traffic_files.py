"""Traffic files that nobody here wrote: every form in two spellings or more."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.load.traffic_files import (
    ANSWER,
    CALL,
    CONTAINERS,
    QUESTION,
    REPLY,
    TOOL,
    USER,
    WHOLE_CONTAINERS,
    batch_line,
    conversation,
    json_lines,
    lines,
    reading,
)
from tuner.errors import UsageError
from tuner.load.fit import fitted, local_counter
from tuner.load.prompts import SEARCH_TRACE, FileCounter, Prompts, Request
from tuner.load.reading import LeftOut, WhyLeftOut, reading_line
from tuner.load.stream import Target, encode
from tuner.load.workload import workload


def sent(text: str, model: str, count: int = 1) -> list[Request]:
    return Prompts.for_model(workload(text), model, 0, None).requests(SEARCH_TRACE, count)


def body(request: Request) -> dict[str, object]:
    """The JSON that a server gets."""
    found = json.loads(encode(Target("http://127.0.0.1:1", "m"), request).partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found


def tokens(model: str, text: str) -> int:
    return FileCounter(Path(model) / "tokenizer.json").count([text])[0]


# ── containers


@pytest.mark.parametrize("written", [*CONTAINERS, *WHOLE_CONTAINERS])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".data"])
def test_a_container_is_told_by_its_content(
    written: Callable[[Sequence[object]], bytes], suffix: str, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{QUESTION} {i}", "output_length": i + 3} for i in range(30)]
    path = tmp_path / f"traffic{suffix}"
    path.write_bytes(written(rows))
    found = reading(str(path))
    assert (found.rows, found.requests, found.left_out) == (30, 30, ())
    assert (found.output.low, found.output.p50, found.output.high) == (3, 17, 32)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_at_a_line_feed_alone(mark: str, tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "t.jsonl", {"prompt": f"a{mark}b", "max_tokens": 3})
    assert sent(text, tiny_model)[0].messages == (("user", f"a{mark}b"),)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{oops}", WhyLeftOut.NOT_JSON),
        (b'{"prompt": "a", "max_tokens": 5}}', WhyLeftOut.NOT_JSON),
        (b'{"prompt": "\xff\xfe", "max_tokens": 5}', WhyLeftOut.NOT_TEXT),
        (b'{"prompt": "\\ud800", "max_tokens": 5}', WhyLeftOut.NOT_TEXT),
        (b'{"messages": [{"role": "user", "content": "a", "name": "\\udfff"}]}', WhyLeftOut.NOT_TEXT),
        (b"[" * 100_000, WhyLeftOut.NOT_JSON),
        (b'"prompt"', WhyLeftOut.NOT_AN_OBJECT),
        (b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", WhyLeftOut.NO_OUTPUT),
        (b'{"prompt": "a", "temperature": Infinity}', WhyLeftOut.BAD_FIELD),
    ],
)
@pytest.mark.parametrize("place", [1, 2, 5])
def test_a_bad_line_costs_itself_alone_and_its_number_is_told(
    bad: bytes, why: WhyLeftOut, place: int, tmp_path: Path
) -> None:
    good = json_lines([{"prompt": QUESTION}]).strip()
    whole = [good] * 6
    whole.insert(place - 1, bad)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(whole))
    assert reading(str(path)).left_out == (LeftOut(why, 1, f"line {place}"),)


@pytest.mark.parametrize("written", CONTAINERS)
def test_a_file_that_was_cut_off_keeps_what_is_whole(
    written: Callable[[Sequence[object]], bytes], tmp_path: Path
) -> None:
    data = written([{"prompt": f"{QUESTION} {i}", "id": str(i * 7919)} for i in range(400)])
    path = tmp_path / "t.json"
    path.write_bytes(data[: len(data) * 3 // 4])
    if written.__name__ in ("bzipped", "object_around"):  # one block, or one value: nothing is whole
        with pytest.raises(UsageError):
            workload(str(path))
        return
    found = reading(str(path))
    assert 200 <= found.requests < 400
    assert [row.why for row in found.left_out] == [WhyLeftOut.CUT]


def test_a_broken_entry_of_an_array_costs_itself_alone(tmp_path: Path) -> None:
    entries = [json.dumps({"id": i, "conversations": conversation()}, indent=1) for i in range(9)]
    entries[4] = entries[4].replace('"value":', '"value"', 1)
    path = tmp_path / "t.json"
    path.write_text("[" + ",\n".join(entries) + "]")
    found = reading(str(path))
    assert found.requests == 8
    (left,) = found.left_out
    assert left.why is WhyLeftOut.NOT_JSON and left.first == f"entry 5, line {4 * entries[0].count(chr(10)) + 5}"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "has no request"),
        (gzip.compress(b"x" * 257 + b"ustar" + bytes(90)), "a tar archive"),
        (gzip.compress(gzip.compress(b"{}")), "packed inside of a packed file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b'id,prompt\n1,"hello\n2,b\n', "line 2: a quote begins here"),
        (b"PAR1" + bytes(60), "a parquet file that cannot be read"),
        (b"\x1f\x8b" + bytes(60), "has no request"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n", "a trace of lengths"),
        (
            b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n",
            "a trace of lengths",
        ),
        (b"timestamp,input_length,output_length\n0,10,5\n", "a trace of lengths"),
        (b"id,name\n1,hello\n", "1 with neither prompt nor messages"),
        (json_lines([{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}]), "a trace of"),
        (json_lines([{"timestamp": 1, "num_prefill_tokens": 20, "num_decode_tokens": 5}] * 3), "a trace of lengths"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        workload(str(path))
    assert says in caught.value.message and "\n" not in caught.value.message and caught.value.hint


CELLS = """id;Prompt;messages;max_tokens;temperature;created_at
1;"What; ""exactly""
is it?";;5.0;0.5;2026-01-01 10:00:00
2;;"[{""role"": ""user"", ""content"": ""Hi?""}]";6;;2026-01-01 10:00:01

3;too;many;;;;cells
4;"a" b;;;;
5;Why?;;7;;2026-01-01 10:00:03
"""


def test_a_table_has_a_request_in_each_row_whose_cells_fit(tmp_path: Path, tiny_model: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CELLS, newline="\r\n")
    found = reading(str(path))
    assert (found.rows, found.left_out) == (5, (LeftOut(WhyLeftOut.NO_ROW, 2, "line 6"),))
    first, second, third = sent(str(path), tiny_model, 3)
    assert [request.max_tokens for request in (first, second, third)] == [5, 6, 7]
    assert first.messages[0][1].replace("\r", "") == 'What; "exactly"\nis it?'
    assert body(first)["temperature"] == 0.5
    assert (second.messages[0][1], third.messages[0][1], third.arrival_s) == ("Hi?", "Why?", 3.0)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        workload(str(tmp_path / "traffic\udcff.jsonl"))


# ── what is sent


SENT: list[tuple[str, object, list[object]]] = [
    ("sharegpt", {"conversations": conversation()}, [USER]),
    ("sharegpt-bing", {"conversations": conversation(teller="bing")}, [USER]),
    ("sharegpt-chatgpt", {"id": "x", "conversations": conversation("user", "chatgpt", 5)}, [USER]),
    ("sharegpt-unknown-later", {"conversations": [*conversation(), {"from": "alien", "value": "?"}, None]}, [USER]),
    ("llama-factory", {"conversations": conversation(), "system": "Be brief."},
     [{"role": "system", "content": "Be brief."}, USER]),
    ("lmsys", {"conversation_id": "1", "model": "vicuna", "conversation": [USER, REPLY]}, [USER]),
    ("wildchat", {"conversation": [{**USER, "toxic": False, "hashed_ip": "x"}, REPLY]}, [USER]),
    ("mt-bench", {"question_id": 81, "turns": [QUESTION, "And the other one?"]}, [USER]),
    ("turns-of-texts", {"turns": [{"text": QUESTION}, {"text": "And then?"}]}, [USER]),
    ("aiperf-text", {"text": QUESTION, "output_length": 9}, [USER]),
    ("openorca", {"system_prompt": "Be brief.", "question": QUESTION, "response": ANSWER},
     [{"role": "system", "content": "Be brief."}, USER]),
    ("alpaca", {"instruction": "Translate:", "input": "fjord", "output": ANSWER},
     [{"role": "user", "content": "Translate:\nfjord"}]),
    ("completions", {"url": "/v1/completions", "body": {"model": "m", "prompt": [QUESTION], "echo": True}}, [USER]),
    ("batch", batch_line(), [USER]),
    ("evalscope", {"body": {"messages": [USER]}, "completion_tokens": 33}, [USER]),
    ("body-as-text", {"body": json.dumps({"messages": [USER]})}, [USER]),
    ("request-body", {"request": {"method": "POST", "body": {"messages": [USER]}}, "response": {}}, [USER]),
    ("langfuse", {"input": [USER], "output": REPLY, "startTime": "2026-11-25T08:00:00.000Z"}, [USER]),
    ("langfuse-object", {"input": {"messages": [USER]}, "output": {"content": ANSWER}}, [USER]),
    ("langfuse-text", {"input": QUESTION, "output": ANSWER}, [USER]),
    ("litellm", {"messages": json.dumps([USER]), "response": {"choices": [{"message": REPLY}]}}, [USER]),
    ("anthropic", {"system": [{"type": "text", "text": "Be brief."}], "messages": [USER]},
     [{"role": "system", "content": "Be brief."}, USER]),
    ("parts",
     {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
     [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
    ("responses-parts", {"body": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}},
     [{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
    ("developer", {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
     [{"role": "developer", "content": "Be brief."}, USER]),
    ("tool-turns", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                                 {"role": "tool", "tool_call_id": "c1", "content": "high"}]},
     [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
      {"role": "tool", "content": "high", "tool_call_id": "c1"}]),
    ("function-turns", {"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
                                     {"role": "function", "name": "f", "content": "high"}]},
     [USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
      {"role": "function", "content": "high", "name": "f"}]),
    ("empty-system", {"messages": [{"role": "system", "content": ""}, USER]},
     [{"role": "system", "content": ""}, USER]),
    ("names-in-capitals", {"Messages": [USER], "Response": REPLY}, [USER]),
    ("object-as-text", json.dumps({"messages": [USER]}), [USER]),
    ("litellm-spend", {"messages": {}, "proxy_server_request": {"messages": [USER]}, "response": {}}, [USER]),
    ("openpipe", {"reqPayload": {"messages": [USER]}, "respPayload": {"choices": [{"message": REPLY}]}}, [USER]),
    ("langsmith", {"inputs": {"messages": [USER]}, "outputs": {"choices": [{"message": REPLY}]}}, [USER]),
    ("langchain", {"messages": [{"type": "human", "data": {"content": QUESTION}}]}, [USER]),
    ("dataset-server", {"row_idx": 1, "row": {"prompt": QUESTION}, "truncated_cells": []}, [USER]),
    ("unknown-body", {"log": {"http": {"sent": json.dumps({"messages": [USER, REPLY, USER]})}}}, [USER, REPLY, USER]),
    ("unknown-conversation", {"id": 1, "dialog": [USER, REPLY, USER, REPLY], "output": [USER]}, [USER]),
    ("gemini", {"systemInstruction": {"parts": [{"text": "Be brief."}]},
                "contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]},
                             {"role": "user", "parts": [{"text": "c"}]}]},
     [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "a"}]},
      {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
      {"role": "user", "content": [{"type": "text", "text": "c"}]}]),
    ("system-part", {"system": {"type": "text", "text": "Be brief."}, "messages": [USER]},
     [{"role": "system", "content": "Be brief."}, USER]),
    ("dolly", {"instruction": "When was it?", "context": "It was in May.", "response": "May"},
     [{"role": "user", "content": "It was in May.\nWhen was it?"}]),
    ("documents", {"question": "When?", "context": ["In May.", "Or June."]},
     [{"role": "user", "content": "In May.\nOr June.\nWhen?"}]),
    ("history-of-pairs", {"query": QUESTION, "history": [["a", "b"]], "response": ANSWER},
     [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, USER]),
    ("history-of-texts", {"query": QUESTION, "history": ["a", "b"]},
     [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, USER]),
    ("history-of-turns", {"instruction": QUESTION, "chat_history": [USER, REPLY], "output": ANSWER},
     [USER, REPLY, USER]),
    ("history-as-text", {"inputs": {"question": QUESTION, "chat_history": "Human: a", "context": ["b", "c"]}},
     [{"role": "user", "content": f"Human: a\nb\nc\n{QUESTION}"}]),
    ("prompt-of-turns", {"prompt": json.dumps([USER, REPLY, USER]), "max_tokens": 5}, [USER, REPLY, USER]),
    ("anthropic-tools",
     {"messages": [USER, {"role": "assistant", "content": [
         {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
         {"type": "tool_use", "id": "c1", "name": "tide", "input": {}}]},
         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "high"}]}]},
     [USER, {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": [CALL]},
      {"role": "tool", "content": "high", "tool_call_id": "c1"}]),
    ("responses-items",
     {"input": [USER, {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "c1", "name": "tide", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "high"}]},
     [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
      {"role": "tool", "content": "high", "tool_call_id": "c1"}]),
    ("goes-on", {"messages": [USER, REPLY], "continue_final_message": True}, [USER, REPLY]),
    ("answer-at-the-end", {"messages": [USER, REPLY, USER, REPLY]}, [USER, REPLY, USER]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), [case[1:] for case in SENT], ids=[case[0] for case in SENT])
def test_the_turns_of_a_row_are_sent_as_they_are(
    row: object, messages: list[object], tmp_path: Path, tiny_model: str
) -> None:
    assert body(sent(lines(tmp_path / "t.jsonl", row), tiny_model)[0])["messages"] == messages


def test_a_row_may_be_a_list_of_turns(tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "t.jsonl", [USER, REPLY], [USER, REPLY, USER])
    assert sorted(len(request.messages) for request in sent(text, tiny_model, 2)) == [1, 3]


FIELDS: dict[str, object] = {
    "tools": [TOOL], "tool_choice": "auto", "response_format": {"type": "json_object"}, "stop": ["\n\n"],
    "temperature": 0.3, "top_p": 0.9, "n": 2, "seed": 7, "top_k": 20, "logit_bias": {"5": -1}, "user": "u",
    "chat_template_kwargs": {"enable_thinking": False}, "presence_penalty": 0.1, "parallel_tool_calls": False,
}  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_request_is_sent_as_it_is(field: str, wrapped: bool, tmp_path: Path, tiny_model: str) -> None:
    own = {field: FIELDS[field], **({"tools": [TOOL]} if field in ("tool_choice", "parallel_tool_calls") else {})}
    row = batch_line(**own) if wrapped else {"messages": [USER], "id": "x", "model": "gpt", **own}
    request = body(sent(lines(tmp_path / "t.jsonl", row), tiny_model)[0])
    assert request[field] == FIELDS[field]
    assert request["model"] == "m" and "id" not in request and request["stream"] is True


def test_a_field_that_nobody_knows_is_sent_of_a_whole_body_alone(tmp_path: Path, tiny_model: str) -> None:
    whole = body(sent(lines(tmp_path / "a.jsonl", batch_line(service_tier="flex", stream=False)), tiny_model)[0])
    assert whole["service_tier"] == "flex" and whole["stream"] is True
    data = {"prompt": QUESTION, "service_tier": "flex", "user": {"id": 3}, "seed": "alpaca", "n": "two"}
    flat = body(sent(lines(tmp_path / "b.jsonl", data), tiny_model)[0])
    assert not {"service_tier", "user", "seed", "n"} & flat.keys()


def test_functions_are_sent_as_tools(tmp_path: Path, tiny_model: str) -> None:
    old = {"messages": [USER], "functions": [TOOL["function"]], "function_call": {"name": "tide"}}
    for row in (old, {"body": old}):
        request = body(sent(lines(tmp_path / "t.jsonl", row), tiny_model)[0])
        assert request["tools"] == [TOOL] and not {"functions", "function_call"} & request.keys()
        assert request["tool_choice"] == {"type": "function", "function": {"name": "tide"}}


@pytest.mark.parametrize(
    "tool",
    [
        TOOL,
        {"name": "tide", "input_schema": {"type": "object", "properties": {}}},
        {"name": "tide", "parameters": {"type": "object", "properties": {}}},
    ],
)
def test_tools_are_counted_and_sent_in_the_chat_apis_form(
    tool: dict[str, object], tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"messages": [USER], "tools": [tool]}, {"messages": [USER], "tools": []})
    with_tool, without = sorted(sent(text, tiny_model, 2), key=lambda request: -request.prompt_tokens)
    assert body(with_tool)["tools"] == [TOOL] and "tools" not in body(without)
    assert with_tool.prompt_tokens == tokens(tiny_model, QUESTION + json.dumps(TOOL))
    assert without.prompt_tokens == tokens(tiny_model, QUESTION)
    assert "1 with tools" in reading_line(reading(text))


@pytest.mark.parametrize(
    ("fields", "natural"),
    [
        ({"stop": ["x"]}, True),
        ({"stop_sequences": ["x"]}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"structured_outputs": {"choice": ["a"]}}, True),
        ({"tools": [TOOL], "tool_choice": "required"}, True),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"tools": [TOOL], "tool_choice": "auto"}, False),
        ({"stop": []}, False),
    ],
)
def test_an_answer_that_its_request_may_end_is_not_forced_on(
    fields: dict[str, object], natural: bool, tmp_path: Path, tiny_model: str
) -> None:
    (request,) = sent(lines(tmp_path / "t.jsonl", batch_line(**fields)), tiny_model)
    assert request.natural_stop is natural
    assert body(request).get("ignore_eos", False) is not natural


def test_salts_of_the_file_stay_apart_and_are_new_for_each_level(tmp_path: Path, tiny_model: str) -> None:
    rows = [{"prompt": QUESTION, "cache_salt": salt, "timestamp": at} for at, salt in enumerate("aab")]
    prompts = Prompts.for_model(workload(lines(tmp_path / "t.jsonl", *rows)), tiny_model, 0, None)
    first, again, other = (request.extra_body["cache_salt"] for request in prompts.requests(SEARCH_TRACE, 3))
    assert first == again != other
    assert prompts.requests(SEARCH_TRACE, 1, repeat=1)[0].extra_body["cache_salt"] not in (first, other)


# ── what is left out


LEFT_OUT: list[tuple[WhyLeftOut, dict[str, object]]] = [
    (WhyLeftOut.EMPTY, {"conversations": []}),
    (WhyLeftOut.EMPTY, {"messages": []}),
    (WhyLeftOut.EMPTY, {"prompt": ""}),
    (WhyLeftOut.NO_QUESTION, {"conversations": [{"from": "gpt", "value": ANSWER}, *conversation()]}),
    (WhyLeftOut.NO_QUESTION, {"messages": [REPLY]}),
    (WhyLeftOut.UNKNOWN_ROLE, {"conversations": conversation(asker="alien")}),
    (WhyLeftOut.UNKNOWN_ROLE, {"messages": [USER, {"role": 7, "content": "x"}, USER]}),
    (WhyLeftOut.NO_TEXT_TURN, {"conversations": [None, *conversation()]}),
    (WhyLeftOut.NO_TEXT_TURN, {"messages": [{"role": "user", "content": None}]}),
    (WhyLeftOut.NO_TEXT_TURN, {"messages": [{"role": "user", "content": 5}]}),
    (WhyLeftOut.MEDIA, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (WhyLeftOut.MEDIA, {"body": {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}}),
    (WhyLeftOut.MEDIA, {"image": "000.jpg", "conversations": conversation()}),
    (WhyLeftOut.UNKNOWN_PART, {"messages": [{"role": "user", "content": [{"type": "chart", "content": "x"}]}]}),
    (WhyLeftOut.TOKEN_IDS, {"prompt": [1, 2, 3]}),
    (WhyLeftOut.SEVERAL_PROMPTS, {"body": {"prompt": ["a", "b"]}}),
    (WhyLeftOut.OTHER_API, {"url": "/v1/embeddings", "body": {"input": "x"}}),
    (WhyLeftOut.OTHER_API, {"call_type": "aembedding", "input": ["x"]}),
    (WhyLeftOut.BAD_FIELD, {"messages": [USER], "tools": {"a": 1}}),
    (WhyLeftOut.BAD_FIELD, {"body": {"messages": [USER], "response_format": "json"}}),
    (WhyLeftOut.BAD_FIELD, {"messages": [USER], "tools": [{"type": "web_search"}]}),
    (WhyLeftOut.BAD_FIELD, {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "tool", "name": "moon"}}),
    (WhyLeftOut.BAD_FIELD, {"messages": [USER], "tools": [TOOL], "tool_choice": "moon"}),
    (WhyLeftOut.FAILED, {"messages": [USER], "response": {"status_code": 500, "body": "Internal Server Error"}}),
    (WhyLeftOut.FAILED, {"messages": [USER], "max_tokens": 64, "response": {"error": {"message": "overloaded"}}}),
    (WhyLeftOut.FAILED, {"prompt": QUESTION, "status": "failure", "response": ""}),
    (WhyLeftOut.FAILED, {"prompt": QUESTION, "error": "timeout", "response": None}),
    (WhyLeftOut.NO_QUESTION, {"message_id": "2", "role": "assistant", "text": ANSWER}),
    (WhyLeftOut.FAILED, {"prompt": QUESTION, "statusCode": "429"}),
    (WhyLeftOut.NO_OUTPUT, {"prompt": QUESTION, "max_tokens": 0}),
    (WhyLeftOut.NO_OUTPUT, {"prompt": QUESTION, "usage": {"completion_tokens": 0}, "max_tokens": 64}),
    (WhyLeftOut.NO_OUTPUT, {"prompt": QUESTION, "output_length": -3}),
    (WhyLeftOut.NO_OUTPUT, {"conversations": [*conversation(count=1), {"from": "gpt", "value": ""}]}),
    (WhyLeftOut.LENGTHS_ONLY, {"input_length": 5, "output_length": 5}),
    (WhyLeftOut.NO_REQUEST, {"id": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("why", "row"), LEFT_OUT, ids=[f"{why}-{i}" for i, (why, _) in enumerate(LEFT_OUT)])
def test_a_row_that_cannot_be_sent_is_left_out_and_counted(
    why: WhyLeftOut, row: dict[str, object], tmp_path: Path, tiny_model: str
) -> None:
    text = lines(tmp_path / "t.jsonl", {"prompt": "one"}, row, {"prompt": "two"}, row)
    found = reading(text)
    assert (found.rows, found.requests, found.left_out) == (4, 2, (LeftOut(why, 2, "line 2"),))
    assert "left out 2: 2 " in reading_line(found) and "(first: line 2)" in reading_line(found)
    assert sorted(r.messages[0][1] for r in sent(text, tiny_model, 2)) == ["one", "two"]


# ── lengths


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


# ── any JSON in any place

words = st.text(max_size=8)
any_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
WHOLE_ROWS = [row for _, row, _ in SENT] + [row for _, row in LEFT_OUT] + [batch_line(**FIELDS)]


def replaced(value: object, place: int, new: object) -> tuple[object, int]:
    """The value with its place-th part replaced, and how many parts are left to count."""
    if place == 0:
        return new, -1
    place -= 1
    if isinstance(value, dict):
        made: dict[str, object] = {}
        for key, part in value.items():
            made[key], place = replaced(part, place, new) if place >= 0 else (part, place)
        return made, place
    if isinstance(value, list):
        parts = []
        for part in value:
            one, place = replaced(part, place, new) if place >= 0 else (part, place)
            parts.append(one)
        return parts, place
    return value, place


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(row=st.sampled_from(WHOLE_ROWS), place=st.integers(1, 14), new=any_json)
def test_any_json_in_any_place_is_sent_or_left_out(
    row: dict[str, object], place: int, new: object, tmp_path: Path, tiny_model: str
) -> None:
    odd, _ = replaced(row, place, new)
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "good"}) + "\n" + json.dumps(odd) + "\n")
    found = reading(str(path))
    assert found.requests + sum(left.count for left in found.left_out) == 2
    for request in sent(str(path), tiny_model, found.requests):
        assert request.prompt_tokens >= 0 and request.max_tokens >= 1
        assert body(request)["messages"]
    assert "\n" not in reading_line(found)
