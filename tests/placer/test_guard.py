"""What every HTTP request passes, without a server: bytes, times and tokens."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from placer.service.guard import Guard
from placer.service.metrics import Metrics
from placer.service.settings import JobLimits, ServiceSettings

TOKENS = ("the-first-of-the-tokens", "the-second-of-the-tokens")
SETTINGS = ServiceSettings(Path("unused"), body_s=0.1, send_s=0.1, tokens=TOKENS, limits=JobLimits(body_bytes=10))
BEARER = (b"authorization", f"Bearer {TOKENS[1]}".encode())


async def _reads_all(_: Any, receive: Any, send: Any) -> None:
    """Answer 200 with the body; whatever goes wrong with it, 400, as frameworks do."""
    body, more, status = b"", True, 200
    try:
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
    except Exception:  # noqa: BLE001 - as frameworks do
        status = 400
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


def _asked(
    parts: Sequence[bytes],
    *,
    headers: Sequence[tuple[bytes, bytes]] = (BEARER,),
    path: str = "/v1/jobs",
    takes: bool = True,
) -> tuple[int, bytes]:
    """Return status and body of the answer to a request in parts, the last of which never comes if it is empty."""
    sent: list[Any] = []
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        if waiting and (part := waiting.pop(0)):
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}
        await asyncio.Event().wait()
        raise AssertionError("nobody waits that long")

    async def send(message: Any) -> None:
        if not takes:
            await asyncio.Event().wait()
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    asyncio.run(Guard(_reads_all, SETTINGS, Metrics())(scope, receive, send))
    return (sent[0]["status"], sent[1]["body"]) if sent else (0, b"")


def test_a_request_passes_whole() -> None:
    """In parts, up to the last byte that is allowed."""
    assert _asked([b"12345", b"67890"]) == (200, b"1234567890")


@pytest.mark.parametrize(
    ("parts", "headers", "status"),
    [
        ([b"12345", b"678901"], (BEARER,), 413),
        ([b"1"], (BEARER, (b"content-length", b"11")), 413),
        ([b"1"], (BEARER, (b"content-length", b"-1")), 413),
        ([b"1"], (BEARER, (b"content-length", b"9" * 5000)), 413),
        ([b"1", b""], (BEARER,), 408),
        ([b"1"], (), 401),
        ([b"1"], ((b"authorization", b"Bearer "),), 401),
        ([b"1"], ((b"authorization", b"Basic " + TOKENS[0].encode()),), 401),
        ([b"1"], ((b"authorization", b"Bearer \xff\x00"),), 401),
        ([b"1"], ((b"authorization", b"Bearer " + TOKENS[0][:-1].encode()),), 401),
    ],
)
def test_what_does_not_pass(parts: list[bytes], headers: tuple[tuple[bytes, bytes], ...], status: int) -> None:
    """Too large, said or not; too slow; without a token of ours. The answer is the guard's, whatever follows says."""
    answered, body = _asked(parts, headers=headers)
    assert answered == status
    assert json.loads(body)["status"] == status


def test_health_needs_no_token() -> None:
    """Whoever balances load knows none."""
    assert _asked([b"1"], headers=(), path="/healthz")[0] == 200
    assert _asked([b"1"], headers=(), path="/healthz/../v1/jobs")[0] == 401


def test_a_client_that_takes_nothing_is_left() -> None:
    """Without an error of ours."""
    assert _asked([b"1"], takes=False) == (0, b"")
