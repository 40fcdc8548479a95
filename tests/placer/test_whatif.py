"""What-if studies: what scenarios make of a problem, cells that are kept and continued, risk, break-even, savings."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.files import ProblemFromFile
from placer.planning import plan
from placer.whatif.break_even import break_even
from placer.whatif.cell import CellTask, PlanSettings, do_cell
from placer.whatif.changing import changed
from placer.whatif.curves import numeric_axis
from placer.whatif.document import Cell, WhatIf
from placer.whatif.figures import study_figures
from placer.whatif.output import write_study
from placer.whatif.ranges import expanded
from placer.whatif.relaxing import relaxations, relaxed
from placer.whatif.risk import RiskSettings, draws, wilson_interval
from placer.whatif.scenario import Scenario, parse_scenarios, read_scenarios
from placer.whatif.sensitivity import savings, sensitivity_scenarios
from placer.whatif.study import Study, StudyProgress, run_study
from placer.whatif.tables import cell_row, study_tables
from placer.whatif.twin_error import MOST_SERVED, load_twin_error
from solvers.constraints import ApartRule, Constraints
from tests.placer.small_fleets import PROFILE, small_data, small_problem
from twin.errors import InputError
from twin.hardware import GpuType

QUICK = PlanSettings(solver="bfd", max_evaluations=500, is_improved=False, horizon_s=120.0, warmup_s=20.0)
CHEAP = {"name": "cheap", "memory_gib": 63.43, "cost_per_hour": 1.0, "profile": PROFILE}


@pytest.fixture
def problem(tmp_path: Path) -> ProblemFromFile:
    """Return twelve adapters that need about two GPUs."""
    return small_problem(tmp_path)


def made(problem: ProblemFromFile, **changes: Any) -> ProblemFromFile:
    """Return the problem of a scenario."""
    return changed(problem, Scenario(**changes), seed=0, folder=Path())


def cell_of(problem: ProblemFromFile, scenario: Scenario) -> Cell:
    """Return the cell of a scenario."""
    return do_cell(CellTask(0, scenario, problem, QUICK, Path()))


def without_seconds(study: WhatIf) -> WhatIf:
    """Return the comparable part of a study."""
    return study.model_copy(update={"cells": tuple(cell.model_copy(update={"seconds": 0.0}) for cell in study.cells)})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5:3:0.25", [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]),
        ("0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("1:2:0.4", [1, 1.4, 1.8]),
        ("4, 1,2:2:1", [4, 1, 2]),
    ],
)
def test_a_range_has_its_decimal_steps(text: str, values: list[float]) -> None:
    """The last value belongs to it where a step ends there, whatever binary fractions do."""
    assert expanded(text) == values


@pytest.mark.parametrize("text", ["", "a", "1:2", "2:1:1", "1:2:0", "1:2:-1", "nan", "1:inf:1", "0:1e9:0.001"])
def test_a_text_that_is_no_range_is_refused(text: str) -> None:
    """Also one that stands for more values than anybody wants."""
    with pytest.raises(ValueError, match="values must"):
        expanded(text)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.1, 10.0))
def test_scaled_rates_offer_so_many_times_the_load(tmp_path_factory: pytest.TempPathFactory, factor: float) -> None:
    """Of every adapter; nothing else changes."""
    problem = small_problem(tmp_path_factory.mktemp("problem"))
    scaled = made(problem, scale_rates=factor)
    for before, after in zip(problem.adapters, scaled.adapters, strict=True):
        assert after.rate_rps == pytest.approx(before.rate_rps * factor)
        assert after.model_copy(update={"rate_rps": before.rate_rps}) == before


def test_rates_that_a_scenario_of_the_problem_gives_are_scaled_too(tmp_path: Path) -> None:
    """Factors follow from the rates; rates of their own would not."""
    cases = [{"name": "day"}, {"name": "sale", "factors": {"a1": 2.0}, "rates_rps": {"a0": 3.0}}]
    problem = made(small_problem(tmp_path, scenarios={"cases": cases}), scale_rates=2.0)
    assert problem.scenarios is not None
    assert [case.rates_rps for case in problem.scenarios.cases] == [{}, {"a0": 6.0}]
    assert problem.scenarios.cases[1].factors == {"a1": 2.0}


def test_fewer_added_adapters_are_the_first_of_more(problem: ProblemFromFile) -> None:
    """So that a sweep over their number adds to the same fleet; names stay unique, and all are copies."""
    few, many = made(problem, add_adapters=5).adapters, made(problem, add_adapters=30).adapters
    assert many[: len(few)] == few
    assert len(many) == len(problem.adapters) + 30
    originals = {adapter.name: adapter for adapter in problem.adapters}
    for copy in many[len(problem.adapters) :]:
        original = originals[copy.name.rpartition("+")[0]]
        assert copy.model_copy(update={"name": original.name}) == original


def test_lengths_burstiness_and_limits_are_changed(problem: ProblemFromFile) -> None:
    """The factors multiply, and no length falls below one token."""
    longer = made(problem, lengths=2.0, output_lengths=1.5, burstiness=3.0, itl_p95_ms=80.0).adapters[0]
    assert (longer.prompt_tokens.mean, longer.output_tokens.mean, longer.gap_cv) == (200.0, 300.0, 3.0)
    assert made(problem, itl_p95_ms=80.0).limits.itl_p95_ms == 80.0
    assert made(problem, prompt_lengths=1e-6).adapters[0].prompt_tokens.effective_mean == 1.0


def test_gpu_types_prices_and_lost_gpus_are_changed(tmp_path: Path) -> None:
    """Types by name or in full; with `max_count`, lost GPUs are taken off it, and a type may go altogether."""
    types = [dict(small_data()["gpu_types"][0], max_count=4), dict(CHEAP, max_count=2)]
    problem = small_problem(tmp_path, gpu_types=types)
    assert [entry.name for entry in made(problem, gpu_type="cheap").gpu_types] == ["cheap"]
    assert made(problem, gpu_type=GpuType(name="own", memory_gib=63.43, profile=PROFILE)).gpu_types[0].name == "own"
    assert [entry.cost_per_hour for entry in made(problem, price={"cheap": 7.0}).gpu_types] == [3.0, 7.0]
    left = made(problem, lose_gpus={"h100-64gb": 1, "cheap": 2})
    assert [(entry.name, entry.max_count) for entry in left.gpu_types] == [("h100-64gb", 3)]
    assert len(left.profiles) == 1


def test_another_model_gets_its_own_profile(problem: ProblemFromFile) -> None:
    """The shipped one of the model for the same memory."""
    other = made(problem, model="qwen2.5-7b")
    assert (other.model.name, other.profiles[0].name) == ("qwen2.5-7b", "qwen2.5-7b-h100-64gb")


@pytest.mark.parametrize(
    ("changes", "field", "fragment"),
    [
        ({"drop_adapters": ("nobody",)}, "drop_adapters", "'nobody'"),
        ({"drop_adapters": ("*",)}, "drop_adapters", "must leave an adapter"),
        ({"gpu_type": "b200"}, "gpu_type", "h100-64gb"),
        ({"price": {"b200": 2.0}}, "price", "'b200'"),
        ({"lose_gpus": {"b200": 1}}, "lose_gpus", "'b200'"),
        ({"model": "gpt-9"}, "model", "gpt-9"),
        ({"relax": "limits.ttft_p95_ms"}, "relax", "limits.starvation_tolerance"),
        ({"prompt_lengths": 1e6}, "adapters.0.prompt_tokens", "longest sequence"),
        ({"itl_p95_ms": 0.1}, "limits.itl_p95_ms", "milliseconds"),
    ],
)
def test_a_scenario_that_does_not_fit_the_problem_says_so(
    problem: ProblemFromFile, changes: dict[str, Any], field: str, fragment: str
) -> None:
    """With the field; the cell of it is a row with the reason, and the study goes on."""
    with pytest.raises(InputError) as caught:
        made(problem, **changes)
    assert caught.value.field == field
    assert fragment in caught.value.message + (caught.value.hint or "")
    cell = cell_of(problem, Scenario(**changes))
    assert (cell.status, cell.reason) == ("failed", caught.value.message)


@pytest.mark.parametrize(
    ("data", "field", "fragment"),
    [
        ({"grid": {"scale_rates": [1, -2]}}, "grid.scale_rates.1", "above 0"),
        ({"grid": {"scale_rates": "1:2"}}, "grid.scale_rates", "FIRST:LAST:STEP"),
        ({"grid": {"scale_rate": [1]}}, "grid.scale_rate", "scale_rates"),
        ({"grid": {"gpu_type": [{"name": "own"}]}}, "grid.gpu_type.0.memory_gib", "must be given"),
        ({"grid": {"lose_gpus": [{"own": 0.5}]}}, "grid.lose_gpus.0.own", "whole number"),
        ({"cases": [{"scale_rates": 2}]}, None, "`name`"),
        ({"cases": [{"name": "a"}, {"name": "a"}]}, None, "'a'"),
        ({"schema_version": 2}, "schema_version", "1"),
        ([], None, "mapping"),
    ],
)
def test_a_bad_file_of_scenarios_is_refused(data: Any, field: str | None, fragment: str) -> None:
    """File, field and value are named."""
    with pytest.raises(InputError) as caught:
        parse_scenarios(data, "scenarios.yaml")
    assert (caught.value.field, caught.value.file) == (field, "scenarios.yaml")
    assert fragment in caught.value.message + (caught.value.hint or "")


def test_a_file_of_scenarios_is_a_product_and_cases(tmp_path: Path) -> None:
    """Ranges and lists are the same; what is no change is none."""
    file = tmp_path / "scenarios.yaml"
    file.write_text(
        "grid: {scale_rates: '1:2:1', gpu_type: [h100-64gb, {name: own, memory_gib: 24}]}\n"
        "cases: [{name: launch, scale_rates: 1.5, add_adapters: 0}]\n"
    )
    content = read_scenarios(file)
    labels = [scenario.label for scenario in content.grid.scenarios()]
    assert labels == [
        "gpu_type h100-64gb",
        "gpu_type own",
        "scale_rates 2, gpu_type h100-64gb",
        "scale_rates 2, gpu_type own",
    ]
    assert content.cases[0].changes == {"scale_rates": 1.5}


def test_a_factor_of_one_is_the_plan_of_the_problem_itself(problem: ProblemFromFile) -> None:
    """The same numbers as `placer.plan`, and the scenario is not planned twice."""
    scenarios = (Scenario(scale_rates=1.0), Scenario(scale_rates=2.0))
    study = run_study(problem, Study(scenarios=scenarios), settings=QUICK)
    assert [cell.label for cell in study.cells] == ["as it is", "scale_rates 2"]
    own = plan(problem, solver="bfd", max_evaluations=500, improve=False, horizon_s=120.0, warmup_s=20.0)
    base, doubled = study.cells
    assert (base.status, base.num_gpus, base.cost_per_hour) == (own.verdict, own.num_gpus, own.cost_per_hour)
    assert own.lower_bound is not None
    assert base.lower_bound == own.lower_bound.value
    ratios = [gpu.verification.worst_service_ratio for gpu in own.gpus if gpu.verification is not None]
    assert base.worst_service_ratio == min(ratio for ratio in ratios if ratio is not None)
    assert doubled.lower_bound is not None
    # Only bounds are monotone for certain; what a heuristic finds need not be.
    assert doubled.lower_bound >= own.lower_bound.value
    assert doubled.offered_tps == pytest.approx(2.0 * (base.offered_tps or 0.0))


def test_an_interrupted_study_goes_on_to_the_same_end(problem: ProblemFromFile, tmp_path: Path) -> None:
    """What is kept is not done again, and another study is refused."""
    study = Study(scenarios=tuple(Scenario(scale_rates=factor) for factor in (0.5, 1.5, 2.0)))

    def stop_after_two(progress: StudyProgress) -> None:
        if progress.finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(problem, study, settings=QUICK, output=tmp_path / "out", observer=stop_after_two)
    kept = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(kept) == 2
    contents = [file.read_bytes() for file in kept]
    seen: list[StudyProgress] = []
    again = run_study(problem, study, settings=QUICK, output=tmp_path / "out", observer=seen.append)
    assert [progress.finished for progress in seen] == [2, 3, 4]
    assert [file.read_bytes() for file in kept] == contents
    assert without_seconds(again) == without_seconds(run_study(problem, study, settings=QUICK))
    other = replace(QUICK, seed=1)
    with pytest.raises(InputError, match="goes on with the configuration") as caught:
        run_study(problem, study, settings=other, output=tmp_path / "out")
    assert caught.value.field == "settings"


def test_what_a_scenario_is_not_to_blame_for_is_tried_again(problem: ProblemFromFile, tmp_path: Path) -> None:
    """A solver that refuses constraints is a row, and not kept: the user may install or choose another."""
    problem = replace(problem, constraints=Constraints(apart=(ApartRule(adapters=("a0", "a1")),)))
    refusing = replace(QUICK, solver="greedy")
    study = run_study(problem, Study(scenarios=(Scenario(),)), settings=refusing, output=tmp_path / "out")
    assert [(cell.status, cell.is_transient) for cell in study.cells] == [("failed", True)]
    assert "constraints" in study.cells[0].reason
    assert list((tmp_path / "out" / "cells").iterdir()) == []


def test_a_cell_without_a_plan_says_what_its_problem_asks(problem: ProblemFromFile) -> None:
    """An adapter that no GPU serves alone leaves no plan, but the load that was asked for is known."""
    cell = cell_of(problem, Scenario(scale_rates=1_000.0))
    assert cell.status == "failed"
    assert "fit a GPU alone" in cell.reason
    assert cell.num_adapters == len(problem.adapters)
    assert cell.offered_tps == pytest.approx(1_000.0 * sum(adapter.offered_tps for adapter in problem.adapters))


def test_two_processes_say_what_one_says(problem: ProblemFromFile) -> None:
    """Cells do not depend on each other."""
    study = Study(scenarios=(Scenario(scale_rates=0.5), Scenario(add_adapters=4)))
    alone = run_study(problem, study, settings=QUICK)
    assert without_seconds(run_study(problem, study, settings=QUICK, workers=2)) == without_seconds(alone)


def test_lost_gpus_starve_adapters(problem: ProblemFromFile) -> None:
    """Of two GPUs that are needed one is left: there is no placement, and the twin says who starves on the other."""
    cell = cell_of(problem, Scenario(lose_gpus=1))
    assert cell.loss is not None
    assert cell.loss.gpus_before == {"h100-64gb": 2}
    assert (cell.status, cell.termination, cell.num_gpus) == ("none", "proven", None)
    assert cell.loss.starved_adapters
    assert set(cell.loss.starved_adapters) <= {adapter.name for adapter in problem.adapters}
    assert cell.loss.worst_service_ratio is not None
    assert cell.loss.worst_service_ratio < 0.9
    assert cell_of(problem, Scenario(lose_gpus=2)).status == "failed"


def test_files_hold_what_the_cells_hold(problem: ProblemFromFile, tmp_path: Path) -> None:
    """Parquet, CSV and JSON say the same; failed cells are rows; plots are there."""
    scenarios = (Scenario(scale_rates=0.5), Scenario(gpu_type="none"))
    study = run_study(problem, Study(scenarios=scenarios), settings=QUICK, output=tmp_path / "out")
    names = {path.name for path in write_study(study, tmp_path / "out")}
    assert {"whatif.json", "whatif.csv", "whatif.parquet", "gpus.png", "cost.svg"} <= names
    assert WhatIf.model_validate_json((tmp_path / "out" / "whatif.json").read_bytes()) == study
    table = pd.read_parquet(tmp_path / "out" / "whatif.parquet")
    assert table["label"].tolist() == [cell.label for cell in study.cells]
    assert table["num_gpus"].tolist()[:2] == [cell.num_gpus for cell in study.cells][:2]
    assert table["status"].tolist() == ["accepted", "accepted", "failed"]
    assert pd.isna(table["num_gpus"].iloc[2])
    read = pd.read_csv(tmp_path / "out" / "whatif.csv")
    assert read["change_scale_rates"].tolist()[1] == 0.5
    assert list(read.columns) == list(table.columns) == list(dict.fromkeys(k for c in study.cells for k in cell_row(c)))


def grid_cell(index: int, gpu_type: str, num_gpus: int, price: float, scale: float = 1.0) -> Cell:
    """Return an accepted cell of a fleet of one type."""
    changes = {"gpu_type": gpu_type} | ({} if scale == 1.0 else {"scale_rates": scale})
    return Cell(
        index=index, label=f"{gpu_type} {scale}", changes=changes, status="accepted", num_gpus=num_gpus,
        cost_per_hour=num_gpus * price,
    )  # fmt: skip


@given(
    counts=st.lists(st.integers(1, 200), min_size=2, max_size=4),
    prices=st.lists(st.floats(0.1, 20.0), min_size=4, max_size=4),
)
def test_the_break_even_is_where_the_cheaper_fleet_changes(counts: list[int], prices: list[float]) -> None:
    """Brute force: just below that price its fleet is the cheaper one, just above it the other."""
    cells = [grid_cell(index, f"t{index}", count, prices[index]) for index, count in enumerate(counts)]
    records = break_even(cells)
    assert len(records) == math.comb(len(counts), 2)
    for record, (first, second) in zip(records, itertools.combinations(range(len(counts)), 2), strict=True):
        other_cost = counts[second] * prices[second]
        assert counts[first] * record.break_even_price * (1 - 1e-9) < other_cost
        assert counts[first] * record.break_even_price * (1 + 1e-9) > other_cost
        assert record.price_ratio == pytest.approx(record.break_even_price / record.other_price)
        costs = {f"t{first}": counts[first] * prices[first], f"t{second}": other_cost}
        if record.cheaper is not None:
            assert costs[record.cheaper] == min(costs.values())


def test_break_even_compares_within_a_scenario_only() -> None:
    """Cells without a plan, or of another load, have nothing to be compared with."""
    cells = [
        grid_cell(0, "a", 2, 3.0),
        grid_cell(1, "b", 4, 1.0),
        grid_cell(2, "a", 5, 3.0, scale=2.0),
        grid_cell(3, "b", 8, 1.0, scale=2.0).model_copy(update={"status": "rejected"}),
    ]
    (record,) = break_even(cells)
    assert (record.scenario, record.num_gpus, record.num_other) == ({}, 2, 4)
    assert (record.break_even_price, record.cheaper) == (2.0, "b")


def test_a_break_even_study_plans_each_type_alone(tmp_path: Path) -> None:
    """The same GPU for a third of the price breaks even at that price."""
    problem = small_problem(tmp_path, gpu_types=[*small_data()["gpu_types"], CHEAP])
    study = run_study(problem, Study("break-even", (Scenario(scale_rates=0.5),)), settings=QUICK)
    assert [set(cell.gpus_by_type) for cell in study.cells] == [{"h100-64gb"}, {"cheap"}]
    (record,) = study.break_even
    assert (record.price_ratio, record.break_even_price, record.cheaper) == (1.0, 1.0, "cheap")
    with pytest.raises(InputError, match="two at least"):
        run_study(small_problem(tmp_path), Study("break-even"), settings=QUICK)


def test_the_sensitivity_finds_the_rule_that_costs_a_gpu(tmp_path: Path) -> None:
    """Twelve light adapters fit one GPU; a rule keeps two of them apart, which costs the second."""
    problem = small_problem(tmp_path, total_rps=2.0, constraints={"apart": [{"adapters": ["a0", "a1"]}]})
    study = run_study(problem, Study("sensitivity", num_candidates=2), settings=QUICK)
    best = study.savings[0]
    assert (study.cells[0].num_gpus, best.label, best.gpus) == (2, "without constraints.apart.0", 1)
    # The work bound of the problem as it is would allow one GPU: it knows nothing of the rule.
    assert best.is_within_bound is ((study.cells[0].lower_bound or 0) <= 1)
    assert any(table.title == "Savings" for table in study_tables(study))


def test_the_candidates_are_the_adapters_with_the_most_work(problem: ProblemFromFile) -> None:
    """Then all of a rank, then what can be relaxed."""
    scenarios = sensitivity_scenarios(problem, 3)
    assert [scenario.drop_adapters for scenario in scenarios[:3]] == [("a0",), ("a1",), ("a2",)]
    assert [len(scenario.drop_adapters or ()) for scenario in scenarios[3:5]] == [4, 8]
    assert [scenario.relax for scenario in scenarios[5:]] == list(relaxations(problem))


def test_everything_that_can_be_relaxed_can_be(tmp_path: Path) -> None:
    """Each changes the problem, and is then no longer there to be relaxed, except for what is doubled."""
    problem = small_problem(
        tmp_path,
        limits={"starvation_tolerance": 0.1, "itl_p95_ms": 100.0, "ttft_p95_ms": 5000.0},
        constraints={"together": [{"adapters": ["a0", "a1"]}], "limits": [{"adapters": ["a2"], "itl_p95_ms": 90.0}]},
        engine={"max_num_seqs": 16, "max_loras": 8, "max_lora_rank": 16},
        uncertainty={"rate_cv": 0.2},
        gpu_types=[dict(small_data()["gpu_types"][0], max_count=9)],
    )
    names = list(relaxations(problem))
    assert len(names) == 9
    for name in names:
        other = relaxed(problem, name)
        assert other != problem
        assert len(list(relaxations(other))) == len(names) - (name != "limits.starvation_tolerance")
    assert relaxed(problem, "limits.starvation_tolerance").limits.starvation_tolerance == 0.2


def test_savings_are_sorted_and_say_what_is_proven() -> None:
    """A saving that the lower bound rules out without the change comes from the change."""
    base = grid_cell(0, "a", 7, 2.0).model_copy(update={"lower_bound": 6})
    cells = [base, grid_cell(1, "a", 6, 2.0), grid_cell(2, "a", 5, 2.0), grid_cell(3, "a", 8, 2.0)]
    records = savings(cells)
    assert [(record.gpus, record.is_within_bound) for record in records] == [(2, False), (1, True), (-1, True)]
    assert savings([base.model_copy(update={"status": "rejected"}), *cells]) == ()


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_ends_are_where_the_share_is_z_deviations_off(counts: tuple[int, int]) -> None:
    """The definition of the score interval, at both ends."""
    successes, trials = counts
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0.0 <= low <= share <= high <= 1.0
    for end in (low, high):
        if 0.0 < end < 1.0:
            deviation = math.sqrt(end * (1.0 - end) / trials)
            assert abs(share - end) == pytest.approx(1.959964 * deviation, rel=1e-5)


def test_wilsons_interval_covers() -> None:
    """Exactly: the binomial weight of the outcomes whose interval holds the probability is about 95 %."""
    trials = 60
    for probability in (0.03, 0.1, 0.3, 0.5):
        covered = sum(
            math.comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
            for count in range(trials + 1)
            if wilson_interval(count, trials)[0] <= probability <= wilson_interval(count, trials)[1]
        )
        assert 0.92 < covered < 0.99


def test_draws_have_the_moments_that_were_asked_for() -> None:
    """Mean 1, a cv of sqrt(own^2 + common^2 + their product), and the common part shared by all adapters."""
    sample = [draw.factors for draw in draws(RiskSettings(0.3, 0.2, 4000), num_adapters=8, num_gpus=1)]
    factors = np.array(sample)
    assert factors.mean() == pytest.approx(1.0, abs=0.02)
    assert factors.std() == pytest.approx(math.sqrt(1.09 * 1.04 - 1.0), rel=0.05)
    correlation = np.corrcoef(np.log(factors[:, 0]), np.log(factors[:, 1]))[0, 1]
    assert correlation == pytest.approx(math.log(1.04) / (math.log(1.04) + math.log(1.09)), abs=0.05)


def test_every_fleet_stands_the_same_draws() -> None:
    """Whatever the number of its GPUs; and without the twin's error, GPUs are as the twin says."""
    few, many = (list(draws(RiskSettings(num_draws=5), num_adapters=4, num_gpus=count)) for count in (2, 7))
    for first, second in zip(few, many, strict=True):
        np.testing.assert_array_equal(first.factors, second.factors)
    (only,) = draws(RiskSettings(num_draws=1, has_twin_error=False), num_adapters=4, num_gpus=3)
    np.testing.assert_array_equal(only.capacity_factors, np.ones(3))


