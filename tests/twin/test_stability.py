"""Replicas whose outcome is a matter of chance: found where they are, and nowhere else."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.twin.test_simulate import make_replica
from twin.errors import InputError
from twin.latency_summary import LatencySummary
from twin.lengths import LengthDistribution
from twin.report import SimulationReport
from twin.simulate import simulate, simulate_in_detail
from twin.stability import _with_backlog, assess_stability, seed_outcome
from twin.stability_report import (
    MOST_CHANGE_FACTOR,
    MOST_RUNNING_FACTOR,
    MOST_THROUGHPUT_FACTOR,
    SeedOutcome,
    SlotUse,
    StabilityReport,
    find_disagreements,
    judge_runs,
)
from twin.workload import Adapter, Workload

PROMPT = LengthDistribution(mean=223, std=247, min=4, max=1024)
OUTPUT = LengthDistribution(mean=196, std=209, min=1, max=1024)
CALM = SeedOutcome(
    seed=0,
    offered_tps=1000.0,
    throughput_ratio=0.99,
    throughput_error=0.001,
    is_starved=False,
    num_starved_adapters=0,
    running_mean=100.0,
    running_error=1.0,
    late_running=(95.0, 100.0, 105.0, 100.0),
    slots=SlotUse(
        taken_share=0.5, num_taken_parts=8, num_free_parts=8, running_while_taken=110.0, running_while_free=90.0
    ),
)
POSITIVE = st.floats(0.01, 1000.0)


def _workload(*, num_adapters: int, total_rps: float) -> Workload:
    """Return adapters of ranks 8 and 16 with three rates, as 4 : 2 : 1."""
    weights = np.resize([4.0, 2.0, 1.0], num_adapters)
    rates = total_rps * weights / weights.sum()
    return Workload(
        tuple(
            Adapter(
                name=f"a{index}",
                rank=16 if index % 2 else 8,
                rate_rps=float(rate),
                prompt_tokens=PROMPT,
                output_tokens=OUTPUT,
            )
            for index, rate in enumerate(rates)
        )
    )


def _assess(workload: Workload, *, slots: int, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> StabilityReport:
    settings: dict[str, Any] = {"horizon_s": 600.0, "warmup_s": 100.0} | changes
    engine = {"max_loras": slots, "max_cpu_loras": 384, "max_num_seqs": 2048, "max_num_batched_tokens": 2048}
    return assess_stability(workload, make_replica(**engine), seeds=seeds, **settings)


def _kinds(report: StabilityReport) -> list[str]:
    return sorted({reason.evidence for reason in report.reasons})


def test_a_second_regime_is_found_though_no_seed_shows_it() -> None:
    """128 slots and 384 adapters: a real replica at such a load ran twice as many requests as a calm one."""
    report = _assess(_workload(num_adapters=384, total_rps=7.5), slots=128)
    assert (report.is_metastable, _kinds(report)) == (True, ["two regimes"])
    assert report.running_factor == pytest.approx(1.0, abs=0.1)
    assert report.after_backlog is not None
    calm = next(run for run in report.runs if run.seed == report.after_backlog.seed)
    assert report.after_backlog.late_running_mean > 1.8 * calm.late_running_mean
    assert "after a backlog" in str(report.reasons[0])


@pytest.mark.parametrize("total_rps", [2.0, 7.5])
def test_a_run_that_is_known_is_not_simulated_again(total_rps: float) -> None:
    """The report is the same, whichever of the seeds the backlog is added to; only the other seeds are heard of."""
    workload, heard = _workload(num_adapters=96, total_rps=total_rps), []
    replica = make_replica(max_loras=32, max_cpu_loras=384, max_num_seqs=2048, max_num_batched_tokens=2048)
    first = simulate_in_detail(workload, replica, horizon_s=600.0, warmup_s=100.0, seed=0)
    anew = _assess(workload, slots=32)
    reused = _assess(workload, slots=32, known=seed_outcome(first), on_report=lambda report: heard.append(report.seed))
    assert reused == anew
    assert heard == [1]


def test_a_change_of_regimes_within_a_run_is_found() -> None:
    """96 slots and 320 adapters: with this seed all slots fill somewhere in the middle, and stay taken."""
    report = _assess(_workload(num_adapters=320, total_rps=7.0), slots=96, seeds=(2,), horizon_s=1800, warmup_s=300)
    assert any("it changes between them with 1 of 1 seeds" in reason.detail for reason in report.reasons)
    slots = report.runs[0].slots
    assert slots is not None
    assert slots.running_while_taken is not None
    assert slots.running_while_free is not None
    assert 0.1 < slots.taken_share < 0.9
    assert slots.running_while_taken > MOST_CHANGE_FACTOR * slots.running_while_free


@pytest.mark.parametrize(
    ("num_adapters", "slots", "total_rps"),
    [
        pytest.param(384, 128, 3.0, id="calm"),
        pytest.param(384, 128, 12.0, id="all slots taken"),
        pytest.param(384, 8, 22.0, id="overloaded"),
        pytest.param(48, 16, 4.0, id="few slots, taken now and then"),
        pytest.param(4, 4, 0.3, id="almost idle"),
    ],
)
def test_other_replicas_are_stable(num_adapters: int, slots: int, total_rps: float) -> None:
    """Far from a border nothing is a matter of chance, except which of many adapters starve."""
    report = _assess(_workload(num_adapters=num_adapters, total_rps=total_rps), slots=slots)
    assert (report.is_metastable, report.reasons) == (False, ())
    assert report.num_starved in {0, len(report.runs)}


def test_the_first_seed_replays_a_trace_and_the_others_move_it_a_little() -> None:
    """A trace has no other draw: what can vary is by how little its clients' clocks were off."""
    drawn = _workload(num_adapters=8, total_rps=4.0)
    requests = drawn.requests(horizon_s=200.0)
    reports: list[SimulationReport] = []
    workload = replace(drawn, trace=requests, trace_duration_s=200.0)
    window: dict[str, Any] = {"horizon_s": 200.0, "warmup_s": 20.0}
    report = _assess(workload, slots=8, seeds=(7, 8), **window, on_report=reports.append)
    engine = {"max_loras": 8, "max_cpu_loras": 384, "max_num_seqs": 2048, "max_num_batched_tokens": 2048}
    alone = simulate(workload, make_replica(**engine), seed=7, **window)
    # Latencies of single adapters are left out: nobody asks for them, and they take most of a report's time.
    nothing = {"ttft": LatencySummary(), "itl": LatencySummary()}
    without = tuple(adapter.model_copy(update=nothing) for adapter in alone.adapters)
    assert reports[0] == alone.model_copy(update={"adapters": without})
    assert reports[1].running_mean != reports[0].running_mean
    assert reports[1].requests_arrived == pytest.approx(reports[0].requests_arrived, abs=10)
    assert report.varies == "arrivals by 1 s, load order"
    assert report.seeds == (7, 8)


