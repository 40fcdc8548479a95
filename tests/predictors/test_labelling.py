"""Labels: what the twin says when it is asked directly, with every seed."""

import math

import numpy as np
import pytest

from predictors.dataset import label_shard
from predictors.features import FEATURE_SCHEMA, adapter_aggregates, build_features, engine_row
from predictors.labelling import (
    LABEL_NAMES,
    MEANS,
    NO_SEARCH,
    ROWS_PER_SEARCH,
    SPREADS,
    STARTS,
    LabelSettings,
    Row,
    _seeds,
    fill_to_border,
    label_near_border,
    label_scenario,
    scenario_of,
    simulate_row,
    summarise,
)
from predictors.scenarios import Scenario
from twin.profile import load_profile
from twin.simulate import simulate
from twin.workload import Workload

PROFILE = load_profile("llama-3.1-8b-h100-64gb")
SETTINGS = LabelSettings(seed=7, num_seeds=2, horizon_s=60.0, warmup_s=10.0)
NUMBERS = range(8)


def filled(number: int) -> Scenario:
    """Return a scenario as its rows were simulated."""
    scenario = scenario_of(PROFILE, number, SETTINGS)
    return fill_to_border(scenario, number, SETTINGS) if scenario.is_packed else scenario


@pytest.fixture(scope="module")
def labelled() -> dict[int, list[Row]]:
    """Return the rows of a few scenarios."""
    return {number: label_scenario(PROFILE, number, SETTINGS) for number in NUMBERS}


def starting(rows: list[Row]) -> list[Row]:
    """Return the rows whose replica starts."""
    return [row for row in rows if row["memory_verdict"] == STARTS]


def test_a_label_is_what_the_twin_says(labelled: dict[int, list[Row]]) -> None:
    """`simulate` on the row's requests, seed by seed, gives its means, shares and spreads."""
    for number in NUMBERS:
        scenario = filled(number)
        for row in (labelled[number][0], labelled[number][5], labelled[number][16]):
            search, load_rps = int(row["search"]), float(row["load_rps"])
            reports = []
            for index in range(SETTINGS.num_seeds):
                generator = np.random.default_rng(_seeds(SETTINGS, number, 1 + search, int(row["row"]), index))
                trace = scenario.population.requests(load_rps, horizon_s=60.0, generator=generator)
                workload = Workload(adapters=scenario.population.adapters, trace=trace)
                reports.append(simulate(workload, scenario.replicas[search], horizon_s=60.0, warmup_s=10.0, seed=index))
            ratios = [report.throughput_ratio for report in reports]
            assert row["throughput_ratio"] == pytest.approx(np.mean(ratios))
            assert row["throughput_ratio_std"] == pytest.approx(np.std(ratios, ddof=1))
            assert row["starved_share"] == np.mean([report.has_starvation for report in reports])
            assert row["replica_starved_share"] == np.mean([report.is_starved for report in reports])
            assert row["num_starved_adapters"] == np.mean([len(report.starved_adapters) for report in reports])
            assert row["gpu_loads_per_s"] == pytest.approx(np.mean([report.gpu_loads for report in reports]) / 60.0)
            latencies = [report.itl.p95_s for report in reports if report.itl.p95_s is not None]
            assert row["itl_p95_s"] == pytest.approx(np.mean(latencies) if latencies else math.nan, nan_ok=True)


def test_the_features_are_those_of_the_set_at_its_load(labelled: dict[int, list[Row]]) -> None:
    """A planner that asks about this very set sees this very row."""
    for number in NUMBERS:
        scenario = filled(number)
        row = labelled[number][3]
        scale = float(row["load_rps"]) / scenario.population.total_rps
        adapters = [
            adapter.model_copy(update={"rate_rps": adapter.rate_rps * scale})
            for adapter in scenario.population.adapters
        ]
        replica = scenario.replicas[int(row["search"])]
        engine = engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens)
        expected = build_features(adapter_aggregates(adapters).sum(axis=0), engine)[0]
        actual = np.array([row[name] for name in FEATURE_SCHEMA.names], dtype=np.float32)
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_border_divides_a_search(labelled: dict[int, list[Row]]) -> None:
    """`log_border` is the distance in load; far below it nothing starves, far above everything does."""
    near = 0
    for number in NUMBERS:
        for search, num_rows in enumerate(ROWS_PER_SEARCH):
            rows = [row for row in labelled[number] if row["search"] == search]
            assert [row["row"] for row in rows] == list(range(num_rows))
            distances = np.array([row["log_border"] for row in rows], dtype=np.float64)
            if np.isnan(distances).all():
                continue
            borders = [float(row["load_rps"]) / math.exp(float(row["log_border"])) for row in rows]
            assert borders == pytest.approx([borders[0]] * num_rows)
            shares = np.array([row["starved_share"] for row in rows], dtype=np.float64)
            assert (shares[distances < -1.0] < 0.5).all()
            assert (shares[distances > 1.0] > 0.5).all()
            near += int((np.abs(distances) <= 0.15).sum())
    assert near > 0.35 * len(NUMBERS) * sum(ROWS_PER_SEARCH)


