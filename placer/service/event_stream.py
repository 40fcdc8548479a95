"""The events of a job as server-sent events, from any of them on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from placer.service.job_feed import JobFeed, events_after
from placer.service.jobs import Jobs

# Between signs of life, which tell whether the client is still there.
_BEAT_S = 10.0
_LAST = "end"


async def event_stream(jobs: Jobs, job_id: str, last_id: int, told: Any) -> AsyncIterator[bytes]:
    """Yield the events of a job after the one with number `last_id`, then, when the job has ended, the job itself.

    Parameters
    ----------
    told
        Coroutine function that returns the job as clients see it, as JSON.
    """
    yield b"retry: 2000\n\n"
    feed = jobs.feed_of(job_id)
    if feed is not None:
        async for part in _live(jobs, feed, last_id):
            if isinstance(part, int):
                last_id = part
            else:
                yield part
        if not feed.has_ended:
            # The service ends: the client comes again, and finds the job where it was.
            return
    for event in events_after(await jobs.events_of(job_id), last_id):
        yield _encoded(event)
    yield f"event: {_LAST}\ndata: {await told()}\n\n".encode()


async def _live(jobs: Jobs, feed: JobFeed, last_id: int) -> AsyncIterator[bytes | int]:
    """Yield what a job does while it does it, and the numbers of what was yielded."""
    while True:
        news = feed.after(last_id)
        for event in news:
            last_id = event["id"]
            yield _encoded(event)
            yield last_id
        if feed.has_ended or jobs.has_stopped:
            return
        if not news:
            await feed.changed(_BEAT_S)
            if not feed.after(last_id):
                yield b": alive\n\n"


def _encoded(event: dict[str, Any]) -> bytes:
    data = {name: value for name, value in event.items() if name not in {"id", "kind"}}
    return f"id: {event['id']}\nevent: {event['kind']}\ndata: {json.dumps(data)}\n\n".encode()