def test_the_same_question_has_the_same_answer() -> None:
    """Also with the readable engine."""
    workload = _workload(num_adapters=6, total_rps=2.0)
    window: dict[str, Any] = {"horizon_s": 60.0, "warmup_s": 10.0}
    assert _assess(workload, slots=2, **window) == _assess(workload, slots=2, **window, engine="simpy")


def test_without_requests_there_is_no_backlog() -> None:
    """An idle replica is stable."""
    workload = _workload(num_adapters=2, total_rps=0.0)
    report = _assess(workload, slots=1)
    assert (report.after_backlog, report.is_metastable, report.running_factor) == (None, False, None)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_be_different(seeds: tuple[int, ...]) -> None:
    """One simulation twice would look like an agreement."""
    with pytest.raises(InputError, match="all different") as caught:
        _assess(_workload(num_adapters=2, total_rps=1.0), slots=1, seeds=seeds)
    assert caught.value.field == "seeds"


def test_a_report_with_stability_survives_json() -> None:
    """It is part of what `placer simulate` writes."""
    workload = _workload(num_adapters=4, total_rps=1.0)
    report = simulate(workload, make_replica(), horizon_s=60.0)
    assert report.stability is None
    full = report.model_copy(update={"stability": _assess(workload, slots=2, horizon_s=60.0, warmup_s=0.0)})
    assert SimulationReport.model_validate_json(full.model_dump_json()) == full


@given(st.floats(0.0, 1.0), st.integers(0, 3))
def test_a_backlog_is_the_first_requests_once_more(share: float, seed: int) -> None:
    """They wait at the start; everything else arrives as before."""
    requests = _workload(num_adapters=3, total_rps=1.0).requests(horizon_s=40.0, seed=seed)
    count = int(np.ceil(share * len(requests)))
    after = _with_backlog(requests, share)
    assert after.arrival_ns[:count].tolist() == [0] * count
    assert after.arrival_ns[count:].tolist() == requests.arrival_ns.tolist()
    for column in ("adapter", "prompt_tokens", "output_tokens"):
        values, before = getattr(after, column).tolist(), getattr(requests, column).tolist()
        assert Counter(values) == Counter(before) + Counter(before[:count])


