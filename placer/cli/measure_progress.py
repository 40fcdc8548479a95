"""Show on standard error how far a measurement is: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

    from twin.measurement.session import Progress

# Where there is no live line.
LINE_INTERVAL_S = 10.0


class MeasureProgress:
    """Shows what a measurement does at present."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = self._console.status("starting") if self._console.is_terminal else None
        self._printed = ""
        self._next_s = 0.0

    def __enter__(self) -> Self:
        """Start the live line, on a terminal."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the live line."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        """Show progress."""
        text = progress_text(progress)
        if self._status is not None:
            self._status.update(text)
        elif text != self._printed and (progress.what is not None or time.monotonic() >= self._next_s):
            self._printed, self._next_s = text, time.monotonic() + LINE_INTERVAL_S
            self._console.print(text, markup=False)


def progress_text(progress: Progress) -> str:
    """Return progress in a line."""
    if progress.what is not None:
        return progress.what
    failed = f", {progress.num_failed} failed" if progress.num_failed else ""
    return (
        f"{progress.time_s:.0f} of {progress.horizon_s:.0f} s: {progress.num_sent} requests sent, "
        f"{progress.num_finished} finished{failed}"
    )