def test_a_packed_set_is_full(labelled: dict[int, list[Row]]) -> None:
    """One more adapter starves the first replica, unless there was none; the set itself does not, as it is packed."""
    packed = [number for number in NUMBERS if scenario_of(PROFILE, number, SETTINGS).is_packed]
    assert packed
    for number in packed:
        candidates, scenario = scenario_of(PROFILE, number, SETTINGS), filled(number)
        count = len(scenario.population.adapters)
        assert labelled[number][0]["num_adapters"] == count

        def starves(size: int, number: int = number, candidates: Scenario = candidates) -> bool:
            smaller = candidates.first(size)
            generator = np.random.default_rng(_seeds(SETTINGS, number, 1_000, size))
            trace = smaller.population.requests(smaller.population.total_rps, horizon_s=60.0, generator=generator)
            workload = Workload(adapters=smaller.population.adapters, trace=trace)
            return simulate(workload, smaller.replicas[0], horizon_s=60.0, warmup_s=10.0).has_starvation

        assert count == 1 or not starves(count)
        assert count == len(candidates.population.adapters) or starves(count + 1)


def test_what_does_not_start_has_a_verdict_and_no_labels() -> None:
    """Memory is arithmetic: the row says why, and training leaves it out."""
    scenarios = {number: scenario_of(PROFILE, number, SETTINGS) for number in range(60)}
    number = next(n for n, scenario in scenarios.items() if scenario.unstartable is not None and not scenario.is_packed)
    rows = label_scenario(PROFILE, number, SETTINGS)
    assert len(rows) == sum(ROWS_PER_SEARCH) + 1
    (refused,) = [row for row in rows if row["memory_verdict"] != STARTS]
    assert refused["memory_verdict"] in {"slots_do_not_fit", "no_cache_blocks", "context_does_not_fit"}
    assert (refused["search"], refused["num_seeds"], refused["kv_tokens"]) == (NO_SEARCH, 0, 0.0)
    assert all(math.isnan(float(refused[name])) for name in LABEL_NAMES)
    assert not any(math.isnan(float(row["throughput_ratio"])) for row in starting(rows))


def test_the_seeds_of_a_row_are_different_traffic(labelled: dict[int, list[Row]]) -> None:
    """The spread of a label comes from other arrivals, not from one simulation thrice."""
    row = labelled[0][0]
    reports = simulate_row(
        filled(0), SETTINGS, number=0, search=0, row=int(row["row"]), load_rps=float(row["load_rps"])
    )
    assert len({report.offered_tps for report in reports}) == SETTINGS.num_seeds


def test_one_seed_has_no_spread() -> None:
    """A standard deviation of one value is unknown, not 0."""
    scenario = filled(1)
    row = summarise(
        simulate_row(scenario, SETTINGS, number=1, search=0, row=0, load_rps=scenario.population.total_rps)[:1]
    )
    assert all(math.isnan(row[name]) for name in SPREADS)
    assert not math.isnan(row["throughput_ratio"])
    assert set(row) == {*MEANS, *SPREADS}


def test_a_shard_is_a_pure_function() -> None:
    """Made twice, in any process, it is the same: this is what resuming and clusters rest on."""
    short = LabelSettings(seed=3, num_seeds=1, horizon_s=10.0, warmup_s=2.0, families=("few",))
    first, second = label_shard(PROFILE, short, 2), label_shard(PROFILE, short, 2)
    assert first.equals(second)
    assert sorted(first["scenario"].unique()) == list(range(16, 24))
    assert set(first["family"]) == {"few"}


@pytest.mark.parametrize("number", NUMBERS[:3])
def test_a_row_near_the_border_has_seeds_of_its_own(number: int, labelled: dict[int, list[Row]]) -> None:
    """It lies within 15 % of the border that the search found, and depends on its arguments only."""
    window = (SETTINGS.horizon_s, SETTINGS.warmup_s)
    row = label_near_border(PROFILE, number, SETTINGS, num_seeds=3, window=window)
    assert row == label_near_border(PROFILE, number, SETTINGS, num_seeds=3, window=window)
    assert row["num_seeds"] == 3
    first = next(found for found in labelled[number] if found["search"] == 0)
    border = float(first["load_rps"]) / math.exp(float(first["log_border"]))
    assert abs(math.log(float(row["load_rps"]) / border)) == pytest.approx(abs(float(row["log_border"])))
    assert abs(float(row["log_border"])) <= 0.15
    longer = label_near_border(PROFILE, number, SETTINGS, num_seeds=3, window=(2.0 * window[0], window[1]))
    assert (longer["load_rps"], longer["log_border"]) == (row["load_rps"], row["log_border"])
    assert longer["throughput_tps"] != row["throughput_tps"]
