"""The client by itself: what it repeats, how long it waits, how it reads events and errors."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from placer.client import Client, ServiceError

URL = "http://service"
JOB = {"id": "0" * 32, "operation": "solve", "state": "accepted", "submitted_at": "2026-01-01T00:00:00Z"}
ERROR = {"type": "urn:placer:error:queue-full", "title": "Too Many Requests", "status": 429, "detail": "full"}


def _client(answer: Callable[[httpx.Request], httpx.Response], waits: list[float], **options: Any) -> Client:
    return Client(URL, transport=httpx.MockTransport(answer), sleep=waits.append, **options)


def test_it_comes_again_when_the_service_says() -> None:
    """With the same key, so that it is the same job."""
    keys: list[str] = []
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ConnectError("not yet")
        if len(keys) < 4:
            return httpx.Response(429, json=ERROR, headers={"Retry-After": "7"})
        return httpx.Response(202, json=JOB)

    with _client(answer, waits) as client:
        assert client.submit("solve", {"problem": {}}).id == JOB["id"]
    assert len(set(keys)) == 1
    assert waits == [0.5, 7.0, 7.0]


def test_it_gives_up_with_what_the_service_said() -> None:
    """After as many attempts as it may make."""
    waits: list[float] = []
    client = _client(lambda _: httpx.Response(429, json=ERROR), waits, retries=2)
    with client, pytest.raises(ServiceError, match="full") as raised:
        client.status(str(JOB["id"]))
    assert raised.value.details.status == 429
    assert len(waits) == 2


def test_errors_of_what_stands_before_the_service_are_told() -> None:
    """A proxy answers in words of its own."""
    client = _client(lambda _: httpx.Response(502, text="<html>"), [])
    with client, pytest.raises(ServiceError, match="502"):
        client.status(str(JOB["id"]))


def test_events_go_on_where_the_connection_broke() -> None:
    """Each event once, in order."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["last-event-id"])
        first = int(asked[-1]) + 1
        events = "".join(
            f"id: {number}\nevent: phase\ndata: {json.dumps({'n': number})}\n\n" for number in (first, first + 1)
        )
        end = f"event: end\ndata: {json.dumps(JOB)}\n\n" if len(asked) == 3 else ""
        return httpx.Response(200, text=f"retry: 2000\n\n: alive\n\n{events}{end}")

    with _client(answer, []) as client:
        events = list(client.events("x"))
    assert [event.number for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.data["n"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert asked == ["0", "2", "4"]


@pytest.mark.parametrize("url", ["service:8080", "127.0.0.1:8080"])
def test_what_would_fail_again_is_not_repeated(url: str) -> None:
    """Such as an address without a scheme: nobody is asked, and nobody waits."""
    waits: list[float] = []
    with Client(url, sleep=waits.append) as client:
        with pytest.raises(httpx.TransportError):
            client.status("x")
        with pytest.raises(httpx.TransportError):
            list(client.events("x"))
    assert waits == []


def test_it_waits_as_long_as_the_service_says_also_for_events() -> None:
    """The longest that a full queue says is a minute; and at the end the caller hears why."""
    waits: list[float] = []
    client = _client(lambda _: httpx.Response(429, json=ERROR, headers={"Retry-After": "60"}), waits, retries=2)
    with client:
        for ask in (client.status, client.wait):
            with pytest.raises(ServiceError, match="full"):
                ask("x")
    assert waits == [60.0] * 4


def test_only_the_answer_may_take_as_long_as_the_deadline() -> None:
    """A service that cannot be reached is told within the usual time."""
    seen: list[dict[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(422, json=ERROR | {"status": 422})

    with _client(answer, []) as client, pytest.raises(ServiceError):
        client.solve({}, deadline_s=600.0)
    assert (seen[0]["connect"], seen[0]["read"]) == (30.0, 630.0)


def test_the_token_goes_with_every_request() -> None:
    """In the header that the service looks at."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json=JOB)

    with _client(answer, [], token="t0k3n") as client:  # noqa: S106 - made up
        client.status("x")
        client.cancel("x")
    assert seen == ["Bearer t0k3n", "Bearer t0k3n"]
