"""Tables of measured runs: what is read from them, which rows are chosen, and what is said about bad ones."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from tests.twin.run_tables import RUN, measured_run, out_of_memory_row, write_published, write_runs
from twin.errors import InputError
from twin.validation.published import read_published
from twin.validation.quantities import Quantities
from twin.validation.runs import REQUIRED_COLUMNS, read_runs


def test_a_row_becomes_settings_traffic_and_measurements(tmp_path: Path) -> None:
    """Every column that a replay or a score needs arrives under our names."""
    run = measured_run(tmp_path)
    assert (run.run_id, run.model, run.status, run.split) == ("R1", "llama-3.1-8b", "ok", "valid")
    assert (run.engine.vllm_version, run.engine.max_loras, run.engine.max_cpu_loras) == ("0.8.5", 2, 4)
    assert (run.engine.max_lora_rank, run.engine.max_num_seqs, run.engine.max_num_batched_tokens) == (16, 256, 2048)
    assert run.engine.gpu_memory_utilization == 0.9
    assert run.traffic is not None
    assert (run.traffic.rates_rps, run.traffic.ranks) == ((0.5, 1.0, 1.0, 1.0), (8, 16))
    assert (run.traffic.mean_prompt_tokens, run.traffic.mean_output_tokens) == (222.7, 196.1)
    assert run.measured == Quantities(**{name: float(str(RUN[name])) for name in Quantities.model_fields})
    assert (run.is_starved, run.offered_tps, run.total_time_s) == (False, 1500.0, 60.0)
    assert run.is_headline


def test_numbers_may_be_written_as_a_data_frame_writes_them(tmp_path: Path) -> None:
    """A column of integers with a gap elsewhere comes back as 128.0, and a gap as nan."""
    run = measured_run(tmp_path, slots="2.0", n_served="4.0", starved="1.0", ttft_p50_ms="nan", itl_p50_ms="")
    assert (run.engine.max_loras, run.num_adapters, run.is_starved) == (2, 4, True)
    assert (run.measured.ttft_p50_ms, run.measured.itl_p50_ms) == (None, None)


def test_rows_of_a_failed_machine_are_left_out_and_counted(tmp_path: Path) -> None:
    """They say nothing about the engine, and nothing else of them is read."""
    failed = {"run_id": "R2", "model": RUN["model"], "status": "infra_fail", "split": "valid"}
    table = read_runs(write_runs(tmp_path / "runs.csv", [RUN, failed]))
    assert ([run.run_id for run in table.runs], table.num_failed) == (["R1"], 1)


def test_a_run_that_did_not_start_needs_no_traffic(tmp_path: Path) -> None:
    """The tables have none for such runs, and the memory verdict does not depend on it."""
    (run,) = read_runs(write_runs(tmp_path / "runs.csv", [out_of_memory_row()])).runs
    assert (run.status, run.traffic, run.is_starved, run.is_headline) == ("oom", None, None, False)
    assert run.measured == Quantities()


@pytest.mark.parametrize("model", ["qwen2.5-7b", "qwen-2.5-7b-instruct"])
def test_rows_are_chosen_by_either_name_of_a_model(tmp_path: Path, model: str) -> None:
    """The shipped name and the table's name mean the same; a foreign model in another row does no harm."""
    rows = [RUN, RUN | {"run_id": "R2", "model": "qwen-2.5-7b-instruct"}, RUN | {"run_id": "R3", "model": "gemma"}]
    table = read_runs(write_runs(tmp_path / "runs.csv", rows), model=model)
    assert [(run.run_id, run.model) for run in table.runs] == [("R2", "qwen2.5-7b")]


def test_rows_are_chosen_by_split_and_information(tmp_path: Path) -> None:
    """Of the headline rows only those count whose client kept up."""
    rows = [
        RUN,
        RUN | {"run_id": "R2", "split": "calib"},
        RUN | {"run_id": "R3", "informative": 0},
        RUN | {"run_id": "R4", "client_collapse": 1},
    ]
    path = write_runs(tmp_path / "runs.csv", rows)
    assert [run.run_id for run in read_runs(path, split="valid").runs] == ["R1", "R3", "R4"]
    assert [run.run_id for run in read_runs(path, only_informative=True).runs] == ["R1", "R2"]


