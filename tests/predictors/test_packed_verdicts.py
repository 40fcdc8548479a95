"""Packed GPUs are judged by the twin: repeatable, each for itself, and by what the surrogate accepts."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from predictors.features import offered_tps
from predictors.labelling import LabelSettings, scenario_of
from predictors.packed_verdicts import THRESHOLDS, GpusPacked, judge_packed_gpus, packer_of
from predictors.surrogate import SurrogateOutput
from tests.predictors.capacity import CAPACITY_TPS, CapacitySurrogate
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


class DoubtfulCapacity(CapacitySurrogate):
    """A replica that starves with one half at its capacity, and nearly surely or hardly ever far from it."""

    def __init__(self, *, log_odds: float = 0.0) -> None:
        self.log_odds = log_odds

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict log-odds of starvation that grow with the load, and are `log_odds` larger than they should be."""
        excess = np.log(np.maximum(offered_tps(features), 1.0) / CAPACITY_TPS).astype(np.float64)
        probability = expit(8.0 * excess + self.log_odds).astype(np.float32)
        return replace(super().predict(features), starvation_probability=probability)


def test_verdicts_depend_on_neither_workers_nor_company(profile: PerformanceProfile) -> None:
    """A GPU is drawn, packed and simulated for itself; the observer hears of each."""
    events: list[GpusPacked] = []
    alone = judge_packed_gpus(DoubtfulCapacity(), profile, num_gpus=NUM_GPUS, workers=1, observer=events.append)
    assert events == [GpusPacked(done, NUM_GPUS) for done in range(1, NUM_GPUS + 1)]
    together = judge_packed_gpus(DoubtfulCapacity(), profile, num_gpus=NUM_GPUS, workers=2)
    fewer = judge_packed_gpus(DoubtfulCapacity(), profile, num_gpus=NUM_GPUS - 2, workers=2)
    assert alone.rejected.shape[1] == len(THRESHOLDS)
    assert len(alone.rejected) + alone.took_all + alone.took_none == NUM_GPUS
    np.testing.assert_array_equal(together.rejected, alone.rejected)
    np.testing.assert_array_equal(fewer.rejected, alone.rejected[: len(fewer.rejected)])


def test_a_surrogate_that_fears_more_is_judged_as_with_a_smaller_threshold(profile: PerformanceProfile) -> None:
    """One whose odds are nine times as large packs the same sets as the other at 0.1, which have the same verdicts."""
    plain = judge_packed_gpus(DoubtfulCapacity(), profile, num_gpus=NUM_GPUS)
    fearful = judge_packed_gpus(DoubtfulCapacity(log_odds=-float(logit(0.1))), profile, num_gpus=NUM_GPUS)
    assert len(plain.rejected) == len(fearful.rejected) > 0
    np.testing.assert_array_equal(fearful.rejected[:, 0], plain.rejected[:, THRESHOLDS.index(0.1)])


def test_a_smaller_threshold_leaves_fewer_gpus_rejected(profile: PerformanceProfile) -> None:
    """A surrogate with twice the capacity overloads every GPU, unless it is believed only where it is all but sure."""
    hopeful = judge_packed_gpus(DoubtfulCapacity(log_odds=-8.0 * np.log(2.0)), profile, num_gpus=NUM_GPUS)
    assert len(hopeful.rejected)
    assert hopeful.rejected[:, 0].mean() > hopeful.rejected[:, -1].mean()


def test_who_is_always_certain_is_asked_the_same_with_every_threshold(profile: PerformanceProfile) -> None:
    """A probability of 0 or 1, as the twin itself gives it, is below all thresholds or none: one set, one verdict."""
    verdicts = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=NUM_GPUS)
    assert len(verdicts.rejected)
    np.testing.assert_array_equal(verdicts.rejected, np.repeat(verdicts.rejected[:, :1], len(THRESHOLDS), axis=1))


def test_thresholds_fall_from_the_one_of_planning() -> None:
    """The first is what is asked without a risk: what was packed then is what `took_all` is about."""
    assert THRESHOLDS[0] == 0.5
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS), reverse=True)
    assert THRESHOLDS[-1] > 0.0


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
    assert (verdicts.rejected.shape, verdicts.took_all, verdicts.took_none) == (
        (0, len(THRESHOLDS)),
        took_all,
        took_none,
    )


def test_no_gpus_are_no_work(profile: PerformanceProfile) -> None:
    """Zero is how the calibration is left out."""
    verdicts = judge_packed_gpus(CapacitySurrogate(), profile, num_gpus=0)
    assert (verdicts.rejected.shape, verdicts.took_all, verdicts.took_none) == ((0, len(THRESHOLDS)), 0, 0)


def test_what_is_packed_is_in_no_data_set(profile: PerformanceProfile) -> None:
    """With the same seed and number, another population is drawn than for training."""
    for number in range(3):
        trained = scenario_of(profile, number, LabelSettings(seed=5, families=("packed",))).population
        packed = packer_of(profile, number, seed=5)
        assert packed.adapters != trained.adapters
        assert packed.adapters == packer_of(profile, number, seed=5).adapters
        assert packed.adapters != packer_of(profile, number, seed=6).adapters
