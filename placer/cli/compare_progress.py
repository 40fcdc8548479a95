"""Show on standard error how far a comparison is: a live line on a terminal, a line for each run elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placer.cli.live_line import LiveLine

if TYPE_CHECKING:
    from placer.compare import CompareProgress


class ComparisonProgress(LiveLine):
    """Shows which run ended last, and how many are left.

    Parameters
    ----------
    is_verbose
        Also print a line for each run on a terminal.
    """

    def __init__(self, *, is_verbose: bool) -> None:
        super().__init__()
        self._is_verbose = is_verbose
        self.latest: CompareProgress | None = None

    def __call__(self, progress: CompareProgress) -> None:
        """Show progress."""
        from placer.comparison_tables import run_line

        self.latest = progress
        text = f"{progress.finished} of {progress.total} runs"
        if progress.latest is not None:
            text = f"{text}: {run_line(progress.latest)}"
        self.update(text)
        if self._is_verbose or not self.is_live:
            self.print(text)
