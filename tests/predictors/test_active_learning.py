"""The benchmark of learning from rejections: what it adds up, and what it keeps apart."""

from pathlib import Path

import pytest

from benchmarks.active_learning import (
    HELD_OUT_SEEDS,
    ROUND_SEEDS,
    Outcome,
    first_rows,
    main,
    problems_of,
    total,
)
from predictors.dataset import ROWS_PER_SHARD, load_dataset, sample_dataset
from twin.profile import PerformanceProfile


def test_outcomes_are_added_where_there_is_a_plan() -> None:
    """A surrogate that made no plan for a problem is compared on the others only."""
    outcomes = (Outcome(5, 2, 6, 0, 20), None, Outcome(3, 1, 3, 1, 9))
    assert total(outcomes) == Outcome(8, 3, 9, 1, 29)
    assert total(outcomes, {0, 1}) == outcomes[0]
    assert total(outcomes).rejected_share == "38 % (3 of 8)"


def test_no_problem_is_met_twice(profile: PerformanceProfile) -> None:
    """Rounds and held-out problems have seeds of their own, and other seeds are other problems."""
    drawn = [
        problem.workload
        for first_seed in (ROUND_SEEDS, 2 * ROUND_SEEDS, HELD_OUT_SEEDS)
        for _, problem in problems_of(profile, first_seed=first_seed, count=2, load_gpus=2.0)
    ]
    rates = {tuple(adapter.rate_rps for adapter in workload.adapters) for workload in drawn}
    assert len(rates) == len(drawn)


def test_a_part_of_a_data_set_is_a_data_set(profile: PerformanceProfile, tmp_path: Path) -> None:
    """Whole shards, as few as have the rows that are asked for."""
    sample_dataset(
        profile, rows=2 * ROWS_PER_SHARD, output=tmp_path / "all", seeds=1, horizon_s=60.0, warmup_s=5.0, workers=1
    )
    part = first_rows(tmp_path / "all", tmp_path / "part", ROWS_PER_SHARD - 1)
    everything, some = load_dataset(tmp_path / "all")[0], load_dataset(part)[0]
    assert len(some) == ROWS_PER_SHARD
    assert some.equals(everything.iloc[: len(some)])


def test_rows_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to train on without them."""
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "give a folder of `placer dataset`, or --smoke" in capsys.readouterr().err
