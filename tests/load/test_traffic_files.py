"""Traffic files that nobody here wrote: what is sent of each row, in two spellings or more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.load.traffic_files import (
    ANSWER,
    CALL,
    QUESTION,
    REPLY,
    TOOL,
    USER,
    batch_line,
    body,
    conversation,
    lines,
    reading,
    sent,
    tokens,
)
from tuner.load.prompts import SEARCH_TRACE, Prompts
from tuner.load.reading import LeftOut, WhyLeftOut, reading_line
from tuner.load.workload import workload

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
