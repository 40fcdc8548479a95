"""Show on standard error how far a command is that does many parts: a live line on a terminal, else a line for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from placer.cli.exits import INTERRUPTED, print_error, print_hint
from placer.cli.live_line import LiveLine

if TYPE_CHECKING:
    from pathlib import Path

RecordT = TypeVar("RecordT")
RecordT_co = TypeVar("RecordT_co", covariant=True)


class Progress(Protocol[RecordT_co]):
    """How far it is."""

    @property
    def finished(self) -> int:
        """Parts that are done."""

    @property
    def total(self) -> int:
        """All parts."""

    @property
    def latest(self) -> RecordT_co | None:
        """The part that just ended; ``None`` at the start."""


class PartsProgress(LiveLine, Generic[RecordT]):
    """Shows which part ended last, and how many are left.

    Parameters
    ----------
    parts
        What they are: ``runs``.
    line_of
        Returns what came out of a part, in a line.
    is_verbose
        Also print a line for each part on a terminal.
    """

    def __init__(self, parts: str, line_of: Callable[[RecordT], str], *, is_verbose: bool) -> None:
        super().__init__()
        self._parts = parts
        self._line_of = line_of
        self._is_verbose = is_verbose
        self._kept: str | None = None

    def __call__(self, progress: Progress[RecordT]) -> None:
        """Show progress."""
        self._kept = f"{progress.finished} of {progress.total} {self._parts}"
        text = self._kept if progress.latest is None else f"{self._kept}: {self._line_of(progress.latest)}"
        self.update(text)
        if self._is_verbose or not self.is_live:
            self.print(text)

    def say_interrupted(self, output: Path | None) -> int:
        """Say what an interrupted command has kept in its folder, and return its exit code."""
        if self._kept is None or output is None:
            print_error("interrupted. Nothing was kept.", hint="with --output FOLDER the same command goes on")
            return INTERRUPTED
        print_error(f"interrupted. {self._kept} are kept in {output}.")
        print_hint("run the same command again to continue")
        return INTERRUPTED