def test_the_twins_error_is_that_of_unseen_overloaded_runs() -> None:
    """A distribution of some runs around 1, with what it was computed from."""
    error = load_twin_error()
    factors = error.capacity_factors
    assert len(factors) == len({run.run_id for run in error.runs}) >= 10
    assert 0.9 < factors.min() < 1.0 < factors.max() < 1.1
    assert f"{MOST_SERVED:.0%}" in error.rule
    assert "real_runs.csv" in error.inputs


def test_the_risk_of_a_fleet_is_counted(problem: ProblemFromFile) -> None:
    """Certain rates and no error of the twin: little risk with much room; huge spread: much risk."""
    risk = RiskSettings(rate_cv=0.0, common_cv=0.0, num_draws=4, has_twin_error=False)
    calm = run_study(problem, Study("risk", (Scenario(scale_rates=0.3),), risk, (0.9,)), settings=QUICK)
    assert [cell.label for cell in calm.cells] == ["scale_rates 0.3", "scale_rates 0.3, probability 0.9"]
    wild = run_study(problem, Study("risk", (), replace(risk, common_cv=0.6, num_draws=12), (0.9,)), settings=QUICK)
    records = [cell.risk for cell in (*calm.cells, *wild.cells) if cell.risk is not None]
    assert len(records) == 4
    assert [record.num_starved for record in records[:2]] == [0, 0]
    assert records[0].mean_load == pytest.approx(1.0)
    assert records[2].num_starved > 0
    for record in records:
        assert record.probability == record.num_starved / record.num_draws
        assert record.low <= record.probability <= record.high
    # Planned for more load, and judged by the same draws.
    assert records[3].num_starved <= records[2].num_starved
    assert (wild.cells[1].num_gpus or 0) > (wild.cells[0].num_gpus or 0)


