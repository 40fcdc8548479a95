"""The best configuration of a grid of measured runs, its border between runs, and how choices are judged by them."""

from pathlib import Path

import pytest

from benchmarks.measured_optimum import Grid, judge_freely, judge_on_grid, read_grids, replayed_best
from predictors.configuration_search import Configuration
from tests.twin.run_tables import RUN, write_runs
from twin.profile import load_profile
from twin.validation.runs import read_runs

# (adapters, slots): tokens/s, goodput; each adapter offers 100 tokens/s.
CELLS = {
    (10, 4): (990.0, 0.99),
    (10, 8): (1_000.0, 1.0),
    (20, 4): (1_900.0, 0.95),
    (20, 8): (1_950.0, 0.975),
    (30, 4): (2_550.0, 0.85),
    (30, 8): (2_400.0, 0.8),
}


def _grid(folder: Path, cells: dict[tuple[int, int], tuple[float, float]]) -> Grid:
    rows = [
        RUN
        | {
            "run_id": f"{adapters}-{slots}",
            "n_served": adapters,
            "slots": slots,
            "rates_counts": f"0.25:{adapters}",
            "tok_per_s": throughput_tps,
            "goodput_ratio": goodput,
            "starved": int(goodput < 0.9),
            "offered_tok_per_s": 100.0 * adapters,
        }
        for (adapters, slots), (throughput_tps, goodput) in cells.items()
    ]
    (grid,) = read_grids(read_runs(write_runs(folder / "runs.csv", rows)).runs)
    return grid


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Return a grid of three numbers of adapters and two of slots."""
    return _grid(tmp_path, CELLS)


def test_the_best_run_is_the_fastest_that_did_not_starve(grid: Grid) -> None:
    """Those within 1 % of it would go to fewer slots; here 2.6 % lie between them."""
    assert grid.measured == Configuration(20, 8, 1_950.0)


def test_equally_good_runs_go_to_fewer_slots(tmp_path: Path) -> None:
    """Within 1 %."""
    assert _grid(tmp_path, CELLS | {(20, 4): (1_940.0, 0.97)}).measured.max_loras == 4


def test_the_border_is_interpolated_between_runs(grid: Grid) -> None:
    """From 0.95 to 0.85, nine tenths are halfway; there the load is served to nine tenths."""
    assert (grid.borders[4].num_adapters, grid.borders[4].max_loras) == (25, 4)
    assert grid.borders[4].throughput_tps == pytest.approx(0.9 * 2_500.0)
    assert grid.borders[8].num_adapters == round(20 + 10 * 0.075 / 0.175)
    assert grid.best_border == grid.borders[4]


def test_where_nothing_starves_the_border_is_the_largest_run(tmp_path: Path) -> None:
    """And choices beyond it count as that many."""
    grid = _grid(tmp_path, {cell: value for cell, value in CELLS.items() if cell[0] < 30})
    assert grid.best_border == Configuration(20, 8, 1_950.0)
    assert judge_freely(grid, (700, 8)).adapters_error == 0.0


def test_choices_are_judged_by_distance_and_by_what_they_lose(grid: Grid) -> None:
    """On the grid and freely; a starved choice has no throughput."""
    wrong = judge_on_grid(grid, Configuration(10, 4, 0.0))
    assert (wrong.adapters_error, wrong.strict_slots_error) == (50.0, 50.0)
    assert wrong.lost == pytest.approx(100.0 * (1.0 - 990.0 / 1_950.0))
    assert judge_on_grid(grid, Configuration(30, 8, 0.0)).lost is None
    free = judge_freely(grid, (24, 4))
    assert free.adapters_error == pytest.approx(4.0)
    assert (free.slots_error, free.strict_slots_error) == (0.0, 0.0)
    assert free.lost == pytest.approx(100.0 * (1.0 - 2_250.0 / 2_250.0), abs=1e-9)
    assert judge_freely(grid, (26, 4)).lost is None
    assert judge_freely(grid, (24, 8)).strict_slots_error == 100.0


@pytest.mark.parametrize(
    ("cell", "snapped"), [((25, 4), (20, 4)), ((20, 7), (20, 8)), ((700, 5), (30, 4)), ((3, 8), (10, 8))]
)
def test_free_choices_come_to_a_run(grid: Grid, cell: tuple[int, int], snapped: tuple[int, int]) -> None:
    """Nearest slots, and no more adapters than were chosen unless fewer were not measured."""
    found = grid.snapped(cell)
    assert (found.num_adapters, found.max_loras) == snapped


def test_slots_that_complete_as_much_are_no_error(tmp_path: Path) -> None:
    """Within 1 % of the best; strictly, they are."""
    grid = _grid(tmp_path, CELLS | {(20, 8): (1_899.0, 0.95), (30, 8): (2_549.0, 0.8497)})
    choice = judge_freely(grid, (25, 8))
    assert (choice.slots_error, choice.strict_slots_error) == (0.0, 100.0)


def test_the_twin_chooses_among_the_measured_runs(data_dir: Path) -> None:
    """On the published runs of the rarest rates it takes as many adapters as were measured, and they are served."""
    grids = read_grids(read_runs(data_dir / "runs" / "real_runs.csv", split="valid").runs)
    assert len(grids) == 4
    (grid,) = [grid for grid in grids if grid.name.startswith("0.05 ")]
    best = replayed_best(grid, load_profile("llama-3.1-8b-h100-64gb"), num_seeds=1, horizon_s=600.0)
    choice = judge_on_grid(grid, best)
    assert choice.adapters_error == 0.0
    assert choice.lost is not None
    assert choice.lost < 2.0
