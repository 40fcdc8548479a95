"""Which surrogate a plan uses, with a margin or for a risk, and how far it sees a GPU from its limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from predictors.catalog import load_surrogate
from predictors.exact import ExactSurrogate
from predictors.features import inflate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import STARVED_PROBABILITY, InflatedSurrogate, Surrogate, ThresholdSurrogate, unwrapped
from predictors.uncertainty import ChanceConstrainedSurrogate
from solvers.acceptance import accepts
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from twin.errors import SurrogateError

# Tolerance of starvation for which surrogates are made.
SURROGATE_TOLERANCE = 0.1
# Load factors at which the headroom is looked for: finely for a learned surrogate, which answers in microseconds.
FINE_FACTORS = np.round(np.arange(0.50, 3.001, 0.01), 2)
COARSE_FACTORS = np.array([1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0])


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


def inflated(surrogate: Surrogate, factor: float) -> Surrogate:
    """Return a surrogate that is asked as if all rates were `factor` times as large; itself for the factor 1."""
    if factor == 1.0:
        return surrogate
    if isinstance(surrogate, SurrogatePerGpuType):
        return SurrogatePerGpuType(tuple(InflatedSurrogate(part, factor) for part in surrogate.surrogates))
    return InflatedSurrogate(surrogate, factor)


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


def headrooms(problem: Problem, surrogate: Surrogate, gpus: Sequence[GpuAssignment]) -> list[float | None]:
    """Return by how much all rates of each GPU may grow until the surrogate refuses it, in one batch per GPU type.

    Parameters
    ----------
    problem, surrogate
        The surrogate is asked without a margin, and whatever the risk.
    gpus
        With their settings.

    Returns
    -------
    For each GPU the largest tried factor up to which all are accepted, minus 1: 0.2 is 20 %, negative is too much
    already; ``None`` where no factor is accepted.
    """
    factors = COARSE_FACTORS if uses_simulation(surrogate) else FINE_FACTORS
    model = FeasibilityModel(problem, surrogate)
    result: list[float | None] = [None] * len(gpus)
    for gpu_type in sorted({gpu.gpu_type for gpu in gpus}):
        mine = [index for index, gpu in enumerate(gpus) if gpu.gpu_type == gpu_type]
        rows = np.concatenate([_scaled_features(model, gpus[index], factors) for index in mine])
        members = [gpus[index].adapters for index in mine for _ in factors] if model.uses_members else None
        sums = np.array([model.aggregates[list(gpus[index].adapters)].sum(axis=0) for index in mine])
        limits = model.limits_of(sums, repeats=len(factors))
        accepted = accepts(limits, model.ask(gpu_type, rows, members)).reshape(len(mine), len(factors))
        for index, row in zip(mine, accepted, strict=True):
            num_accepted = int(np.argmin(row)) if not row.all() else len(factors)
            if num_accepted:
                result[index] = round(float(factors[num_accepted - 1]) - 1.0, 4)
    return result


def _scaled_features(model: FeasibilityModel, gpu: GpuAssignment, factors: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the features of a GPU at each load factor, float32 [len(factors), F]."""
    row = model.aggregates[list(gpu.adapters)].sum(axis=0)[np.newaxis]
    features = model.features(row, model.settings(gpu.gpu_type, gpu.max_loras, gpu.max_lora_rank))
    return np.concatenate([inflate(features, float(factor)) for factor in factors])