def test_a_study_needs_something_to_ask(problem: ProblemFromFile) -> None:
    """A sweep over nothing, or scenarios where they mean nothing, are refused before anything is planned."""
    with pytest.raises(InputError, match="must have scenarios"):
        run_study(problem, Study())
    with pytest.raises(InputError, match="as it is"):
        run_study(problem, Study("sensitivity", (Scenario(scale_rates=2.0),)))
    with pytest.raises(InputError, match="draws"):
        RiskSettings(num_draws=0)
    with pytest.raises(InputError, match="workers"):
        run_study(problem, Study(scenarios=(Scenario(scale_rates=2.0),)), workers=0)


def test_figures_show_what_changes() -> None:
    """The change with the most values is the axis; each has axes with names."""
    cells = tuple(grid_cell(index, "a", index + 1, 2.0, scale=0.5 * (index + 1)) for index in range(4))
    assert numeric_axis(cells) == "scale_rates"
    assert numeric_axis(cells[:1]) is None
    study = WhatIf(study="break-even", configuration={}, cells=cells, savings=savings(cells))
    figures = dict(study_figures(study))
    assert set(figures) == {"gpus", "cost", "savings"}
    for figure in figures.values():
        assert figure.axes[0].get_xlabel()
    (line, *_) = figures["gpus"].axes[0].lines
    assert np.asarray(line.get_ydata()).tolist() == [1.0, 2.0, 3.0, 4.0]
