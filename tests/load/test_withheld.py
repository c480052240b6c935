from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.load.prompts import Request
from tuner.load.stream import Capture, RequestSample, sample
from tuner.load.withheld import withheld

ENGLISH = 'My sister Ada Quill owes 4,120 dollars\nto the "Blue Heron" bank; her PIN isn\'t 7731.'
CHINESE = "张伟的身份证号码是四四零一零六，住在“珠江新城”三号楼。"
LATEX = "Prove that \\alpha\\beta = \\frac{x}{7} for the patient Ursula K. of ward nine \U0001f600"
PROMPTS = [ENGLISH, CHINESE, LATEX, f"{ENGLISH} {CHINESE}" * 9, "PIN 7731"]


def request(text: str, form: str = "plain") -> Request:
    if form == "plain":
        return Request((("user", text),), 5, 5, {"ignore_eos": True})
    if form == "parts":
        return Request((), 5, 5, {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]})
    tool = {"type": "function", "function": {"name": "f", "description": text}}
    return Request((("user", "Call it."),), 5, 5, {"tools": [tool]})


ECHOES: dict[str, Callable[[str], str]] = {
    "pydantic": lambda text: str({"type": "string_type", "loc": "body.messages", "msg": "bad", "input": text[:200]}),
    "pydantic-2": lambda text: f"1 validation error\nbody [type=x, input_value={text!r}, input_type=str]",
    "pydantic-cut": lambda text: (
        f"input_value={ {'role': 'user', 'content': text}!r:.60}...{text[-24:]!r}, input_type=dict"
    ),
    "detail": lambda text: str([{"loc": ["body", "messages", 0], "input": {"role": "user", "content": text}}]),
    "body": lambda text: f"could not route the request {json.dumps({'messages': [{'content': text}]})}",
    "body-escaped-twice": lambda text: json.dumps(json.dumps({"content": text})),
    "repr": lambda text: f"unexpected prompt {text!r} at character 5",
    "plain": lambda text: f"refused by policy: {text}",
    "cut": lambda text: f"the template failed at: {text[3:90]}...",
    "one-line": lambda text: f"invalid: {' '.join(text.split())}",
}


def leaks(words: str, text: str) -> list[str]:
    """List what stands in both: parts of eight characters, or of four in Chinese."""
    size = 4 if text == CHINESE else 8
    flat = "".join(char for char in text if char.isalnum())
    seen = "".join(char for char in words if char.isalnum())
    return [flat[at : at + size] for at in range(len(flat) - size + 1) if flat[at : at + size] in seen]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize(
    ("text", "form"),
    [*itertools.product(PROMPTS[:-1], ["plain", "parts", "tool"]), (PROMPTS[-1], "plain"), (PROMPTS[-1], "parts")],
)
def test_words_of_a_server_keep_nothing_of_the_prompt(text: str, echo: str, form: str) -> None:
    assert leaks(withheld(ECHOES[echo](text), request(text, form)), text) == []


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 output tokens.",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "Unrecognized request argument supplied: chat_template_kwargs",
        "The model `x` does not exist.",
    ],
)
def test_other_words_of_a_server_stay(words: str) -> None:
    assert withheld(words, request(ENGLISH)) == words


@given(st.text(min_size=24, max_size=400), st.integers(0, 30), st.integers(0, 30), st.sampled_from(sorted(ECHOES)))
def test_no_text_and_no_quote_of_it_gets_through(text: str, before: int, behind: int, echo: str) -> None:
    quoted = text[before : len(text) - behind]
    said = withheld(ECHOES[echo](quoted), request(text))
    flat = " ".join(quoted.replace("\\", "").split())
    assert len(flat.encode()) < 16 or flat not in said


async def failed(text: str) -> RequestSample:
    """Sample a request whose server answers 400 and quotes it."""
    body = json.dumps({"error": {"message": f"temperature must not be hot; got {text}"}}).encode()
    capture = Capture(0, 0)
    capture.packets.append((1, b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)))
    return sample(capture, request(text))


def test_a_sample_keeps_a_servers_words_without_the_prompt() -> None:
    assert asyncio.run(failed(ENGLISH)).error == "temperature must not be hot; got …"
