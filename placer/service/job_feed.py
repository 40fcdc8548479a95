"""What a job that has not finished has done so far, for all who look on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from placer.service.documents import IncumbentSeen

# Of one job; of those that are more, the latest.
MOST_EVENTS = 1_000


class JobFeed:
    """The events of a job.

    Attributes
    ----------
    phase, incumbent
        The latest.
    has_ended
        Nothing comes any more.
    """

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._number = 0
        self._changed = asyncio.Event()
        self.phase: str | None = None
        self.incumbent: IncumbentSeen | None = None
        self.has_ended = False

    def begin(self, started_s: float) -> None:
        """Begin anew, at `started_s` seconds since the epoch.

        Numbers go on from these milliseconds: above those of a start before, whichever service that was in, as there
        are far fewer than a thousand events a second.
        """
        self._number = max(self._number, round(1000.0 * started_s))
        self.phase = self.incumbent = None

    def hear(self, record: dict[str, Any]) -> None:
        """Keep an event, and tell those who wait."""
        self._number += 1
        self._events.append({"id": self._number, **record})
        if record["kind"] == "phase":
            self.phase = f"{record['phase']}: {record['detail']}" if record["detail"] else record["phase"]
        elif record["kind"] == "incumbent":
            self.incumbent = IncumbentSeen(num_gpus=record["num_gpus"], cost_per_hour=record["cost_per_hour"])
        self.notify()

    def end(self) -> None:
        """Say that nothing comes any more."""
        self.has_ended = True
        self.notify()

    def notify(self) -> None:
        """Wake those who wait."""
        self._changed.set()
        self._changed = asyncio.Event()

    def after(self, number: int) -> list[dict[str, Any]]:
        """Return the events with numbers above `number`."""
        return events_after(self._events, number)

    def all(self) -> tuple[dict[str, Any], ...]:
        """Return all events that are kept."""
        return tuple(self._events)

    async def changed(self, timeout_s: float) -> None:
        """Wait until something happens, or the time is over."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return


def events_after(events: Any, number: int) -> list[dict[str, Any]]:
    """Return those of `events` whose number is above `number`."""
    return [event for event in events if event["id"] > number]
