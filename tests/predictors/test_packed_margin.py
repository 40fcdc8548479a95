"""Packed GPUs are judged by the twin: repeatable, each for itself, and by what the surrogate accepts."""

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.labelling import LabelSettings, scenario_of
from predictors.packed_margin import MARGINS, GpusPacked, judge_packed_gpus, packer_of
from predictors.surrogate import SurrogateOutput
from tests.predictors.capacity import CapacitySurrogate
from twin.profile import PerformanceProfile

NUM_GPUS = 6


class ScaledCapacity(CapacitySurrogate):
    """A replica with another fixed capacity."""

    def __init__(self, factor: float) -> None:
        self.factor = np.float32(factor)

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Serve `factor` times as much as the other one."""
        # The capacity counts tokens, and no other column.
        return super().predict(np.asarray(features / self.factor, dtype=np.float32))


def test_verdicts_depend_on_neither_workers_nor_company(profile: PerformanceProfile) -> None:
    """A GPU is drawn, packed and simulated for itself; the observer hears of each."""
    events: list[GpusPacked] = []
    alone = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=NUM_GPUS, workers=1, observer=events.append)
    assert events == [GpusPacked(done, NUM_GPUS) for done in range(1, NUM_GPUS + 1)]
    together = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=NUM_GPUS, workers=2)
    fewer = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=NUM_GPUS - 2, workers=2)
    assert alone.rejected.shape[1] == len(MARGINS)
    assert len(alone.rejected) + alone.took_all + alone.took_none == NUM_GPUS
    np.testing.assert_array_equal(together.rejected, alone.rejected)
    np.testing.assert_array_equal(fewer.rejected, alone.rejected[: len(fewer.rejected)])


def test_a_surrogate_that_is_too_hopeful_is_judged_as_with_less_margin(profile: PerformanceProfile) -> None:
    """One that claims a tenth more and is asked with a tenth more packs the same sets, which have the same verdicts."""
    plain = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=NUM_GPUS)
    hopeful = judge_packed_gpus(ScaledCapacity(1.1), profile, num_gpus=NUM_GPUS)
    assert len(plain.rejected) == len(hopeful.rejected) > 0
    np.testing.assert_array_equal(hopeful.rejected[:, MARGINS.index(0.1)], plain.rejected[:, 0])


def test_ten_times_the_capacity_is_rejected_and_a_tenth_of_it_is_not(profile: PerformanceProfile) -> None:
    """The twin says about a GPU what it must: overloaded by far, or nearly idle."""
    told = {}
    for factor in (0.1, 10.0):
        verdicts = judge_packed_gpus(ScaledCapacity(factor), profile, num_gpus=NUM_GPUS)
        assert len(verdicts.rejected)
        told[factor] = verdicts.rejected[:, 0]
    assert not told[0.1].any()
    assert told[10.0].all()


@pytest.mark.parametrize(("factor", "took_all", "took_none"), [(1e9, NUM_GPUS, 0), (1e-9, 0, NUM_GPUS)])
def test_gpus_without_a_line_are_counted_and_left_out(
    profile: PerformanceProfile, factor: float, took_all: int, took_none: int
) -> None:
    """Who accepts everything, or nothing, shows no border."""
    verdicts = judge_packed_gpus(ScaledCapacity(factor), profile, num_gpus=NUM_GPUS)
    assert (verdicts.rejected.shape, verdicts.took_all, verdicts.took_none) == ((0, len(MARGINS)), took_all, took_none)


def test_no_gpus_are_no_work(profile: PerformanceProfile) -> None:
    """Zero is how the calibration is left out."""
    verdicts = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=0)
    assert (verdicts.rejected.shape, verdicts.took_all, verdicts.took_none) == ((0, len(MARGINS)), 0, 0)


def test_what_is_packed_is_in_no_data_set(profile: PerformanceProfile) -> None:
    """With the same seed and number, another population is drawn than for training."""
    for number in range(3):
        trained = scenario_of(profile, number, LabelSettings(seed=5, families=("packed",))).population
        packed = packer_of(profile, number, seed=5)
        assert packed.adapters != trained.adapters
        assert packed.adapters == packer_of(profile, number, seed=5).adapters
        assert packed.adapters != packer_of(profile, number, seed=6).adapters
