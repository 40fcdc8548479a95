"""The interface of surrogates: batched predictions of what a replica would do with an adapter set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES, FeatureSchema, inflate
from twin.errors import SurrogateError

OUTPUT_NAMES: tuple[str, ...] = ("throughput_ratio", "starvation_probability", "throughput_tps", "itl_s", "ttft_s")
# A replica is predicted to starve from this probability on: planning accepts what is below it.
STARVED_PROBABILITY = 0.5


@dataclass(frozen=True)
class SurrogateOutput:
    """Predictions for N rows; all float32 [N], finite.

    Attributes
    ----------
    throughput_ratio
        Throughput over offered load, >= 0; about 1 when all is served.
    starvation_probability
        Probability that the replica or any of its adapters is starved, in [0, 1].
    throughput_tps
        Prompt + output tokens per second of completed requests.
    itl_s, ttft_s
        95th percentiles over the replica of the inter-token latency and of the time to first token, in seconds.
    """

    throughput_ratio: NDArray[np.float32]
    starvation_probability: NDArray[np.float32]
    throughput_tps: NDArray[np.float32]
    itl_s: NDArray[np.float32]
    ttft_s: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.throughput_ratio)


class Surrogate(Protocol):
    """Something that predicts in batches; row i of the answer depends on row i of the question only."""

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        ...

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for `features`, float32 [N, F] in the order of `schema` (N may be 0)."""
        ...


@runtime_checkable
class MemberSurrogate(Protocol):
    """A surrogate that can use more than the features: which adapters are in the set."""

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        ...

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for `features`, float32 [N, F] in the order of `schema` (N may be 0)."""
        ...

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for N sets.

        Parameters
        ----------
        members
            N tuples of indices into the adapters that the surrogate was made with.
        features
            float32 [N, F]; the load and the engine settings to assume for each set.
        """
        ...


@runtime_checkable
class HasDomain(Protocol):
    """A surrogate that knows where it was fitted."""

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row of `features` [N, F] whether it is outside what the surrogate was fitted on, bool [N]."""
        ...


@runtime_checkable
class DeclaresMonotone(Protocol):
    """A surrogate that says whether more is never better.

    Under the same settings, a row of features that is nowhere below another in the load (number of adapters, sums of
    rates and of their squares, of tokens, of burstiness, active adapters, and for every rank the adapters of that rank
    or above) is accepted only if the other is. A smaller `max_lora_rank`, a larger `kv_tokens` or a smaller
    `max_cpu_loras` never hurts, and slots beyond the number of adapters never help. This holds for all rows with no
    more active adapters than adapters, not only for those that are sums of adapters. A false declaration makes proofs
    false. It is all that proofs need: `MONOTONE_SIGNS` says what follows for each feature alone.
    """

    @property
    def is_monotone(self) -> bool:
        """Whether the above holds."""
        ...


# What a declaration of monotony says about each feature alone: 1 where more never helps, -1 where less never does.
# Nothing is said about the slots, or about settings that all GPUs share.
MONOTONE_SIGNS: dict[str, int] = {
    **dict.fromkeys(AGGREGATE_NAMES, 1),
    "max_lora_rank": 1,
    "kv_tokens": -1,
    "max_cpu_loras": 1,
}


class SurrogateWrapper:
    """A surrogate that asks another one.

    Attributes
    ----------
    surrogate
        Who is asked.
    keeps_order
        Whether more is never better for this one whenever that holds for the one inside.
    """

    keeps_order: ClassVar[bool] = True

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate = surrogate

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes: those of the inner surrogate."""
        return self.surrogate.schema


class InflatedSurrogate(SurrogateWrapper):
    """A surrogate with a planning margin: it is asked as if every rate were `factor` times as large.

    The throughput is scaled back, so that it stays the ratio times the load that is really offered.
    """

    def __init__(self, surrogate: Surrogate, factor: float) -> None:
        if not factor > 0.0 or not np.isfinite(factor):
            raise SurrogateError(
                f"the planning margin must be a positive, finite factor on the rates. Got {factor}. 1.0: no margin.",
                field="factor",
                value=factor,
            )
        super().__init__(surrogate)
        self.factor = factor

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts for the inflated load."""
        return self._deflate(self.surrogate.predict(inflate(features, self.factor)))

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts under the inflated load; by features alone if it ignores members."""
        return self._deflate(_ask_about_members(self.surrogate, members, inflate(features, self.factor)))

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row whether the inflated load lies outside the inner surrogate's domain, bool [N]."""
        return outside_domain(self.surrogate, inflate(features, self.factor))

    def _deflate(self, output: SurrogateOutput) -> SurrogateOutput:
        return replace(output, throughput_tps=output.throughput_tps / np.float32(self.factor))


