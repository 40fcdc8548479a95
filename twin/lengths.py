"""Distributions of prompt and output lengths, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST_LENGTH = int(np.iinfo(np.int32).max)


class LengthDistribution(BaseModel):
    """A distribution of token counts: constant, lognormal, or empirical.

    Give ``mean`` (alone: constant; with ``std``: lognormal, cut to ``[min, max]`` with the mean preserved), or
    ``quantiles``: values at equally spaced probabilities from 0 to 1, interpolated linearly. A length between two
    integers is drawn as one of the two, such that the mean is kept.

    Attributes
    ----------
    mean, std
        In tokens. With a narrow ``[min, max]`` the standard deviation of what is drawn is smaller than `std`.
    min, max
        Inclusive bounds in tokens; `max` ``None``: unbounded.
    quantiles
        At least two non-decreasing values >= 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    std: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    min: int = Field(default=1, ge=1)
    max: int | None = Field(default=None, ge=1)
    quantiles: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LengthDistribution:
        if (self.mean is None) == (self.quantiles is None):
            raise ValueError("give exactly one of `mean` and `quantiles`")
        if self.quantiles is not None:
            if self.std != 0.0 or self.min != 1 or self.max is not None:
                raise ValueError(
                    "`std`, `min` and `max` go with `mean` only: quantiles have their own spread and bounds"
                )
            values = list(self.quantiles)
            if len(values) < 2 or values != sorted(values) or not all(math.isfinite(v) and v >= 1 for v in values):
                raise ValueError("`quantiles` must be two or more finite, non-decreasing values of at least 1")
        if self.mean is not None:
            upper = self.max if self.max is not None else math.inf
            if not self.min <= self.mean <= upper:
                raise ValueError(f"`mean` must lie between `min` and `max` ({self.min}, {self.max}). Got {self.mean}")
        return self

    @classmethod
    def constant(cls, tokens: int) -> LengthDistribution:
        """Return the distribution that always gives `tokens`."""
        return cls(mean=float(tokens))

    @classmethod
    def from_samples(
        cls, samples: Sequence[float] | NDArray[np.int64], *, num_quantiles: int = 101
    ) -> LengthDistribution:
        """Return the empirical distribution of `samples` (token counts >= 1) as `num_quantiles` quantiles.

        The straight lines between the quantiles run above the samples where those thin out, mostly before the maximum.
        All quantiles are drawn towards the minimum (or maximum) in proportion, so that the mean is that of the samples.
        """
        counts = np.asarray(samples, dtype=np.float64)
        values = np.quantile(counts, np.linspace(0.0, 1.0, num_quantiles))
        excess = float(np.trapezoid(values, dx=1.0 / (num_quantiles - 1)) - counts.mean())
        towards = values[0] if excess > 0 else values[-1]
        distance = float(np.trapezoid(values - towards, dx=1.0 / (num_quantiles - 1)))
        if distance != 0.0:
            values = np.maximum.accumulate(values - (values - towards) * min(excess / distance, 1.0))
        return cls(quantiles=tuple(float(value) for value in values))

    @property
    def effective_mean(self) -> float:
        """Mean of what is drawn, in tokens (before rounding to integers)."""
        if self.mean is not None:
            return self.mean
        assert self.quantiles is not None
        return float(np.trapezoid(self.quantiles, dx=1.0 / (len(self.quantiles) - 1)))

    @property
    def effective_second_moment(self) -> float:
        """Mean of the square of what is drawn, in tokens^2 (before rounding)."""
        if self.quantiles is not None:
            values = np.asarray(self.quantiles)
            return float(np.mean((values[:-1] ** 2 + values[:-1] * values[1:] + values[1:] ** 2) / 3.0))
        assert self.mean is not None
        if self.std == 0.0:
            return self.mean**2
        sigma = _lognormal_sigma(self.mean, self.std)
        location = _location(self.mean, sigma, float(self.min), float(self.max) if self.max is not None else math.inf)
        return clipped_moment(
            2, location, sigma, float(self.min), float(self.max) if self.max is not None else math.inf
        )

    def scaled(self, factor: float) -> LengthDistribution:
        """Return the distribution with mean, spread and bounds times `factor` (> 0); no length is below 1."""
        if factor == 1.0:
            return self
        if self.quantiles is not None:
            return LengthDistribution(quantiles=tuple(max(1.0, value * factor) for value in self.quantiles))
        assert self.mean is not None
        mean = max(1.0, self.mean * factor)
        return LengthDistribution(
            mean=mean,
            std=self.std * factor,
            min=min(max(1, int(self.min * factor)), int(mean)),
            max=None if self.max is None else math.ceil(max(mean, self.max * factor)),
        )

    def sample(self, count: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Draw `count` lengths as int32, within the bounds; lengths beyond int32 become its largest value.

        A value between two integers becomes the upper one with the probability of its fraction: rounding to the nearest
        would change the mean of short and of constant lengths.
        """
        if self.quantiles is not None:
            probabilities = np.linspace(0.0, 1.0, len(self.quantiles))
            values = np.interp(generator.random(count), probabilities, self.quantiles)
        elif self.std == 0.0:
            assert self.mean is not None
            if self.mean.is_integer():
                return np.full(count, min(self.mean, LARGEST_LENGTH), dtype=np.int32)
            values = np.full(count, self.mean)
        else:
            assert self.mean is not None
            upper = float(self.max) if self.max is not None else math.inf
            sigma = _lognormal_sigma(self.mean, self.std)
            location = _location(self.mean, sigma, float(self.min), upper)
            drawn_values = np.exp(location + sigma * generator.standard_normal(count))
            values = np.minimum(np.maximum(drawn_values, self.min), upper)
        # The minimum undoes what adding in floating point can round up to beyond the upper integer.
        drawn = np.minimum(np.floor(values + generator.random(count)), np.ceil(values))
        return np.minimum(drawn, LARGEST_LENGTH).astype(np.int32)


def _lognormal_sigma(mean: float, std: float) -> float:
    return math.sqrt(math.log1p((std / mean) ** 2))


def clipped_moment(power: int, location: float, sigma: float, lower: float, upper: float) -> float:
    """Return ``E[clip(X, lower, upper)**power]`` for lognormal X with log-mean `location` and log-std `sigma`."""

    def normal_cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    low = (math.log(lower) - location) / sigma
    shift = power * sigma
    moment = math.exp(power * location + 0.5 * shift * shift)
    if math.isinf(upper):
        inside = moment * (1.0 - normal_cdf(low - shift))
        return lower**power * normal_cdf(low) + inside
    high = (math.log(upper) - location) / sigma
    inside = moment * (normal_cdf(high - shift) - normal_cdf(low - shift))
    return lower**power * normal_cdf(low) + inside + upper**power * (1.0 - normal_cdf(high))


@lru_cache(maxsize=65536)
def _location(mean: float, sigma: float, lower: float, upper: float) -> float:
    """Return the log-mean for which the clipped lognormal has `mean`, by Newton's method inside a shrinking bracket."""
    low, high = math.log(lower) - 10.0 * sigma - 1.0, math.log(mean) + 12.0 * sigma + 1.0
    if not math.isinf(upper):
        high = max(high, math.log(upper) + 10.0 * sigma)
    location = math.log(mean) - 0.5 * sigma * sigma
    for _ in range(100):
        excess = clipped_moment(1, location, sigma, lower, upper) - mean
        if excess < 0:
            low = location
        else:
            high = location
        # The derivative is the mean's share from inside the bounds.
        slope = _inside_mean(location, sigma, lower, upper)
        following = location - excess / slope if slope > 0.0 else low
        if not low < following < high:
            following = 0.5 * (low + high)
        if abs(following - location) <= 4e-16 * max(1.0, abs(location)):
            return following
        location = following
    return location


def _inside_mean(location: float, sigma: float, lower: float, upper: float) -> float:
    """Return ``E[X; lower < X < upper]`` for lognormal X."""
    low = (math.log(lower) - location) / sigma - sigma
    high = math.inf if math.isinf(upper) else (math.log(upper) - location) / sigma - sigma
    share = 0.5 * (math.erfc(low / math.sqrt(2.0)) - math.erfc(high / math.sqrt(2.0)))
    return math.exp(location + 0.5 * sigma * sigma) * share
