"""The page of error figures says what the tables of the other documents say."""

from pathlib import Path

import pytest

from benchmarks.document_tables import marked, table
from benchmarks.error_figures import DOCS, GROUPS, HEADER, Figure, look_up, rows
from twin.errors import InputError

TABLE = """
<!-- errors: begin -->
| what | twin | rejected | rejected |
| --- | --- | --- | --- |
| **rate**: 7 requests/s | 1.0 | 2 | 3 |
|  | **4.0** | 5 | 6 |
<!-- errors: end -->
"""


def figure(row: tuple[str, ...], column: str, name: str = "errors") -> Figure:
    """Return a figure of the table above."""
    return Figure("something", "page.md", name, row, column, "command")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Return a folder with one document."""
    (tmp_path / "page.md").write_text(TABLE, encoding="utf-8")
    return tmp_path


def test_the_page_is_up_to_date() -> None:
    """A table that is measured anew must not leave the page behind."""
    page = (DOCS / "how-sure.md").read_text(encoding="utf-8")
    assert marked("error figures", table(HEADER, rows())) in page


def test_every_group_has_figures() -> None:
    """An empty group would hide a comparison."""
    assert all(group.figures for group in GROUPS)


@pytest.mark.parametrize(
    ("row", "column", "text"),
    [
        (("rate",), "twin", "1.0"),
        (("rate", "4.0"), "twin", "4.0"),
        (("rate",), "rejected", "2"),
        (("rate",), "rejected#2", "3"),
        (("rate", "4.0"), "rejected#2", "6"),
    ],
)
def test_a_cell_is_found(docs: Path, row: tuple[str, ...], column: str, text: str) -> None:
    """Rows go by their first cells, also where a group is named once; columns by heading and occurrence."""
    assert look_up(figure(row, column), docs) == text


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (figure(("rate",), "twin", "other"), "markers of 'other'"),
        (figure(("rate",), "simulated"), "a column 'simulated'"),
        (figure(("rate",), "rejected#3"), "a column 'rejected#3'"),
        (figure(("load",), "twin"), "a row 'load'"),
    ],
)
def test_what_is_missing_is_named(docs: Path, missing: Figure, message: str) -> None:
    """A benchmark that renames its table is told here."""
    with pytest.raises(InputError, match=message):
        look_up(missing, docs)
