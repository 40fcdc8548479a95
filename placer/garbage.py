"""Keep Python's cyclic garbage collector from looking at large documents again and again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Do not look for cyclic garbage meanwhile.

    What is built is kept, hundreds of thousands of values, and collections that look at all of them find nothing: they
    take more time than to parse the file. What cyclic garbage there is waits for the next collection.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def keep_what_is_there() -> None:
    """Let no later collection look at what there is now, for a process that keeps it until it ends."""
    gc.freeze()