@given(
    st.lists(st.tuples(st.booleans(), POSITIVE, POSITIVE), min_size=1, max_size=5), st.randoms(use_true_random=False)
)
def test_seeds_disagree_by_the_factors(outcomes: list[tuple[bool, float, float]], random: Any) -> None:
    """Without errors it is the extremes that count, in whatever order the seeds come."""
    starved, ratios, means = (list(column) for column in zip(*outcomes, strict=True))
    expected = set()
    if len(set(starved)) > 1:
        expected.add("verdict flips")
    if max(ratios) > MOST_THROUGHPUT_FACTOR * min(ratios):
        expected.add("throughput differs")
    if max(means) > MOST_RUNNING_FACTOR * min(means):
        expected.add("two regimes")
    found = find_disagreements(starved=starved, throughput_ratios=ratios, running_means=means)
    assert {entry.evidence for entry in found} == expected
    random.shuffle(outcomes)
    starved, ratios, means = (list(column) for column in zip(*outcomes, strict=True))
    assert find_disagreements(starved=starved, throughput_ratios=ratios, running_means=means) == found


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=5), st.floats(0.0, 50.0))
def test_errors_and_loads_only_ever_excuse(outcomes: list[tuple[float, float]], error: float) -> None:
    """Equal loads change nothing, larger errors never add a disagreement, proportional requests are none."""
    means, loads = (list(column) for column in zip(*outcomes, strict=True))
    plain = find_disagreements(starved=[], throughput_ratios=[], running_means=means)
    equal = find_disagreements(starved=[], throughput_ratios=[], running_means=means, offered_tps=[3.0] * len(means))
    unsure = find_disagreements(
        starved=[], throughput_ratios=[], running_means=means, running_errors=[error] * len(means)
    )
    assert equal == plain
    assert set(unsure) <= set(plain)
    assert find_disagreements(starved=[], throughput_ratios=[], running_means=loads, offered_tps=loads) == ()


def _slots(**changes: float | None) -> SlotUse:
    assert CALM.slots is not None
    return CALM.slots.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        pytest.param({}, [], id="equal"),
        pytest.param({"is_starved": True}, ["verdict flips"], id="replica starves"),
        pytest.param({"num_starved_adapters": 2}, ["verdict flips"], id="adapters starve"),
        pytest.param({"throughput_ratio": 0.94}, ["throughput differs"], id="throughput"),
        pytest.param({"throughput_ratio": 0.95}, [], id="throughput almost equal"),
        pytest.param({"throughput_ratio": 0.94, "throughput_error": 0.02}, [], id="throughput unsure"),
        pytest.param({"running_mean": 126.0}, ["two regimes"], id="running"),
        pytest.param({"running_mean": 126.0, "running_error": 7.0}, [], id="running unsure"),
        pytest.param({"running_mean": 126.0, "offered_tps": 1100.0}, [], id="running more is asked"),
        pytest.param({"slots": _slots(running_while_taken=150.0)}, ["two regimes"], id="change"),
        pytest.param({"slots": _slots(running_while_taken=55.0)}, ["two regimes"], id="change downwards"),
        pytest.param({"slots": _slots(running_while_taken=139.0)}, [], id="change small"),
        pytest.param({"slots": _slots(running_while_taken=150.0, num_free_parts=1)}, [], id="change short"),
        pytest.param({"slots": _slots(running_while_taken=None, num_taken_parts=0)}, [], id="never taken"),
        pytest.param({"slots": None}, [], id="a slot for every adapter"),
    ],
)
def test_evidence_is_named(changes: dict[str, Any], evidence: list[str]) -> None:
    """A second seed that differs from a calm one by one thing."""
    other = CALM.model_copy(update={"seed": 1} | changes)
    for runs in itertools.permutations((CALM, other)):
        assert [reason.evidence for reason in judge_runs(runs, None)] == evidence


@pytest.mark.parametrize(
    ("late_running", "is_evidence"),
    [
        pytest.param((140.0, 140.0, 140.0, 140.0), True, id="stays"),
        pytest.param((140.0, 140.0, 100.0, 100.0), True, id="stays for long"),
        pytest.param((140.0, 100.0, 100.0, 100.0), False, id="is served"),
        pytest.param((130.0, 130.0, 130.0, 130.0), False, id="a little more"),
        pytest.param((60.0, 60.0, 60.0, 60.0), False, id="fewer"),
    ],
)
def test_what_a_backlog_leaves_behind_is_evidence(late_running: tuple[float, ...], *, is_evidence: bool) -> None:
    """More running requests, long after it should have been served, than without it at any time."""
    found = judge_runs([CALM], CALM.model_copy(update={"late_running": late_running}))
    assert [reason.evidence for reason in found] == (["two regimes"] if is_evidence else [])
