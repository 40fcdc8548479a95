"""The tables of docs/twin-model.md that follow from the shipped profiles are those of the shipped profiles."""

from pathlib import Path

import pytest

from benchmarks.document_tables import marked
from benchmarks.step_terms import NOTHING
from benchmarks.twin_accuracy import fit_table, terms_table
from twin.profile import load_profile, shipped_profiles
from twin.step_time import COEFFICIENT_NAMES
from twin.validation.front_end import FrontEnd

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "twin-model.md"


def test_the_document_has_the_terms_of_the_shipped_profiles() -> None:
    """Values and intervals of every coefficient, as the benchmark writes them."""
    profiles = [load_profile(name) for name in shipped_profiles()]
    assert marked("terms", terms_table(profiles)) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_document_has_the_fit_errors_of_the_shipped_profiles(name: str) -> None:
    """Errors in the fit and of fits that left a regime out."""
    assert marked(f"fit {name}", fit_table(load_profile(name))) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_document_says_what_each_term_is_worth(name: str) -> None:
    """A row per term, in the order of the model, after those without one."""
    lines = _block(f"terms left out {name}")
    assert [f"`{term}`" for term in COEFFICIENT_NAMES] == [row for line in lines if (row := _first(line))[0] == "`"]
    assert _first(lines[2]) == NOTHING


def test_the_document_has_the_front_ends_shipped_times() -> None:
    """Beside the ones that were fitted again."""
    shipped = {cells[0]: cells[1] for line in _block("stalls") if len(cells := line.strip("| ").split(" | ")) == 4}
    front_end = FrontEnd()
    assert shipped["per line"] == f"{1e6 * front_end.label_s:.3g} µs"
    assert shipped["per adapter name"] == f"{1e6 * front_end.label_name_s:.3g} µs"
    assert shipped["wait"] == f"{front_end.poll_interval_s:.4g} s"


def _block(name: str) -> list[str]:
    """Return the lines between the markers of a table."""
    begin, end = marked(name, []).split("\n")
    return DOCUMENT.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip().splitlines()


def _first(line: str) -> str:
    """Return the first cell of a row."""
    return line.split("|")[1].strip()
