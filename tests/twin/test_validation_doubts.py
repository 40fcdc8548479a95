"""What is odd about a table of runs is said, with counts; a sound table is not commented on."""

from pathlib import Path
from typing import Any

import pytest

from tests.twin.run_tables import RUN, write_runs
from twin.validation.doubts import names_gpu, origin_warnings, replay_warnings
from twin.validation.runs import RunTable, read_runs

GPUS = {"llama-3.1-8b": "h100-64gb"}
COLUMNS = (*RUN, "gpu", "vllm")


def _table(folder: Path, *rows: dict[str, Any], model: str | None = None) -> RunTable:
    named = [RUN | {"run_id": f"R{number}"} | row for number, row in enumerate(rows)]
    return read_runs(write_runs(folder / "runs.csv", named, columns=COLUMNS), model=model)


def test_a_sound_table_brings_no_warning(tmp_path: Path) -> None:
    """Neither without the columns nor with what the published table has in them."""
    told = {
        "gpu": "NVIDIA 63.43 GiB (H100-64GB custom, MareNostrum5)",
        "vllm": "0.8.5-era fork (0.1.dev6216), V1 engine",
    }
    table = _table(tmp_path, {}, told)
    assert origin_warnings(table, GPUS) == ()
    assert replay_warnings(table.runs, None) == ()
    assert replay_warnings(table.runs, 60.0) == ()


def test_runs_of_another_gpu_or_version_are_counted(tmp_path: Path) -> None:
    """They are replayed all the same: what they are is the user's to know."""
    other = {"gpu": "NVIDIA A100-SXM4-80GB", "vllm": "0.10.1"}
    gpu, version = origin_warnings(_table(tmp_path, other, other, {}), GPUS)
    assert "`gpu` of 2 runs" in gpu
    assert "the profile's (h100-64gb): 'NVIDIA A100-SXM4-80GB' (2)" in gpu
    assert "another version than 0.8.5" in version
    assert "'0.10.1' (2)" in version


def test_rows_of_other_models_are_counted_by_name(tmp_path: Path) -> None:
    """Shipped or not: rows that a choice of the model leaves out are named, and never an error."""
    table = _table(
        tmp_path, {}, {"model": "gemma"}, {"model": "gemma"}, {"model": "qwen-2.5-7b-instruct"}, model="llama-3.1-8b"
    )
    (warning,) = origin_warnings(table, GPUS)
    assert "3 rows of" in warning
    assert "'gemma' (2), 'qwen-2.5-7b-instruct' (1)" in warning


def test_what_is_not_scored_is_counted(tmp_path: Path) -> None:
    """An empty cell is no error; it must not look like a run that was predicted well."""
    table = _table(tmp_path, {"tok_per_s": ""}, {"tok_per_s": "", "starved": ""}, {})
    (warning,) = replay_warnings(table.runs, None)
    assert warning.startswith("Of 3 runs that served")
    assert "`tok_per_s` in 2, `starved` in 1" in warning


def test_a_horizon_shorter_than_the_runs_is_said(tmp_path: Path) -> None:
    """Their start is not what was measured."""
    (warning,) = replay_warnings(_table(tmp_path, {}, {"total_time": 90}).runs, 60.0)
    assert warning.startswith("1 runs are longer (up to 90 s) than the 60 s")


@pytest.mark.parametrize(
    ("text", "gpu", "is_named"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb", True),
        ("NVIDIA A100-SXM4-40GB", "a100-80gb", False),
        ("NVIDIA A100-SXM4-80GB", "h100-80gb", False),
        ("NVIDIA H100 80GB HBM3", "h100-80gb", True),
        ("NVIDIA L40S", "l40s-48gb", True),
        ("NVIDIA L4", "l40s-48gb", False),
        ("H200", "h100-64gb", False),
        ("mygpu", "mygpu", True),
    ],
)
def test_free_text_names_a_gpu(text: str, gpu: str, *, is_named: bool) -> None:
    """As `nvidia-smi` writes them."""
    assert names_gpu(text, gpu) == is_named
