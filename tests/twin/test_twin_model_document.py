"""The tables of docs/twin-model.md that follow from the shipped profiles are those of the shipped profiles."""

from pathlib import Path

import pytest

from benchmarks.document_tables import marked
from benchmarks.twin_accuracy import fit_table, terms_table
from twin.profile import load_profile, shipped_profiles

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "twin-model.md"


def test_the_document_has_the_terms_of_the_shipped_profiles() -> None:
    """Values and intervals of every coefficient, as the benchmark writes them."""
    profiles = [load_profile(name) for name in shipped_profiles()]
    assert marked("terms", terms_table(profiles)) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_document_has_the_fit_errors_of_the_shipped_profiles(name: str) -> None:
    """Errors in the fit and of fits that left a regime out."""
    assert marked(f"fit {name}", fit_table(load_profile(name))) in DOCUMENT.read_text(encoding="utf-8")