@pytest.mark.parametrize("column", REQUIRED_COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    """The table of somebody else is told what it lacks, whatever it lacks."""
    path = write_runs(tmp_path / "runs.csv", [RUN], columns=[name for name in RUN if name != column])
    with pytest.raises(InputError) as caught:
        read_runs(path)
    assert f"lacks {column}" in caught.value.message
    assert (caught.value.file, caught.value.field) == (str(path), column)


@pytest.mark.parametrize(
    ("column", "value", "demand"),
    [
        ("model", "gemma", "must be one of"),
        ("status", "crashed", "must be one of ok, oom, infra_fail"),
        ("status", "", "must be one of ok, oom, infra_fail"),
        ("slots", "many", "must be a number"),
        ("slots", "", "must have a value"),
        ("slots", "2.5", "must be an integer"),
        ("slots", "0", "must be a number of at least 1"),
        ("max_lora_rank", "12", "must be a setting that vLLM takes"),
        ("max_num_batched_tokens", "128", "must be a setting that vLLM takes"),
        ("n_served", "5.5", "must be an integer"),
        ("rates_counts", "0.5", "must be rate:count pairs"),
        ("rates_counts", "0.5:x", "must be a number"),
        ("rates_counts", "0.5:1.5;1:2", "must have whole numbers of adapters"),
        ("rates_counts", "-1:4", "must be a number of at least 0"),
        ("rates_counts", "0.5:3", "must have as many adapters as `n_served` (4), not 3"),
        ("rates_counts", "", "must have a value"),
        ("ranks", "8 12", "must be ranks of"),
        ("ranks", "8 32", "at most `max_lora_rank` (16)"),
        ("pool_mean_in", "inf", "must be a number of at least 4"),
        ("pool_mean_in", "1e6", "must be at most 1024, the longest length that is replayed"),
        ("pool_mean_out", "1500", "must be at most 1400"),
        ("kv_usage_mean", "45.0", "must be a share of at most 1"),
        ("goodput_ratio", "97", "must be a share of at most 2"),
        ("total_time", "-60", "must be a number of at least 1"),
        ("tok_per_s", "fast", "must be a number"),
        ("itl_mean_ms", "-3", "must be a number of at least 0"),
        ("starved", "2", "must be 0 or 1"),
        ("informative", "yes", "must be a number"),
    ],
)
def test_a_bad_cell_is_named_with_file_run_column_and_value(
    tmp_path: Path, column: str, value: str, demand: str
) -> None:
    """Whoever made the table finds the cell without reading our code."""
    path = write_runs(tmp_path / "runs.csv", [RUN, RUN | {"run_id": "R2", column: value}])
    with pytest.raises(InputError) as caught:
        read_runs(path)
    assert demand in caught.value.message
    assert f"Got {value!r} (run R2, {path}:3)." in caught.value.message
    assert (caught.value.file, caught.value.field, caught.value.value) == (str(path), column, value)


def test_every_column_is_documented() -> None:
    """Whoever writes a table finds each column, and the limits of the lengths, in one place."""
    text = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    table = text.partition("### Serving runs")[2].partition("A replay has")[0]
    assert [name for name in (*RUN, "gpu", "vllm") if f"`{name}`" not in table] == []
    assert "(4 to 1024)" in table
    assert "(4 to 1400), together at most 2048" in table


def test_lengths_that_are_replayed_together_are_limited(tmp_path: Path) -> None:
    """Each alone could be replayed."""
    with pytest.raises(InputError, match="must be at most 2048 together with `pool_mean_in`"):
        read_runs(write_runs(tmp_path / "runs.csv", [RUN | {"pool_mean_in": 1000, "pool_mean_out": 1300}]))


@pytest.mark.parametrize("num_cells", [len(RUN) - 1, len(RUN) + 1])
def test_a_row_of_another_length_is_named_with_its_line(tmp_path: Path, num_cells: int) -> None:
    """A comma in a name shifts all that follows; a row that was cut off is no row of empty cells."""
    path = write_runs(tmp_path / "runs.csv", [RUN])
    heading, first = path.read_text(encoding="utf-8").splitlines()
    second = ",".join(["R2", *first.split(",")[1:], "7"][:num_cells])
    path.write_text(f"{heading}\n{first}\n\n{second}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"as many cells as the heading \({len(RUN)}\)") as caught:
        read_runs(path)
    assert f"Got {num_cells} ({path}:4)" in caught.value.message


@pytest.mark.parametrize(("run_id", "demand"), [("R1", "also stands in line 2"), ("", "must have a value")])
def test_a_run_has_a_name_of_its_own(tmp_path: Path, run_id: str, demand: str) -> None:
    """Predictions are joined to measurements by it."""
    with pytest.raises(InputError, match=demand):
        read_runs(write_runs(tmp_path / "runs.csv", [RUN, RUN | {"run_id": run_id}]))


def test_an_unreadable_table_is_an_input_error(tmp_path: Path) -> None:
    """A missing file, a folder, and bytes that are no text."""
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"run_id,\xff\xfe\n")
    for path in (tmp_path / "missing.csv", tmp_path, binary):
        with pytest.raises(InputError) as caught:
            read_runs(path)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("selection", [{"split": "test"}, {"model": "qwen2.5-7b"}])
def test_an_empty_selection_says_what_there_is(tmp_path: Path, selection: dict[str, Any]) -> None:
    """The message lists the models and splits of the table."""
    with pytest.raises(InputError, match=r"models: llama-3\.1-8b-instruct; splits: valid"):
        read_runs(write_runs(tmp_path / "runs.csv", [RUN]), **selection)


def test_an_unknown_model_to_choose_is_refused(tmp_path: Path) -> None:
    """The known names are listed."""
    with pytest.raises(InputError, match=r"must be one of .*llama-3\.1-8b.* Got 'gemma'"):
        read_runs(write_runs(tmp_path / "runs.csv", [RUN]), model="gemma")


def test_published_outputs_are_read_by_run(tmp_path: Path) -> None:
    """Throughput and time between tokens; a bad number is named."""
    row = {"run_id": "R1", "twin_total_throughput": 1400.5, "twin_itl": 15.5}
    outputs = read_published(write_published(tmp_path / "published.csv", [row]))
    assert (outputs["R1"].tok_per_s, outputs["R1"].itl_mean_ms) == (1400.5, 15.5)
    with pytest.raises(InputError, match=r"`twin_itl` must be a number\. Got 'slow' \(run R1"):
        read_published(write_published(tmp_path / "published.csv", [row | {"twin_itl": "slow"}]))


def test_all_measured_runs_are_read(data_dir: Path) -> None:
    """Of 306 rows 12 failed; the rates add up to the offered load that the table states."""
    path = data_dir / "runs" / "real_runs.csv"
    table = read_runs(path)
    assert (len(table.runs), table.num_failed) == (294, 12)
    with path.open(encoding="utf-8", newline="") as stream:
        offered = {row["run_id"]: row["offered_req_per_s"] for row in csv.DictReader(stream)}
    for run in table.runs:
        if run.traffic is not None:
            assert math.isclose(run.traffic.offered_rps, float(offered[run.run_id]), rel_tol=1e-6)
