"""docs/configuration.md has a table for every shipped model, and on measured runs those of the benchmark."""

from pathlib import Path

import pytest

from benchmarks.configuration_accuracy import METHODS
from predictors.optimum import STARVATION_TESTS
from twin.profile import shipped_profiles

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def _rows(name: str) -> dict[str, list[str]]:
    """Return the cells of a table of the document by their first one."""
    text = DOCUMENT.read_text(encoding="utf-8")
    block = text.partition(f"<!-- {name}: begin -->")[2].partition(f"<!-- {name}: end -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.strip().splitlines()]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_model_has_its_errors(name: str) -> None:
    """For both tests of starvation and every method, from dozens of populations."""
    rows = _rows(f"held out {name}")
    assert list(rows) == [f"{test}: {method}" for test in STARVATION_TESTS for method in METHODS]
    assert all(int(cells[0]) >= 50 for cells in rows.values())


@pytest.mark.parametrize("method", ["twin", "model"])
def test_the_bound_on_measured_runs_is_met(method: str) -> None:
    """The best (adapters, slots) of the measured grids within 5 %, where the paper has 7.2 %."""
    assert len(_rows("measured choices")) == 4
    adapters, slots, *_ = _rows("measured errors")[f"{method} on the grid"]
    assert float(adapters) <= 5.0
    assert float(slots) <= 5.0


def test_the_surrogate_serves_as_many_adapters_and_loses_little() -> None:
    """Of slots whose measured throughputs are a few per cent apart it may take the wrong ones."""
    adapters, _, _, _, lost, _ = _rows("measured errors")["surrogate on the grid"]
    assert float(adapters) <= 5.0
    assert float(lost) <= 1.0


@pytest.mark.xfail(
    strict=True,
    reason="the shipped network takes 192 adapters on 32 slots, which served 89.1 % in an hour: the test asks for 90 %",
)
def test_no_choice_of_the_surrogate_starves() -> None:
    """By the papers' test, which is about the replica."""
    assert _rows("measured errors")["surrogate on the grid"][-1] == "0 of 4"


def test_no_choice_that_plans_would_make_starves() -> None:
    """They ask the surrogate whether the replica or any adapter starves."""
    assert _rows("measured errors")["surrogate, as plans ask, on the grid"][-1] == "0 of 4"
