"""A population of adapters that has given features: what to simulate when only the sums are known."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from twin.engine import SUPPORTED_RANKS
from twin.lengths import LengthDistribution
from twin.workload import Adapter

_MAX_SIGMA = 12.0
# Largest variation of gaps that an adapter may have.
_MAX_GAP_CV = 20.0
_POISSON_SLACK = 1e-3


def canonical_adapters(aggregate: NDArray[np.float64], *, max_model_len: int) -> tuple[Adapter, ...]:
    """Return adapters whose aggregate is `aggregate` (float64 [K]), as far as one population can have it.

    The number of adapters per rank, the sum of the rates and (up to what that number of adapters allows) of their
    squares, the mean lengths, the spread of the prompts and the burstiness of the arrivals are met. All adapters share
    their length distributions and the variation of their gaps;
    rates are quantiles of a lognormal law, dealt to the ranks in turn so that no rank gets the busy ones. `active_*`
    follow from the rates and are not fitted.

    Parameters
    ----------
    aggregate
        Of at least one adapter.
    max_model_len
        Prompts are cut below half of it, so that they and their outputs fit.
    """
    value = dict(zip(AGGREGATE_NAMES, aggregate.tolist(), strict=True))
    ranks = _interleaved_ranks([(rank, round(value[f"num_rank_{rank}"])) for rank in SUPPORTED_RANKS])
    assert ranks, "an aggregate of no adapters has no population"
    rates = canonical_rates(len(ranks), value["sum_rate_rps"], value["sum_rate_sq"])
    prompt, output = _lengths(value, max_model_len)
    gap_cv = _gap_cv(value)
    return tuple(
        Adapter.model_validate(
            {
                "name": f"canonical-{i}",
                "rank": rank,
                "rate_rps": rate,
                "prompt_tokens": prompt,
                "output_tokens": output,
                "gap_cv": gap_cv,
            }
        )
        for i, (rank, rate) in enumerate(zip(ranks, rates.tolist(), strict=True))
    )


def canonical_rates(count: int, total: float, total_of_squares: float) -> NDArray[np.float64]:
    """Return `count` lognormal quantiles with the given sum and, if they can reach it, sum of squares."""
    if total <= 0.0:
        return np.zeros(count)
    normal = NormalDist()
    scores = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])

    def rates_for(sigma: float) -> NDArray[np.float64]:
        # The largest score is subtracted so that the exponential cannot overflow.
        weights = np.exp(sigma * (scores - scores[-1]))
        return np.asarray(total * weights / weights.sum())

    low, high = 0.0, _MAX_SIGMA
    for _ in range(60):
        middle = 0.5 * (low + high)
        if float(np.sum(rates_for(middle) ** 2)) < total_of_squares:
            low = middle
        else:
            high = middle
    return rates_for(low)


def _interleaved_ranks(counts: list[tuple[int, int]]) -> list[int]:
    """Return each rank as often as its count says, evenly mixed."""
    positions = [((i + 0.5) / count, rank) for rank, count in counts for i in range(count)]
    return [rank for _, rank in sorted(positions)]


def _lengths(value: dict[str, float], max_model_len: int) -> tuple[LengthDistribution, LengthDistribution]:
    """Return prompt and output length distributions with the rate-weighted moments of the aggregate."""
    rate = value["sum_rate_rps"]
    if rate <= 0.0:
        return LengthDistribution.constant(1), LengthDistribution.constant(1)
    upper = max_model_len // 2
    prompt_mean = min(max(value["sum_prompt_tps"] / rate, 1.0), float(upper))
    output_mean = min(max(value["sum_output_tps"] / rate, 1.0), float(upper))
    prompt_variance = max(value["sum_prompt_sq_tps"] / rate - prompt_mean**2, 0.0)
    output_sq = 2.0 * (value["sum_kv_token_steps"] / rate - prompt_mean * output_mean)
    output_variance = max(output_sq - output_mean**2, 0.0)
    return (
        LengthDistribution(mean=prompt_mean, std=_noticeable(prompt_variance, prompt_mean), max=upper),
        LengthDistribution(mean=output_mean, std=_noticeable(output_variance, output_mean), max=upper),
    )


def _gap_cv(value: dict[str, float]) -> float:
    """Return the variation of the gaps between an adapter's requests; 1 (Poisson) within the rounding of float32."""
    if value["sum_rate_rps"] <= 0.0:
        return 1.0
    gap_cv = math.sqrt(max(value["sum_rate_cv_sq"], 0.0) / value["sum_rate_rps"])
    return 1.0 if abs(gap_cv - 1.0) < _POISSON_SLACK else min(gap_cv, _MAX_GAP_CV)


def _noticeable(variance: float, mean: float) -> float:
    """Return the standard deviation, or 0 where it is no more than what float32 features leave of a constant length."""
    deviation = math.sqrt(variance)
    return deviation if deviation > 0.01 * mean else 0.0
