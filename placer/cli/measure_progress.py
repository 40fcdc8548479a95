"""Show on standard error how far a measurement is: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from placer.cli.live_line import LiveLine

if TYPE_CHECKING:
    from twin.measurement.session import Progress

# Where there is no live line.
LINE_INTERVAL_S = 10.0


class MeasureProgress(LiveLine):
    """Shows what a measurement does at present."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = ""
        self._next_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Show progress; a warning stays to be seen, also where there is a live line."""
        if progress.warning is not None:
            self.print(f"warning: {progress.warning}")
            return
        text = progress_text(progress)
        self.update(text)
        if (
            not self.is_live
            and text != self._printed
            and (progress.what is not None or time.monotonic() >= self._next_s)
        ):
            self._printed, self._next_s = text, time.monotonic() + LINE_INTERVAL_S
            self.print(text)


def progress_text(progress: Progress) -> str:
    """Return progress in a line."""
    if progress.what is not None:
        return progress.what
    failed = f", {progress.num_failed} failed" if progress.num_failed else ""
    return (
        f"{progress.time_s:.0f} of {progress.horizon_s:.0f} s: {progress.num_sent} requests sent, "
        f"{progress.num_finished} finished{failed}"
    )
