"""A line on standard error that shows what is done at present: a live one on a terminal, none elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status


class LiveLine:
    """The live line, and lines that stay; a context, at whose end the live line goes."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status: Status | None = self._console.status("starting") if self._console.is_terminal else None

    @property
    def is_live(self) -> bool:
        """Whether standard error is a terminal, so that there is a live line."""
        return self._status is not None

    def __enter__(self) -> Self:
        """Start the live line."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the live line."""
        if self._status is not None:
            self._status.stop()

    def update(self, text: str) -> None:
        """Put `text` on the live line, if there is one."""
        if self._status is not None:
            self._status.update(text)

    def print(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False)
