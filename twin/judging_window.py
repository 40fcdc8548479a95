"""How long a GPU is simulated before it is judged: shared by what verifies plans and what is calibrated for them."""

from __future__ import annotations

DEFAULT_HORIZON_S = 1800.0
DEFAULT_WARMUP_S = 300.0
LONGEST_HORIZON_S = 30.0 * 86400.0
# A replica's throughput ratio is a share of completed requests. With fewer than this many expected in the window, the
# few that are still being served at its end would decide; the horizon is then longer.
MIN_EXPECTED_REQUESTS = 200.0


def long_enough_s(
    rate_rps: float, *, horizon_s: float = DEFAULT_HORIZON_S, warmup_s: float = DEFAULT_WARMUP_S
) -> float:
    """Return the horizon for a load, in seconds.

    At least `horizon_s`, and longer when fewer than `MIN_EXPECTED_REQUESTS` are expected after the warm-up, up to
    `LONGEST_HORIZON_S`.

    Parameters
    ----------
    rate_rps
        Requests per second, constant, > 0.
    """
    return max(horizon_s, min(warmup_s + MIN_EXPECTED_REQUESTS / rate_rps, LONGEST_HORIZON_S))
