"""Streams of completions: tokens are told apart in time where the server allows it, and nowhere guessed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.measurement.streaming import LONGEST_LINE, CompletionStream


def _event(text: str = "", *, finish: str | None = None, usage: int | None = None, choices: bool = True) -> bytes:
    body: dict[str, Any] = {"choices": [{"index": 0, "text": text, "finish_reason": finish}] if choices else []}
    if usage is not None:
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": usage}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def _read(*pieces: bytes) -> CompletionStream:
    """Return the stream of pieces that came at 1, 2, 3... seconds."""
    stream = CompletionStream()
    for number, piece in enumerate(pieces, start=1):
        stream.feed(piece, float(number))
    return stream


def test_one_token_per_chunk_with_continuous_usage() -> None:
    """What vLLM sends when it is asked for continuous usage."""
    stream = _read(
        _event(" a", usage=1),
        _event(" b", usage=2),
        _event(" c", usage=3, finish="length"),
        _event(usage=3, choices=False) + DONE,
    )
    assert stream.outcome() == ("ok", None)
    assert stream.record(0.5) == {
        "generated_tokens": 3,
        "ttft_s": 0.5,
        "itl_s": [1.0, 1.0],
        "chunk_tokens": [1, 1, 1],
        "counting": "continuous",
        "counted_prompt_tokens": 7,
    }


def test_several_tokens_in_a_chunk() -> None:
    """Those of one chunk came together; also tokens whose text is held back count when they are made."""
    stream = _read(_event(" a b", usage=2), _event("", usage=3), _event(" c d e", usage=6, finish="length") + DONE)
    record = stream.record(0.0)
    assert record["chunk_tokens"] == [2, 1, 3]
    assert record["itl_s"] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert record["generated_tokens"] == len(record["itl_s"]) + 1 == 6


def test_usage_at_the_end_confirms_a_token_per_chunk() -> None:
    """What other servers send."""
    stream = _read(_event(" a"), _event(" b", finish="stop"), _event(usage=2, choices=False), DONE)
    record = stream.record(0.0)
    assert (record["counting"], record["itl_s"], record["counted_prompt_tokens"]) == ("chunks", [1.0], 7)


def test_usage_in_the_last_chunk_confirms_it_too() -> None:
    """It is the total, not the first of a continuous count."""
    record = _read(_event(" a"), _event(" b", finish="stop", usage=2), DONE).record(0.0)
    assert (record["counting"], record["chunk_tokens"]) == ("chunks", [1, 1])


def test_usage_that_differs_makes_the_times_between_tokens_unknown() -> None:
    """The number of tokens is the server's, and nothing is made up about when they came."""
    stream = _read(_event(" a"), _event(" b c d", finish="stop"), _event(usage=4, choices=False), DONE)
    record = stream.record(0.0)
    assert (record["counting"], record["generated_tokens"], record["itl_s"]) == ("mismatch", 4, None)
    assert record["ttft_s"] == 1.0


def test_without_usage_a_chunk_is_a_token() -> None:
    """And the record says that this was assumed; chat servers put the text elsewhere."""
    chat = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}\n\n'
    record = _read(_event(), _event(" a"), chat, _event(finish="stop"), DONE).record(0.0)
    assert (record["counting"], record["generated_tokens"], record["ttft_s"]) == ("assumed", 2, 2.0)


def test_a_completion_of_one_chunk() -> None:
    """All of its tokens came in it."""
    record = _read(_event(" a b", usage=2, finish="length") + DONE).record(0.0)
    assert (record["generated_tokens"], record["itl_s"], record["chunk_tokens"]) == (2, [0.0], [2])


def test_tokens_without_text_and_without_continuous_usage() -> None:
    """Nobody saw them come."""
    record = _read(_event(""), _event("", finish="stop"), _event(usage=2, choices=False), DONE).record(0.0)
    assert (record["counting"], record["generated_tokens"], record["itl_s"]) == ("mismatch", 2, None)


def test_comments_and_other_fields_are_no_data() -> None:
    """Servers keep connections alive with comments."""
    stream = _read(b": ping\n\nevent: message\nid: 3\n", _event(" a", usage=1, finish="stop").replace(b"\n", b"\r\n"))
    assert stream.outcome() == ("ok", None)


@pytest.mark.parametrize(
    ("pieces", "status", "message"),
    [
        ((_event(" a", usage=1),), "disconnected", "after 1 tokens, without its end"),
        ((_event(" a", usage=1), b'data: {"cho'), "disconnected", "after 1 tokens in the middle of a line"),
        ((), "disconnected", "after 0 tokens"),
        ((b"data: <html>busy</html>\n\n",), "malformed", "<html>busy</html>"),
        ((b"data: [1, 2]\n\n",), "malformed", "something else"),
        ((b"data: " + b"[" * 100_000 + b"\n\n",), "malformed", "something else"),
        ((b'data: {"choices": [{"text": "a"}], "usage": {"completion_tokens": "x"}}\n',), "malformed", "something"),
        ((b"data: " + b"x" * (LONGEST_LINE + 1),), "malformed", "longer than"),
        ((_event(" a"), b'data: {"error": {"message": "out of\\nmemory", "code": 500}}\n\n'), "error", "out of memory"),
        ((b'data: {"error": "' + b"x" * 500 + b'"}\n\n',), "error", "x..."),
        ((_event(" a", usage=1), _event("", usage=1, finish="abort"), DONE), "error", "the server aborted the request"),
    ],
)
def test_streams_that_fail(pieces: tuple[bytes, ...], status: str, message: str) -> None:
    """Each failure is told apart from the others, with what the server said."""
    stream = _read(*pieces)
    found, error = stream.outcome()
    assert found == status
    assert message in str(error)
    assert stream.is_over == (status in {"malformed", "error"})


def test_what_follows_an_error_does_not_count() -> None:
    """The first word is the one that is recorded."""
    stream = _read(b'data: {"error": "no"}\n\n' + _event(" a", usage=1, finish="stop"), DONE)
    assert stream.outcome() == ("error", "no")
    assert stream.record(0.0)["generated_tokens"] == 0


@given(st.data())
def test_lines_may_be_cut_anywhere(data: st.DataObject) -> None:
    """The network knows no lines: the tokens are the same however the bytes are cut."""
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    whole, total = b"", 0
    for position, count in enumerate(counts):
        total += count
        finish = "length" if position == len(counts) - 1 else None
        whole += _event(" x" * count, usage=total, finish=finish)
    whole += _event(usage=total, choices=False) + DONE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    stream = _read(*pieces)
    record = stream.record(0.0)
    assert stream.outcome() == ("ok", None)
    assert record["chunk_tokens"] == counts
    assert len(record["itl_s"]) == sum(counts) - 1
    assert record["ttft_s"] + sum(record["itl_s"]) == pytest.approx(stream.chunk_times[-1])
