"""Readers of tables that users bring: whatever is wrong with a file, the message says which file and what."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twin.calibration.metrics_files import TABLE_COLUMNS, read_metrics_table
from twin.calibration.metrics_series import SampleCollector
from twin.calibration.step_table import read_measurements
from twin.calibration.tables import read_table
from twin.errors import InputError, ProfileError
from twin.tables import read_csv_table, read_parquet_table
from twin.validation.cells import read_cells

NUM_DAMAGED = 60


def _read_metrics(path: Path) -> None:
    read_metrics_table(path, SampleCollector())


def _read_published(path: Path) -> object:
    return read_table(path.parent, path.name)


READERS: dict[str, tuple[Callable[[Path], object], ...]] = {
    "table.parquet": (read_measurements, read_parquet_table, _read_metrics, _read_published),
    "table.csv.gz": (read_measurements, read_csv_table, _read_published),
    "table.csv.bz2": (read_csv_table,),
    "table.csv.xz": (read_csv_table,),
    "table.csv.zip": (read_csv_table,),
}


def _write(path: Path) -> Path:
    """Write a table with columns of several types."""
    numbers = np.random.default_rng(0).random(300)
    columns = dict.fromkeys(TABLE_COLUMNS, numbers) | {"name": "vllm:x", "labels": "{}", "tokens": np.arange(300)}
    frame = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", list(READERS))
def test_a_damaged_or_cut_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    """Never another exception, wherever the damage is; damage to a value alone may go unseen."""
    path = _write(tmp_path / name)
    content = path.read_bytes()
    chance = random.Random(0)  # noqa: S311 - drawn places of damage
    for number in range(NUM_DAMAGED):
        damaged = bytearray(content)
        if number % 2:
            del damaged[chance.randrange(1, len(content)) :]
        else:
            for _ in range(3):
                damaged[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(damaged)
        for read in READERS[name]:
            with contextlib.suppress(InputError, ProfileError):
                read(path)


@pytest.mark.parametrize("name", list(READERS))
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    """As a download that broke off leaves it."""
    path = _write(tmp_path / name)
    content = path.read_bytes()
    for read in READERS[name]:
        path.write_bytes(content)
        read(path)
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises((InputError, ProfileError), match=path.name) as caught:
            read(path)
        assert caught.value.file == str(path)


@pytest.mark.parametrize("read", [read_csv_table, read_measurements, lambda path: read_cells(path, required=())])
def test_a_repeated_column_of_csv_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """Readers rename the second one or lose the first one, and either may have been meant."""
    path = tmp_path / "table.csv"
    path.write_text("run_id,rank, rank\na,8,16\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"`rank` twice") as caught:
        read(path)
    assert (caught.value.file, caught.value.field) == (str(path), "rank")


@pytest.mark.parametrize("read", [read_parquet_table, read_measurements])
def test_a_repeated_column_of_parquet_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """The format allows it."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table([[1], [2]], names=["rank", "rank"]), path)
    with pytest.raises(InputError, match=r"`rank` twice") as caught:
        read(path)
    assert (caught.value.file, caught.value.field) == (str(path), "rank")


def test_numbered_columns_are_no_repeated_ones(tmp_path: Path) -> None:
    """Readers give a repeated column such a name; a file may have it of its own."""
    path = tmp_path / "table.csv"
    path.write_text("rank,rank.1\n8,16\n", encoding="utf-8")
    assert read_csv_table(path).columns == ("rank", "rank.1")


CSV_READERS = (read_csv_table, read_measurements, lambda path: read_cells(path, required=("run_id", "rank")))


@pytest.mark.parametrize("read", CSV_READERS)
@pytest.mark.parametrize(("separator", "name"), [(";", "';'"), ("\t", "a tab"), ("|", r"'\|'")])
def test_another_separator_is_named(tmp_path: Path, read: Callable[[Path], object], separator: str, name: str) -> None:
    """Spreadsheets write what the language of the system asks for, with decimal commas, too."""
    path = tmp_path / "table.csv"
    path.write_text(f"run_id{separator}rank\n1,5{separator}8\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"seems to be separated by {name}") as caught:
        read(path)
    assert caught.value.hint is not None
    assert "commas" in caught.value.hint


@pytest.mark.parametrize("read", CSV_READERS)
def test_rows_with_too_many_cells_are_told_apart_from_damage(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A cell with a comma needs quotes."""
    path = tmp_path / "table.csv"
    for text in ("run_id,rank\na,8,9\n", "run_id,rank\na,8\nb,8,9\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.hint is not None
        assert "quotes around cells with commas" in caught.value.hint


@pytest.mark.parametrize("read", CSV_READERS)
@pytest.mark.parametrize(("text", "message"), [("", "It is empty"), ("\n", "empty|header"), ("run_id,rank\n", "row")])
def test_a_table_without_rows_is_called_so(
    tmp_path: Path, read: Callable[[Path], object], text: str, message: str
) -> None:
    """Which columns it should have had is the smaller problem."""
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "lacks" not in caught.value.message
