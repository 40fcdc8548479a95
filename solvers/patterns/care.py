"""What stands around a surrogate: a margin on the rates, and a threshold on its probability of starvation."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.surrogate import STARVED_PROBABILITY, InflatedSurrogate, Surrogate, ThresholdSurrogate


@dataclass(frozen=True)
class Care:
    """A surrogate, and how carefully it is believed.

    Attributes
    ----------
    surrogate
        Inside of any margin and threshold.
    factor
        By which the rates are inflated.
    threshold
        Of the probability of starvation.
    """

    surrogate: Surrogate
    factor: float
    threshold: float


def care_of(surrogate: Surrogate) -> Care | None:
    """Return what stands around a surrogate; None where two shifts of the odds are no single threshold."""
    factor, threshold = 1.0, STARVED_PROBABILITY
    while isinstance(surrogate, InflatedSurrogate | ThresholdSurrogate):
        if isinstance(surrogate, InflatedSurrogate):
            factor *= surrogate.factor
        elif threshold == STARVED_PROBABILITY:
            threshold = surrogate.threshold
        else:
            return None
        surrogate = surrogate.surrogate
    return Care(surrogate, factor, threshold)
