"""Read the stream of a completion as an OpenAI-compatible server sends it, and tell its tokens apart in time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from twin.measurement.records import OK, seconds

DATA = b"data:"
DONE = b"[DONE]"
# What vLLM gives for the end of a request that it did not serve to its end (v1/engine/__init__.py).
ABORTED = "abort"
# A line without an end is no line of this protocol.
LONGEST_LINE = 1 << 20
SHOWN_CHARACTERS = 200


@dataclass
class CompletionStream:
    """What came of one completion, chunk by chunk (server-sent events, one JSON object per ``data:`` line).

    Tokens are counted by the server's ``usage`` where every chunk has it (vLLM's ``continuous_usage_stats``); otherwise
    each chunk with text is taken for one token, and compared with the usage at the end.

    Attributes
    ----------
    chunk_times, chunk_tokens
        When chunks with tokens came, and how many tokens each had.
    prompt_tokens
        By the server's count.
    """

    chunk_times: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    prompt_tokens: int | None = None
    _total: int | None = None
    _is_continuous: bool = False
    _is_finished: bool = False
    _malformed: str | None = None
    _error: str | None = None
    _rest: bytes = b""

    @property
    def is_over(self) -> bool:
        """Whether nothing that may come can matter any more."""
        return self._malformed is not None or self._error is not None

    def feed(self, data: bytes, time_s: float) -> None:
        """Take what came at a time; lines may be cut anywhere."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self.is_over:
                return
            if line.startswith(DATA):
                self._take(line.removeprefix(DATA).strip(), time_s)
        if len(self._rest) > LONGEST_LINE:
            self._malformed = f"a line of the stream is longer than {LONGEST_LINE} bytes"

    def outcome(self) -> tuple[str, str | None]:
        """Return status and error of a stream that has ended."""
        if self._malformed is not None:
            return "malformed", self._malformed
        if self._error is not None:
            return "error", self._error
        if self._is_finished:
            return OK, None
        cut = " in the middle of a line" if self._rest.strip() else ""
        return "disconnected", f"the stream ended after {sum(self.chunk_tokens)} tokens{cut}, without its end"

    def record(self, sent_s: float) -> dict[str, Any]:
        """Return the columns that the stream decides, with times counted from `sent_s`.

        The tokens of one chunk came together: the first of them waited since the chunk before, the others not at all.
        Where chunks had several tokens and the server did not say how many, times between tokens are unknown.
        """
        counting, counted = self._counting(), sum(self.chunk_tokens)
        is_known = counting != "mismatch"
        waits: list[float] = []
        for position, count in enumerate(self.chunk_tokens):
            wait = self.chunk_times[position] - self.chunk_times[position - 1] if position else None
            waits += [*([] if wait is None else [seconds(wait)]), *[0.0] * (count - 1)]
        return {
            "generated_tokens": counted if is_known else self._total,
            "ttft_s": seconds(self.chunk_times[0] - sent_s) if self.chunk_times else None,
            "itl_s": waits if is_known else None,
            "chunk_tokens": self.chunk_tokens if is_known else None,
            "counting": counting,
            "counted_prompt_tokens": self.prompt_tokens,
        }

    def _counting(self) -> str | None:
        if not self.chunk_tokens:
            return "mismatch" if self._total else None
        if self._is_continuous:
            return "continuous"
        if self._total is None:
            return "assumed"
        return "chunks" if self._total == sum(self.chunk_tokens) else "mismatch"

    def _take(self, payload: bytes, time_s: float) -> None:
        if payload == DONE:
            self._is_finished = True
            return
        try:
            event = json.loads(payload)
            if event.get("error"):
                self._error = shown(event["error"])
                return
            choices, usage = event.get("choices") or [], event.get("usage") or {}
            total = usage.get("completion_tokens")
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
            if choices:
                self._take_choice(choices[0], total, time_s)
            self._total = self._total if total is None else int(total)
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
            self._malformed = f"the stream has something else than a completion: {shown(payload)}"

    def _take_choice(self, choice: dict[str, Any], total: int | None, time_s: float) -> None:
        if not self.chunk_tokens:
            self._is_continuous = total is not None
        if self._is_continuous:
            count = 0 if total is None else int(total) - (self._total or 0)
        else:
            count = int(bool(choice.get("text") or (choice.get("delta") or {}).get("content")))
        if count > 0:
            self.chunk_times.append(time_s)
            self.chunk_tokens.append(count)
        if choice.get("finish_reason") == ABORTED:
            self._error = "the server aborted the request"
        if choice.get("finish_reason") is not None:
            self._is_finished = True


def shown(value: object) -> str:
    """Return a piece of an answer, short enough for a message."""
    if isinstance(value, dict) and "message" in value:
        value = value["message"]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
