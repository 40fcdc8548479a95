"""docs/measure.md says what the tables of a measurement hold."""

from pathlib import Path

import pytest

from benchmarks.document_tables import marked
from benchmarks.measurement_columns import column_tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "measure.md"


@pytest.mark.parametrize("name", column_tables())
def test_the_document_has_the_columns_of_each_table(name: str) -> None:
    """As `python -m benchmarks.measurement_columns --update docs/measure.md` writes them."""
    assert marked(name, column_tables()[name]) in DOCUMENT.read_text(encoding="utf-8")