class ThresholdSurrogate(SurrogateWrapper):
    """A surrogate that is believed less: where it says `threshold`, the probability of starvation becomes one half.

    The log-odds of the probability are shifted by those of the threshold, so that the rule of planning, which accepts
    what is below `STARVED_PROBABILITY`, accepts exactly what the inner surrogate gives a probability below the
    threshold; which of two sets is safer stays as it was. A probability of 0 or 1, as the twin itself says, stays what
    it is. All other outputs are those of the inner surrogate.

    Parameters
    ----------
    threshold
        In (0, 0.5], taken as float32; 0.5 changes nothing.

    Raises
    ------
    SurrogateError
        When the threshold is not in that range.
    """

    def __init__(self, surrogate: Surrogate, threshold: float) -> None:
        # Not a number is in no range, and what float32 rounds to 0 is not above it.
        if not 0.0 < threshold <= STARVED_PROBABILITY or np.float32(threshold) == 0.0:
            raise SurrogateError(
                f"the threshold on the probability of starvation must be in (0, {STARVED_PROBABILITY:g}]. "
                f"Got {threshold:g}. {STARVED_PROBABILITY:g}: as it is.",
                field="threshold",
                value=threshold,
            )
        super().__init__(surrogate)
        self.threshold = threshold

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts, with the shifted probability."""
        return self._shift(self.surrogate.predict(features))

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts for N sets; by features alone if it ignores members."""
        return self._shift(_ask_about_members(self.surrogate, members, features))

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row whether it lies outside the inner surrogate's domain, bool [N]."""
        return outside_domain(self.surrogate, features)

    def _shift(self, output: SurrogateOutput) -> SurrogateOutput:
        # Of float32, as the probabilities are: one that equals the threshold is found to equal it.
        threshold = float(np.float32(self.threshold))
        probability = output.starvation_probability.astype(np.float64)
        # With the odds of both written out as products, nothing is divided by 0, and equals stay equal.
        starved, served = probability * (1.0 - threshold), (1.0 - probability) * threshold
        shifted = (starved / (starved + served)).astype(np.float32)
        # A probability next to the threshold must not be rounded to the other side of one half.
        half = np.float32(STARVED_PROBABILITY)
        below = np.minimum(shifted, np.nextafter(half, np.float32(0.0)))
        return replace(
            output, starvation_probability=np.where(probability < threshold, below, np.maximum(shifted, half))
        )


def unwrapped(surrogate: Surrogate) -> Surrogate:
    """Return the surrogate that answers, inside of any margin, threshold and uncertainty."""
    while isinstance(surrogate, SurrogateWrapper):
        surrogate = surrogate.surrogate
    return surrogate


def keeps_order(surrogate: Surrogate) -> bool:
    """Return whether what the surrogate inside declares about more and less also holds for its wrappers."""
    while isinstance(surrogate, SurrogateWrapper):
        if not surrogate.keeps_order:
            return False
        surrogate = surrogate.surrogate
    return True


def declares_monotone(surrogate: Surrogate) -> bool:
    """Return whether the surrogate says that more is never better; margins and thresholds keep that."""
    inner = unwrapped(surrogate)
    return isinstance(inner, DeclaresMonotone) and inner.is_monotone and keeps_order(surrogate)


def _ask_about_members(
    surrogate: Surrogate, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]
) -> SurrogateOutput:
    """Return the predictions for N sets; by features alone if the surrogate ignores members."""
    if isinstance(surrogate, MemberSurrogate):
        return surrogate.predict_members(members, features)
    return surrogate.predict(features)


def outside_domain(surrogate: Surrogate, features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each row of `features` [N, F] whether it is outside the domain; all False without a domain."""
    if isinstance(surrogate, HasDomain):
        return surrogate.outside_domain(features)
    return np.zeros(len(features), dtype=np.bool_)


def require_domain(surrogate: Surrogate, features: NDArray[np.float32]) -> None:
    """Raise SurrogateError if any row of `features` [N, F] is outside the surrogate's domain."""
    outside = outside_domain(surrogate, features)
    if outside.any():
        row = int(np.argmax(outside))
        raise SurrogateError(
            "a surrogate must be asked inside the domain it was fitted on. "
            f"{int(outside.sum())} of {len(features)} rows are outside its domain, the first is row {row}.",
            field="features",
            value=features[row].tolist(),
            hint="verify such sets with the twin, or ask the exact surrogate",
        )


def empty_output() -> SurrogateOutput:
    """Return the predictions for no rows."""
    return SurrogateOutput(*(np.empty(0, dtype=np.float32) for _ in OUTPUT_NAMES))
