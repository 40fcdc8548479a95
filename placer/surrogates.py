"""Which surrogate a plan uses, with a margin or for a risk."""

from __future__ import annotations

from pathlib import Path

from predictors.catalog import load_surrogate
from predictors.exact import ExactSurrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import STARVED_PROBABILITY, Surrogate, ThresholdSurrogate, unwrapped
from predictors.uncertainty import ChanceConstrainedSurrogate
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType, inflated
from twin.errors import SurrogateError

__all__ = [
    "SURROGATE_TOLERANCE",
    "at_the_quantile",
    "inflated",
    "parts_of",
    "surrogate_for",
    "threshold_for",
    "uses_simulation",
    "with_threshold",
]

# Tolerance of starvation for which surrogates are made.
SURROGATE_TOLERANCE = 0.1
# Horizon of the exact surrogate: shorter than the verification's, because it is asked very often.
EXACT_HORIZON_S = 900.0
EXACT_WARMUP_S = 150.0


def surrogate_for(
    problem: Problem, choice: str, *, horizon_s: float, warmup_s: float, seed: int, workers: int
) -> Surrogate:
    """Return the surrogate that `choice` names for a problem: one, or one per GPU type.

    Parameters
    ----------
    problem
        Its profiles decide which shipped surrogates are meant.
    choice
        ``auto``, ``exact``, or the path of an ONNX file; see `predictors.catalog.load_surrogate`.
    horizon_s, warmup_s, seed, workers
        Of the exact surrogate.

    Raises
    ------
    SurrogateError
        When a file is refused.
    """
    surrogates: list[Surrogate] = [
        load_surrogate(
            choice,
            workload=problem.workload,
            model=problem.model,
            gpu=gpu_type,
            engine=problem.engine,
            profile=profile,
            horizon_s=horizon_s,
            warmup_s=warmup_s,
            seed=seed,
            workers=workers,
            starvation_tolerance=problem.limits.starvation_tolerance,
        )
        for gpu_type, profile in zip(problem.gpu_types, problem.profiles, strict=True)
    ]
    return surrogates[0] if len(surrogates) == 1 else SurrogatePerGpuType(tuple(surrogates))


class SurrogateChoice:
    """The surrogate that somebody chose, for a problem and for others that are made of its adapters.

    Parameters
    ----------
    choice
        See `surrogate_for`; or a surrogate.
    seed, workers
        Of the exact surrogate.
    """

    def __init__(self, choice: str | Path | Surrogate, *, seed: int, workers: int) -> None:
        self._choice = choice
        self._seed = seed
        self._workers = workers
        self._last: tuple[Problem, Surrogate] | None = None

    def of(self, problem: Problem) -> Surrogate:
        """Return the surrogate for a problem, which is not merged.

        Raises
        ------
        SurrogateError
            When a file is refused, or a surrogate that was made for the adapters of another problem is given.
        """
        if self._last is not None and (problem is self._last[0] or not self._knows_members(*self._last)):
            return self._last[1]
        self._last = problem, self._made_for(problem)
        return self._last[1]

    def _made_for(self, problem: Problem) -> Surrogate:
        if isinstance(self._choice, str | Path):
            return surrogate_for(
                problem,
                str(self._choice),
                horizon_s=EXACT_HORIZON_S,
                warmup_s=EXACT_WARMUP_S,
                seed=self._seed,
                workers=self._workers,
            )
        if self._last is not None:
            raise SurrogateError(
                "a surrogate that looks at the adapters of a set must be made for the shares of divided adapters. Got "
                f"{type(unwrapped(self._choice)).__name__}, made for adapters that are whole.",
                field="surrogate",
                hint="give its name instead, such as `exact`",
            )
        return self._choice

    @staticmethod
    def _knows_members(problem: Problem, surrogate: Surrogate) -> bool:
        return FeasibilityModel(problem, surrogate).uses_members


def with_threshold(surrogate: Surrogate, threshold: float) -> Surrogate:
    """Return a surrogate that is taken to accept what has a probability of starvation below `threshold`, (0, 0.5]."""
    if threshold == STARVED_PROBABILITY:
        return surrogate
    if isinstance(surrogate, SurrogatePerGpuType):
        return SurrogatePerGpuType(tuple(ThresholdSurrogate(part, threshold) for part in surrogate.surrogates))
    return ThresholdSurrogate(surrogate, threshold)


def at_the_quantile(surrogate: Surrogate, problem: Problem) -> Surrogate:
    """Return a surrogate that is asked about the loads that a problem's uncertain rates may reach; itself without."""
    if problem.uncertainty is None:
        return surrogate
    if isinstance(surrogate, SurrogatePerGpuType):
        parts = tuple(ChanceConstrainedSurrogate(part, problem.uncertainty) for part in surrogate.surrogates)
        return SurrogatePerGpuType(parts)
    return ChanceConstrainedSurrogate(surrogate, problem.uncertainty)


def careful(surrogate: Surrogate, problem: Problem, *, threshold: float, margin: float) -> Surrogate:
    """Return a surrogate as solvers ask it about a problem: with threshold, margin, and its uncertain rates."""
    return at_the_quantile(inflated(with_threshold(surrogate, threshold), 1.0 + margin), problem)


def threshold_for(surrogate: Surrogate, risk: float) -> float:
    """Return the threshold that keeps the risk of a rejected GPU at `risk` for each part of a surrogate.

    The twin itself needs none: 0.5.

    Raises
    ------
    SurrogateError
        When a part has no threshold for that risk.
    """
    thresholds = [STARVED_PROBABILITY]
    for part in parts_of(surrogate):
        if isinstance(part, OnnxSurrogate):
            thresholds.append(part.threshold_for(risk))
        elif not isinstance(part, ExactSurrogate):
            raise SurrogateError(
                f"a threshold for a risk must come from a surrogate's file. {type(part).__name__} has none.",
                field="risk",
                value=risk,
                hint="give a margin on the rates instead",
            )
    return min(thresholds)


def parts_of(surrogate: Surrogate) -> tuple[Surrogate, ...]:
    """Return the surrogates that answer: inside of any margin and threshold, and of each GPU type."""
    inner = unwrapped(surrogate)
    if isinstance(inner, SurrogatePerGpuType):
        return tuple(part for own in inner.surrogates for part in parts_of(own))
    return (inner,)


def uses_simulation(surrogate: Surrogate) -> bool:
    """Return whether a question to the surrogate may cost a simulation."""
    return any(isinstance(part, ExactSurrogate) for part in parts_of(surrogate))
