"""A replica by arithmetic, as a user would write one for `placer compare --surrogate`, which also certifies bounds.

``placer compare --surrogate benchmarks/closed_form_oracle.py:Oracle --instances DIR``

Slots of a large rank leave less KV memory. A step takes longer with more adapters in its slots, with larger slots and
with more adapters registered; of the requests for more adapters than slots, some wait for theirs to be loaded; and some
time is kept for bursts, more for few hot adapters than for many cold ones. One question is asked at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of slots, from few to many.
SLOTS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# Tokens of KV memory without slots, and what one slot takes for each unit of its rank.
KV_TOKENS = 80_000.0
SLOT_TOKENS = 40.0
# Seconds that a request keeps its tokens in memory.
RESIDENCE_S = 20.0
# Requests that a step serves at most.
MOST_REQUESTS = 128.0
# Shares of a second: per prompt token, per output token, per load of an adapter and unit of rank, and per request/s of
# the standard deviation of the requests.
PROMPT_S = 2e-4
REQUEST_S = 2e-4
LOAD_RANK_S = 5e-4
BURST_S = 0.04
# Seconds per step: without adapters, per adapter in it (and more for each unit of the slots' rank), per adapter there.
STEP_S = 0.02
ADAPTER_S = 2e-4
ADAPTER_RANK_S = 1e-5
REGISTERED_S = 2e-5
# Rounding of all sums and products, relative.
ROUNDING = 1e-9


class Oracle:
    """Says yes with the fewest slots that do."""

    # What `feasible` may answer with; together with `accepted_sums` it lets solvers prove bounds.
    slot_options = SLOTS

    def feasible(  # noqa: PLR0917 - the signature that `placer compare` asks for
        self,
        n: int,
        sum_rate: float,
        sum_rate_sq: float,
        sum_rate_prompt: float,
        sum_rate_output: float,
        max_rank: int,
    ) -> tuple[bool, int]:
        """Return whether a GPU serves so many adapters with these sums of rates and loads, and with how many slots."""
        kept_tokens = RESIDENCE_S * (sum_rate_prompt + 0.5 * sum_rate_output)
        busy = PROMPT_S * sum_rate_prompt + REQUEST_S * sum_rate_output + BURST_S * sum_rate_sq**0.5
        for slots in SLOTS:
            if kept_tokens > KV_TOKENS - SLOT_TOKENS * slots * max_rank:
                break
            missed_rps = sum_rate * (1.0 - slots / n) if n > slots else 0.0
            step_s = STEP_S + min(slots, n) * (ADAPTER_S + ADAPTER_RANK_S * max_rank) + REGISTERED_S * n
            decoding = sum_rate_output * step_s / MOST_REQUESTS
            if busy + LOAD_RANK_S * max_rank * missed_rps + decoding <= 1.0:
                return True, slots
        return False, 0

    def accepted_sums(
        self, slots: int, max_rank: int, lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return inequalities that every set keeps which `feasible` accepts with these slots, for B boxes of the sums.

        The memory is linear in the sums. Of the time, the square root and the smaller of two numbers are concave, and
        no smaller than their chord over the box; products are no smaller than McCormick's two planes, and the quotient
        of rates and adapters is no larger than two planes over the chord of the reciprocal.

        Parameters
        ----------
        slots
            One of `slot_options`.
        max_rank
            Largest rank of the set.
        lower, upper
            Corners of n, sum_rate, sum_rate_sq, sum_rate_prompt and sum_rate_output, float64 [B, 5].

        Returns
        -------
        gradients float64 [B, 7, 5] and limits float64 [B, 7]: ``gradients @ sums <= limits``.
        """
        least, most = lower.T, upper.T
        gradients = np.zeros((len(lower), 7, 5))
        limits = np.ones((len(lower), 7))
        gradients[:, 0, 3], gradients[:, 0, 4] = RESIDENCE_S, 0.5 * RESIDENCE_S
        limits[:, 0] = KV_TOKENS - SLOT_TOKENS * slots * max_rank
        burst_slope, burst_least = _chord(np.sqrt, least[2], most[2])
        # Of the step's time, what grows with the adapters; the output stands before it.
        per_adapter_s = ADAPTER_S + ADAPTER_RANK_S * max_rank

        def step_s(count: NDArray[np.float64]) -> Any:
            return STEP_S + np.minimum(slots, count) * per_adapter_s + REGISTERED_S * count

        step_slope, step_least = _chord(step_s, least[0], most[0])
        load_s = LOAD_RANK_S * max_rank
        for cut, (product, missed) in enumerate([(a, b) for a in range(2) for b in range(3)], start=1):
            row = gradients[:, cut]
            row[:, 3], row[:, 4], row[:, 2] = PROMPT_S, REQUEST_S, BURST_S * burst_slope
            limits[:, cut] -= BURST_S * (burst_least - burst_slope * least[2])
            corner = (least, most)[product]
            # output * step >= corner's output * step + output * corner's step - both of the corner.
            corner_s = step_least + step_slope * (corner[0] - least[0])
            row[:, 0] += corner[4] * step_slope / MOST_REQUESTS
            row[:, 4] += corner_s / MOST_REQUESTS
            limits[:, cut] += corner[4] * step_slope * corner[0] / MOST_REQUESTS
            if missed:
                _add_missed(row, limits[:, cut], (least, most), missed - 1, slots=slots, load_s=load_s)
        return gradients, limits * (1.0 + ROUNDING) + ROUNDING


def _add_missed(
    row: NDArray[np.float64],
    limit: NDArray[np.float64],
    corners: tuple[NDArray[np.float64], NDArray[np.float64]],
    side: int,
    *,
    slots: int,
    load_s: float,
) -> None:
    """Add the time for loads to an inequality, in place: rate - slots * rate / n, of which 1 / n is below its chord."""
    least, most = corners
    few, many = np.maximum(least[0], 1.0), np.maximum(most[0], 1.0)
    # McCormick: rate * share <= rate * share's one end + rate's other end * share - both.
    end = (1.0 / few, 1.0 / many)[side]
    rate = (least[1], most[1])[side]
    row[:, 1] += load_s * (1.0 - slots * end)
    row[:, 0] += load_s * slots * rate / (few * many)
    limit += load_s * slots * rate * (1.0 / few + 1.0 / many - end)


def _chord(
    function: Any, least: NDArray[np.float64], most: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return slope, >= 0, and value at `least` of the chord of a rising concave function between two points."""
    low, high = function(least), function(most)
    width = most - least
    slope = np.divide(high - low, width, out=np.zeros_like(width), where=width > 0.0)
    return np.maximum(slope, 0.0), np.asarray(low, dtype=np.float64)
