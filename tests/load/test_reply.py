"""Bytes and arrival times in, numbers out. Every number is known in advance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.scripted_server import DONE, HEAD, LAST_CHUNK, chunked, delta, event, finish, role, token, usage
from tuner.load.reply import is_complete, read_reply

MS = 1_000_000


def packets(*at_ms: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    return [(ms * MS, data) for ms, data in at_ms]


def test_the_role_chunk_is_not_the_first_token() -> None:
    reply = read_reply(
        packets(
            (10, HEAD + chunked(role())),
            (30, chunked(token("a"))),
            (40, chunked(finish("b"))),
            (41, chunked(usage(7, 2)) + chunked(DONE) + LAST_CHUNK),
        )
    )
    assert list(reply.token_ns) == [30 * MS, 40 * MS]
    assert (reply.status, reply.prompt_tokens, reply.output_tokens) == (200, 7, 2)
    assert (reply.finish_reason, reply.error, reply.done) == ("length", None, True)


def test_a_token_without_text_counts_and_the_usage_chunk_does_not() -> None:
    reply = read_reply(packets((1, HEAD + chunked(role())), (2, chunked(token(""))), (3, chunked(usage(1, 1) + DONE))))
    assert list(reply.token_ns) == [2 * MS]


@pytest.mark.parametrize("name", ["content", "reasoning", "reasoning_content"])
def test_a_thought_is_a_token_under_every_name_vllm_gave_it(name: str) -> None:
    reply = read_reply(packets((1, HEAD + chunked(role())), (5, chunked(event(delta(**{name: "hm"}))))))
    assert list(reply.token_ns) == [5 * MS]


def test_a_tool_call_is_a_token() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": ""}}
    reply = read_reply(packets((1, HEAD + chunked(role())), (5, chunked(event(delta(tool_calls=[call]))))))
    assert list(reply.token_ns) == [5 * MS]


def test_several_events_in_one_packet_arrive_together() -> None:
    reply = read_reply(
        packets((1, HEAD + chunked(role())), (9, chunked(token()) + chunked(token()) + chunked(token())))
    )
    assert list(reply.token_ns) == [9 * MS] * 3


def test_several_events_in_one_http_chunk_are_kept_apart() -> None:
    reply = read_reply(packets((1, HEAD + chunked(role() + token() + token())), (2, chunked(DONE) + LAST_CHUNK)))
    assert list(reply.token_ns) == [1 * MS] * 2
    assert reply.done


def test_an_event_split_over_packets_arrives_with_its_last_byte() -> None:
    whole = chunked(token("split"))
    cut = whole.index(b"split") + 2
    reply = read_reply(packets((1, HEAD + chunked(role())), (5, whole[:cut]), (8, whole[cut:])))
    assert list(reply.token_ns) == [8 * MS]


def test_an_event_split_over_http_chunks_is_one_event() -> None:
    one = token("split")
    reply = read_reply(packets((1, HEAD + chunked(role())), (5, chunked(one[:20])), (8, chunked(one[20:]))))
    assert list(reply.token_ns) == [8 * MS]


def test_text_that_looks_like_the_protocol_is_only_text() -> None:
    nasty = 'data: {"error": "no"}\n\ndata: [DONE]\r\n0\r\n\r\n"finish_reason":"stop" "role" "usage"'
    reply = read_reply(packets((1, HEAD + chunked(role())), (2, chunked(token("a"))), (3, chunked(token(nasty)))))
    assert list(reply.token_ns) == [2 * MS, 3 * MS]
    assert (reply.error, reply.done, reply.finish_reason) == (None, False, None)


def test_comments_that_keep_the_stream_alive_are_skipped() -> None:
    reply = read_reply(packets((1, HEAD + chunked(b": ping\n\n")), (2, chunked(role())), (3, chunked(token()))))
    assert list(reply.token_ns) == [3 * MS]


def test_an_error_inside_a_200_is_an_error() -> None:
    broken = event({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
    reply = read_reply(packets((1, HEAD + chunked(role()) + chunked(token())), (2, chunked(broken) + chunked(DONE))))
    assert reply.error == "engine died"
    assert list(reply.token_ns) == [1 * MS]


def test_an_error_before_the_stream_keeps_its_status_and_words() -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'
    raw = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    assert is_complete(raw) and not is_complete(raw[:-1])
    reply = read_reply([(1, raw)])
    assert (reply.status, reply.error, reply.done) == (400, "too long", False)


def test_a_last_event_without_its_empty_line_counts() -> None:
    assert read_reply(packets((1, HEAD + chunked(token() + b"data: [DONE]\n")))).done
    assert read_reply(packets((1, HEAD + chunked(token() + b"data: [DONE]")))).done


def test_half_a_stream_is_not_done() -> None:
    reply = read_reply(packets((1, HEAD + chunked(role())), (2, chunked(token())), (3, chunked(token())[:9])))
    assert list(reply.token_ns) == [2 * MS]
    assert not reply.done and reply.output_tokens is None


def test_cached_tokens_come_from_the_details() -> None:
    used = {"prompt_tokens": 64, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 48}}
    reply = read_reply(packets((1, HEAD + chunked(token()) + chunked(event({"choices": [], "usage": used})))))
    assert reply.cached_tokens == 48


@pytest.mark.parametrize("raw", [b"", b"garbage", b"HTTP/1.1 200", b"HTTP/1.1 abc\r\n\r\n", HEAD, HEAD + b"zz\r\n"])
def test_bytes_that_are_no_answer_give_no_numbers(raw: bytes) -> None:
    reply = read_reply([(1, raw)])
    assert not reply.token_ns and not reply.done and reply.output_tokens is None


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b": ping\n\n", b"event: message\n", b"retry: 3000\nid: 7\n"]),
)
def test_however_the_bytes_are_cut_the_numbers_stay_the_same(
    cuts: list[int], tokens: int, line_end: bytes, before: bytes
) -> None:
    def written(event: bytes) -> bytes:
        return chunked((before + event).replace(b"\n", line_end))

    whole = HEAD + written(role())
    ends = []
    for index in range(tokens):
        whole += written(token(f"word {index}"))
        ends.append(len(whole) - 3)  # the event's last byte: the HTTP chunk's own CRLF follows
    whole += written(usage(3, tokens)) + written(DONE) + LAST_CHUNK
    cut, position, turn = [], 0, 0
    while position < len(whole):
        size = cuts[turn % len(cuts)]
        cut.append((turn * MS, whole[position : position + size]))
        position, turn = position + size, turn + 1
    arrived = [at for at, data in cut for _ in data]  # independent path: one arrival time for each byte
    reply = read_reply(cut)
    assert list(reply.token_ns) == [arrived[end] for end in ends]
    assert (reply.output_tokens, reply.done) == (tokens, True)
    assert is_complete(whole) and not is_complete(whole[:-1])
