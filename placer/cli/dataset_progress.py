"""Show on standard error how far a data set is: a live line on a terminal, a line for each shard elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from placer.cli.exits import INTERRUPTED, print_error, print_hint
from placer.cli.live_line import LiveLine
from placer.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from predictors.dataset import Progress


class DatasetProgress(LiveLine):
    """Shows how many shards are done, the rate since the start, and the time left at that rate.

    Parameters
    ----------
    is_verbose
        Also print a line for each shard on a terminal.
    """

    def __init__(self, *, is_verbose: bool) -> None:
        super().__init__()
        self._is_verbose = is_verbose
        self._first: Progress | None = None
        self._latest: Progress | None = None
        self._started_s = time.monotonic()

    @property
    def latest(self) -> Progress | None:
        """What was last heard; None before the first shard is begun."""
        return self._latest

    def __call__(self, progress: Progress) -> None:
        """Show progress."""
        if self._first is None:
            self._first, self._started_s = progress, time.monotonic()
        self._latest = progress
        text = progress_text(self._first, progress, elapsed_s=time.monotonic() - self._started_s)
        self.update(text)
        if self._is_verbose or not self.is_live:
            self.print(text)


def say_interrupted(output: Path, display: DatasetProgress) -> int:
    """Say what an interrupted command has kept, and return its exit code; raise again before there was anything."""
    latest = display.latest
    if latest is None:
        raise KeyboardInterrupt
    print_error(f"interrupted. {latest.finished_shards} of {latest.num_shards} shards are kept in {output}.")
    print_hint("run the same command again to continue")
    return INTERRUPTED


def progress_text(first: Progress, progress: Progress, *, elapsed_s: float) -> str:
    """Return progress in a line, `elapsed_s` after `first`; rate and time left from what was done since then."""
    shards = (
        f"{progress.finished_shards} of {counted(progress.num_shards, 'shard')}, {counted(progress.num_rows, 'row')}"
    )
    done = progress.finished_shards - first.finished_shards
    if done == 0 or elapsed_s <= 0.0:
        return shards
    rate = (progress.num_rows - first.num_rows) / elapsed_s
    left_s = (progress.num_shards - progress.finished_shards) * elapsed_s / done
    return f"{shards}, {rate:.1f} rows/s, {duration_text(left_s)} left"


def duration_text(duration_s: float) -> str:
    """Return a duration in the two largest of its units."""
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
