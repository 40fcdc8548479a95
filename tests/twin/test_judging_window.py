"""The window in which a GPU is judged: long enough for its load, and bounded."""

import pytest

from twin.judging_window import (
    DEFAULT_HORIZON_S,
    DEFAULT_WARMUP_S,
    LONGEST_HORIZON_S,
    MIN_EXPECTED_REQUESTS,
    long_enough_s,
)


@pytest.mark.parametrize(
    ("rate_rps", "expected_s"),
    [
        (1.0, DEFAULT_HORIZON_S),
        (MIN_EXPECTED_REQUESTS / (DEFAULT_HORIZON_S - DEFAULT_WARMUP_S), DEFAULT_HORIZON_S),
        (0.01, DEFAULT_WARMUP_S + MIN_EXPECTED_REQUESTS / 0.01),
        (1e-9, LONGEST_HORIZON_S),
    ],
)
def test_few_requests_ask_for_more_time(rate_rps: float, expected_s: float) -> None:
    """As many requests as are needed come after the warm-up, in a month at most."""
    assert long_enough_s(rate_rps) == pytest.approx(expected_s)
