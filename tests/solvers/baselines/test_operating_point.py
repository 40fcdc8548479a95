"""Operating points: the published ones, and those derived from a profile."""

from dataclasses import replace

import pytest

from solvers.baselines.operating_point import (
    MEASURED_SHARE,
    PUBLISHED_BACKBONE_TPS,
    PUBLISHED_RANK_TPS,
    backbone_tps,
    rank_tps,
    saturated_step,
)
from solvers.problem import Problem
from tests.solvers.problems import make_adapter, make_problem
from twin.engine import SUPPORTED_RANKS
from twin.profile import shipped_profiles

# ShareGPT's mean lengths, and the number of sequences of the published measurements.
SHAREGPT = make_problem([make_adapter("a", prompt=222.9, output=196.6)], max_num_seqs=2048)


def other_profile(problem: Problem) -> Problem:
    """Return the problem with its profile under another name: nothing is published about it."""
    return replace(problem, profiles=tuple(p.model_copy(update={"name": "mine"}) for p in problem.profiles))


def test_the_published_values_are_of_shipped_profiles() -> None:
    """They are looked up by name."""
    assert set(PUBLISHED_BACKBONE_TPS) == set(PUBLISHED_RANK_TPS) == set(shipped_profiles())


def test_the_published_values_are_used_as_they_are() -> None:
    """Whatever the lengths and settings."""
    short = make_problem([make_adapter("a", prompt=20.0, output=10.0)], max_num_seqs=8)
    assert backbone_tps(short, 0) == 17_814.0
    assert [rank_tps(short, 0, rank) for rank in (8, 16, 32)] == [15_064.0, 14_732.0, 14_496.0]


def test_the_formula_is_near_the_published_values_where_both_exist() -> None:
    """Within 10 % at the published lengths and settings, without adapters and for each rank."""
    unknown = other_profile(SHAREGPT)
    assert backbone_tps(unknown, 0) == pytest.approx(backbone_tps(SHAREGPT, 0), rel=0.1)
    for rank in (8, 16, 32):
        assert rank_tps(unknown, 0, rank) == pytest.approx(rank_tps(SHAREGPT, 0, rank), rel=0.1)


@pytest.mark.parametrize("problem", [SHAREGPT, other_profile(SHAREGPT)])
def test_larger_ranks_never_serve_more_and_adapters_cost(problem: Problem) -> None:
    """The points fall with the rank, also from the published ranks to the others, and are below the backbone's."""
    points = [rank_tps(problem, 0, rank) for rank in SUPPORTED_RANKS]
    assert points == sorted(points, reverse=True)
    assert points[0] < backbone_tps(problem, 0)


def test_a_saturated_step_has_what_the_settings_allow() -> None:
    """`max_num_seqs` binds first for short requests; served tokens are what the requests of a step bring."""
    problem = make_problem([make_adapter("a", prompt=100.0, output=100.0)], max_num_seqs=64)
    step = saturated_step(problem, 0, 16)
    assert step.num_requests == 64
    assert step.served_tps == pytest.approx(64 * 2.0 / step.duration_s)


def test_lengths_without_traffic_are_those_of_the_publication() -> None:
    """An idle workload has no mean lengths."""
    idle = other_profile(make_problem([make_adapter("a", rate_rps=0.0)], max_num_seqs=2048))
    assert saturated_step(idle, 0, None).served_tps == pytest.approx(backbone_tps(idle, 0) / MEASURED_SHARE)
    assert backbone_tps(idle, 0) == pytest.approx(backbone_tps(other_profile(SHAREGPT), 0), rel=1e-6)
