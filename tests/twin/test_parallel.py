"""One function on many arguments at once: all results with their positions, and a quiet end when nobody waits."""

import threading
import warnings
from contextlib import closing

import pytest

from twin.parallel import each_in_parallel


@pytest.mark.parametrize("workers", [1, 2, None])
def test_each_subject_is_answered_once(workers: int | None) -> None:
    """Whatever the order in which they are done."""
    results = each_in_parallel(abs, range(-9, 0), workers=workers, backend="threading")
    assert sorted(results) == [(index, 9 - index) for index in range(9)]


def test_whoever_stops_listening_is_not_warned() -> None:
    """What is still being done when the results are closed is nobody's fault."""
    may_go_on = threading.Event()

    def wait(subject: int) -> int:
        if subject:
            may_go_on.wait(timeout=5.0)
        return subject

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with closing(each_in_parallel(wait, range(4), workers=2, backend="threading")) as results:
            assert next(results) == (0, 0)
            threading.Timer(0.05, may_go_on.set).start()
