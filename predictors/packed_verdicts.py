"""Which GPUs the twin rejects when they are packed to the brim against a surrogate that is believed less and less.

A packer seeks out sets, and numbers of slots, about which the surrogate is too hopeful. What its probabilities are
worth there can therefore not be told from sets that were drawn beforehand: here GPUs are packed, with smaller and
smaller thresholds, and judged as those of plans are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from predictors.errors import PACKED
from predictors.packer import PackedGpu, Packer
from predictors.populations import Population
from predictors.scenarios import draw_scenario
from predictors.surrogate import STARVED_PROBABILITY, Surrogate, ThresholdSurrogate
from twin.hardware import GpuType, load_model
from twin.judging_window import DEFAULT_WARMUP_S, long_enough_s
from twin.parallel import each_in_parallel
from twin.profile import PerformanceProfile
from twin.simulate import simulate_in_detail
from twin.workload import Workload

# Probabilities of starvation below which a GPU is accepted, with each of which one is packed. The first asks the
# surrogate as it is.
THRESHOLDS: tuple[float, ...] = (
    *(STARVED_PROBABILITY, 0.4, 0.3, 0.25, 0.2, 0.16, 0.125, 0.1),
    *(0.08, 0.06, 0.04, 0.025, 0.015, 0.008, 0.003, 0.001),
)
DEFAULT_NUM_GPUS = 400
# What the seeds are for: apart from all that is drawn for data sets (predictors/labelling.py), whatever their seeds.
_POPULATION, _TRAFFIC = 2_000, 2_001


@dataclass(frozen=True)
class GpusPacked:
    """So many GPUs were packed with all thresholds and simulated."""

    done: int
    total: int


@dataclass(frozen=True)
class PackedVerdicts:
    """What the twin says about packed GPUs.

    Attributes
    ----------
    rejected
        bool [N, len(THRESHOLDS)], for N GPUs packed to the brim, in the order of their numbers. False also where a
        threshold leaves no adapter that would be accepted.
    took_all, took_none
        Further GPUs, which say nothing: as it is, the surrogate accepts all adapters that there are, or not one.
    """

    rejected: NDArray[np.bool_]
    took_all: int
    took_none: int


def judge_packed_gpus(
    surrogate: Surrogate,
    profile: PerformanceProfile,
    *,
    num_gpus: int = DEFAULT_NUM_GPUS,
    seed: int = 0,
    workers: int | None = None,
    observer: Callable[[GpusPacked], None] = lambda event: None,  # noqa: ARG005 - nobody watches
) -> PackedVerdicts:
    """Pack GPUs against a surrogate with each of `THRESHOLDS`, and have the twin judge them as it judges plans.

    Parameters
    ----------
    surrogate
        Anything that predicts; asked by several threads at once.
    profile
        That it was distilled from.
    num_gpus
        GPUs to draw, each with adapters and engine settings of its own (`predictors.scenarios`, packed sets); >= 0.
    seed
        Of these draws and of the traffic, >= 0.
    workers
        Threads; ``None``: one per core. The answer does not depend on it.
    observer
        Told about every GPU.
    """
    judged: dict[int, _Judged] = {}
    # Threads: ONNX Runtime and the compiled engine, which take nearly all of the time, release the interpreter lock.
    results = each_in_parallel(
        partial(_judge, surrogate, profile, seed), range(num_gpus), workers=workers, backend="threading"
    )
    with closing(results):
        for number, gpu in results:
            judged[number] = gpu
            observer(GpusPacked(len(judged), num_gpus))
    gpus = [judged[number] for number in range(num_gpus)]
    return PackedVerdicts(
        np.array([gpu.rejected for gpu in gpus if gpu.is_full], dtype=np.bool_).reshape(-1, len(THRESHOLDS)),
        took_all=sum(gpu.num_packed == gpu.num_adapters for gpu in gpus),
        took_none=sum(gpu.num_packed == 0 for gpu in gpus),
    )


@dataclass(frozen=True)
class _Judged:
    """A drawn GPU: adapters that there were, those packed with the first threshold, whether each one was rejected."""

    num_adapters: int
    num_packed: int
    rejected: tuple[bool, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether the surrogate drew a line."""
        return 0 < self.num_packed < self.num_adapters


def packer_of(profile: PerformanceProfile, number: int, *, seed: int) -> Packer:
    """Return drawn GPU `number`: the adapters that a packer may add, in that order, and the engine."""
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)
    generator = np.random.default_rng(np.random.SeedSequence([seed, number], spawn_key=(_POPULATION,)))
    scenario = draw_scenario(load_model(profile.model), gpu, profile, generator=generator, families=(PACKED,))
    return Packer(scenario.population.adapters, scenario.replicas[0])


def _judge(surrogate: Surrogate, profile: PerformanceProfile, seed: int, number: int) -> _Judged:
    packer = packer_of(profile, number, seed=seed)
    gpus = [packer.fill(surrogate)]
    num_adapters, num_packed = len(packer.adapters), 0 if gpus[0] is None else len(gpus[0].members)
    if not 0 < num_packed < num_adapters:
        return _Judged(num_adapters, num_packed)
    gpus += [packer.fill(ThresholdSurrogate(surrogate, threshold)) for threshold in THRESHOLDS[1:]]
    # Few large adapters: several thresholds lead to the same set.
    verdicts = {gpu: gpu is not None and is_rejected(packer, gpu, seed=seed, number=number) for gpu in set(gpus)}
    return _Judged(num_adapters, num_packed, tuple(verdicts[gpu] for gpu in gpus))


def is_rejected(packer: Packer, gpu: PackedGpu, *, seed: int, number: int) -> bool:
    """Return whether the twin rejects a packed GPU at its own rates, with traffic that no other set has.

    Parameters
    ----------
    seed, number
        Of what was drawn.
    """
    population = Population.of([packer.adapters[index] for index in gpu.members])
    horizon_s = long_enough_s(population.total_rps)
    place = (_TRAFFIC, gpu.max_loras, *gpu.members)
    generator = np.random.default_rng(np.random.SeedSequence([seed, number], spawn_key=place))
    simulation = simulate_in_detail(
        Workload(population.adapters),
        packer.replica(gpu),
        horizon_s=horizon_s,
        warmup_s=DEFAULT_WARMUP_S,
        with_adapters=False,
        requests=population.requests(population.total_rps, horizon_s=horizon_s, generator=generator),
    )
    return simulation.report.has_starvation
