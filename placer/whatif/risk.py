"""How often a planned fleet starves when rates are drawn: Monte Carlo with the twin, whose own error is drawn, too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from placer.files import ProblemFromFile
from placer.plan_document import Plan
from placer.planned_shares import as_planned, planned_indices
from placer.recheck import replica_of
from placer.verify import TwinSettings, simulate_replicas
from placer.whatif.changing import with_workload
from placer.whatif.document import RiskRecord
from placer.whatif.twin_error import load_twin_error
from solvers.limits import Limits
from twin.errors import InputError
from twin.replica import Replica
from twin.workload import Workload

CONFIDENCE = 0.95


@dataclass(frozen=True)
class RiskSettings:
    """What is drawn.

    Attributes
    ----------
    rate_cv, common_cv
        Standard deviation over mean of each adapter's rate by itself, and of a factor on all rates; both lognormal with
        the planned rate as the mean; >= 0.
    num_draws
        Sets of rates, >= 1.
    has_twin_error
        Whether the twin's measured error is part of the risk (`placer.whatif.twin_error`).
    seed
        Of the draws: the same ones for every fleet. Draw number d is simulated with the traffic of seed `seed` + 1 + d.
    """

    rate_cv: float = 0.3
    common_cv: float = 0.1
    num_draws: int = 100
    has_twin_error: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.num_draws < 1:
            raise InputError(f"`draws` must be at least 1. Got {self.num_draws}.", field="draws", value=self.num_draws)
        for name in ("rate_cv", "common_cv"):
            value = getattr(self, name)
            if not 0.0 <= value <= 10.0:
                raise InputError(f"`{name}` must be from 0 to 10. Got {value}.", field=name, value=value)


@dataclass(frozen=True)
class Draw:
    """One state of the world.

    Attributes
    ----------
    factors
        On the rate of each adapter, float64 [A], > 0.
    capacity_factors
        What real GPUs serve over what the twin says, float64 [G], > 0.
    """

    factors: NDArray[np.float64]
    capacity_factors: NDArray[np.float64]


def draws(settings: RiskSettings, *, num_adapters: int, num_gpus: int) -> Iterator[Draw]:
    """Yield the draws; the factors on rates do not depend on the number of GPUs."""
    errors = load_twin_error().capacity_factors if settings.has_twin_error else np.ones(1)
    for number in range(settings.num_draws):
        rates, twin = (
            np.random.default_rng(child) for child in np.random.SeedSequence([settings.seed, number]).spawn(2)
        )
        common = _lognormal(settings.common_cv, rates.standard_normal(1))
        own = _lognormal(settings.rate_cv, rates.standard_normal(num_adapters))
        yield Draw(common * own, errors[twin.integers(len(errors), size=num_gpus)])


def risk_of(made: Plan, problem: ProblemFromFile, settings: RiskSettings, twin: TwinSettings) -> RiskRecord:
    """Simulate the fleet of a plan under drawn rates.

    A GPU that serves less than the twin says, by a factor c, is simulated with 1 / c times the load: exact for a GPU
    whose steps are all slower by the same factor and whose latency limits are not what binds.

    Parameters
    ----------
    made, problem
        A plan with GPUs, and its problem, whose rates are the means of the draws; uncertainty and scenarios of the
        problem are not looked at.
    settings, twin
        What is drawn, and how it is simulated.

    Raises
    ------
    InputError
        When the traffic is a replayed trace.
    """
    workload = problem.workload
    if workload.trace is not None:
        raise InputError(
            "a risk must be of drawn requests. The problem replays a trace.",
            field="trace",
            hint="leave out `replay` in the problem file",
        )
    num_starved, rejected, loads = 0, Counter[str](), []
    for number, draw in enumerate(draws(settings, num_adapters=len(workload.adapters), num_gpus=len(made.gpus))):
        drawn = as_planned(with_workload(problem, _with_rates(workload, draw.factors)), made)
        replicas, limits = _fleet(drawn, made, draw)
        verdicts = simulate_replicas(replicas, limits, replace(twin, seed=settings.seed + 1 + number))
        starved = [gpu.name for index, gpu in enumerate(made.gpus) if not verdicts[index].is_accepted]
        num_starved += bool(starved)
        rejected.update(starved)
        loads.append(sum(_offered_tps(traffic) for traffic, _ in replicas))
    low, high = wilson_interval(num_starved, settings.num_draws)
    worst = max(made.gpus, key=lambda gpu: rejected[gpu.name]).name
    return RiskRecord(
        num_draws=settings.num_draws,
        num_starved=num_starved,
        probability=num_starved / settings.num_draws,
        low=low,
        high=high,
        gpu_share=rejected.total() / (settings.num_draws * len(made.gpus)),
        worst_gpu=worst,
        worst_gpu_starved=rejected[worst],
        mean_load=float(np.mean(loads)) / max(_offered_tps(workload), 1e-12),
    )


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a probability.

    Parameters
    ----------
    successes, trials
        0 <= `successes` <= `trials`, `trials` >= 1.
    confidence
        In (0, 1).

    Notes
    -----
    E. B. Wilson, J. Amer. Statist. Assoc. 22 (1927): those p for which `successes` is within z standard deviations,
    sqrt(p (1 - p) / trials), of its mean.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / trials
    scale = 1.0 + z * z / trials
    center = (share + z * z / (2.0 * trials)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / trials + z * z / (4.0 * trials * trials))
    return (0.0 if successes == 0 else center - half), (1.0 if successes == trials else center + half)


def _fleet(drawn: ProblemFromFile, made: Plan, draw: Draw) -> tuple[list[tuple[Workload, Replica]], list[Limits]]:
    replicas, limits = [], []
    for gpu, factor in zip(made.gpus, draw.capacity_factors, strict=True):
        traffic, replica = replica_of(drawn, gpu)
        replicas.append((traffic.scaled(1.0 / float(factor)), replica))
        limits.append(drawn.limits_of(planned_indices(drawn, gpu)))
    return replicas, limits


def _with_rates(workload: Workload, factors: NDArray[np.float64]) -> Workload:
    adapters = tuple(
        adapter.model_copy(update={"rate_rps": adapter.rate_rps * float(factor)})
        for adapter, factor in zip(workload.adapters, factors, strict=True)
    )
    return replace(workload, adapters=adapters)


def _lognormal(cv: float, normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return lognormal numbers of mean 1 and a standard deviation of `cv`."""
    variance = math.log1p(cv * cv)
    return np.asarray(np.exp(math.sqrt(variance) * normal - 0.5 * variance))


def _offered_tps(workload: Workload) -> float:
    return sum(adapter.offered_tps for adapter in workload.adapters)
