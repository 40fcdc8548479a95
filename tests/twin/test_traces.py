"""Reading traces: what is read from good files, and what is said about bad ones."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from twin.errors import InputError
from twin.trace import Trace
from twin.traces import TraceColumns, read_azure, read_mooncake, read_servegen_rates, read_trace

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_ROWS = (
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
    "2023-11-16 18:15:51.2224670,879,55",
)
SERVEGEN_HEADER = "client,window_start_s,rate_rps,cv,pattern,arg1,arg2"


def _file(folder: Path, *lines: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _azure(folder: Path, *rows: str) -> Path:
    return _file(folder, AZURE_HEADER, *rows)


def test_azure_times_count_from_the_first_request(tmp_path: Path) -> None:
    """Seven digits of a second survive; lengths are integers; the trace says where it comes from."""
    trace = read_azure(_azure(tmp_path, *AZURE_ROWS))
    assert trace.arrival_s == pytest.approx([0.0, 4.314579, 4.541877], abs=1e-9)
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.prompt_tokens.dtype == np.dtype(np.int64)
    assert (trace.adapter, trace.name) == (None, "trace.csv")
    assert trace.duration_s == pytest.approx(4.541877 * 3 / 2)


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    """Files that went through a spreadsheet have both."""
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([AZURE_HEADER, *AZURE_ROWS]).encode() + b"\r\n")
    assert len(read_azure(path)) == 3


def test_compressed_csv_is_read(tmp_path: Path) -> None:
    """Traces are published compressed."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress("\n".join([AZURE_HEADER, *AZURE_ROWS]).encode()))
    assert len(read_trace(path)) == 3


def test_mooncake_csv_and_json_lines_read_alike(tmp_path: Path) -> None:
    """The published JSON lines carry block hashes, which are not ours to use; times are milliseconds."""
    table = _file(tmp_path, "timestamp_ms,input_length,output_length,n_hash_blocks", "0,6758,500,14", "1500,7,1,1")
    lines = _file(
        tmp_path,
        *(
            json.dumps({"timestamp": time, "input_length": prompt, "output_length": output, "hash_ids": [1, 2]})
            for time, prompt, output in [(0, 6758, 500), (1500, 7, 1)]
        ),
        name="trace.jsonl",
    )
    for trace in (read_mooncake(table), read_mooncake(lines), read_trace(table), read_trace(lines)):
        assert trace.arrival_s.tolist() == [0.0, 1.5]
        assert trace.prompt_tokens.tolist() == [6758, 7]
        assert trace.output_tokens.tolist() == [500, 1]


@pytest.mark.parametrize("trace_format", ["csv", "parquet", "jsonl"])
def test_own_columns_are_read_by_their_names(tmp_path: Path, trace_format: str) -> None:
    """The same table in three formats is the same trace, adapter labels and time unit included."""
    frame = pd.DataFrame({"at": [1000, 1500, 4000], "in": [5, 6, 7], "out": [1, 2, 3], "lora": ["x", "y", "x"]})
    path = tmp_path / f"trace.{trace_format}"
    if trace_format == "csv":
        frame.to_csv(path, index=False)
    elif trace_format == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    columns = TraceColumns.from_mapping(
        {"time": "at", "prompt": "in", "output": "out", "adapter": "lora"}, time_unit="ms"
    )
    trace = read_trace(path, trace_format=trace_format, columns=columns)
    assert trace.arrival_s.tolist() == [0.0, 0.5, 3.0]
    assert trace.prompt_tokens.tolist() == [5, 6, 7]
    assert trace.adapter is not None
    assert trace.adapter.tolist() == ["x", "y", "x"]


def test_default_columns_need_no_mapping(tmp_path: Path) -> None:
    """A file that uses our own names, with an adapter column, is read without being told."""
    trace = read_trace(_file(tmp_path, "time,prompt,output,adapter", "0,5,1,a", "2.5,6,2,007"))
    assert trace.arrival_s.tolist() == [0.0, 2.5]
    assert trace.adapter is not None
    assert trace.adapter.tolist() == ["a", "007"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_durations_have_their_own_unit(tmp_path: Path, unit: str) -> None:
    """A typed duration is not a number in the columns' unit."""
    path = tmp_path / "trace.parquet"
    times = pd.to_timedelta(["1s", "3s"]).as_unit(unit)  # type: ignore[arg-type]  # the units of NumPy
    pd.DataFrame({"time": times, "prompt": [1, 2], "output": [3, 4]}).to_parquet(path)
    assert read_trace(path).arrival_s.tolist() == [0.0, 2.0]


def test_parquet_dates_are_times(tmp_path: Path) -> None:
    """A typed time column needs no unit."""
    path = tmp_path / "trace.parquet"
    times = pd.to_datetime(["2024-01-01T00:00:00.0", "2024-01-01T00:00:02.5"])
    pd.DataFrame({"time": times, "prompt": [1, 2], "output": [3, 4]}).to_parquet(path)
    assert read_trace(path).arrival_s.tolist() == [0.0, 2.5]


def _failure(path: Path, **arguments: bool | str) -> InputError:
    """Return the error of reading `path`, after checking that it names the file."""
    with pytest.raises(InputError) as caught:
        read_trace(
            path,
            trace_format=str(arguments["trace_format"]) if "trace_format" in arguments else None,
            sort=bool(arguments.get("sort")),
            drop_empty=bool(arguments.get("drop_empty")),
        )
    assert caught.value.file == str(path)
    assert path.name in caught.value.message
    return caught.value


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    """Most missing columns are misspelt ones."""
    error = _failure(_file(tmp_path, "TIMESTAMP,ContextToken,GeneratedTokens", AZURE_ROWS[0]), trace_format="azure")
    assert error.field == "ContextTokens"
    assert "it has 'TIMESTAMP', 'ContextToken', 'GeneratedTokens'" in error.message
    assert error.hint == "'ContextTokens': did you mean 'ContextToken'?"


def test_an_unlike_header_asks_for_a_mapping(tmp_path: Path) -> None:
    """Where no guess is near, the way out is named."""
    error = _failure(_file(tmp_path, "a,b,c", "1,2,3"))
    assert error.hint is not None
    assert "column mapping" in error.hint


def test_unsorted_times_name_the_row_and_the_way_out(tmp_path: Path) -> None:
    """Sorting silently would hide a file that was put together wrongly."""
    path = _azure(tmp_path, AZURE_ROWS[0], AZURE_ROWS[2], AZURE_ROWS[1])
    error = _failure(path)
    assert (error.field, error.value) == ("TIMESTAMP", "2023-11-16 18:15:50.9951690")
    assert "in row 3" in error.message
    assert error.hint is not None
    assert "(sort=True, --sort)" in error.hint
    assert read_azure(path, sort=True).prompt_tokens.tolist() == [374, 396, 879]


def test_sorting_keeps_the_order_of_simultaneous_requests(tmp_path: Path) -> None:
    """Ties are first come, first served."""
    rows = ["2,1,1", "1,2,1", "2,3,1", "1,4,1"]
    trace = read_trace(_file(tmp_path, "time,prompt,output", *rows), sort=True)
    assert trace.prompt_tokens.tolist() == [2, 4, 1, 3]


@pytest.mark.parametrize(("row", "field"), [("3,0,5", "prompt"), ("3,5,0", "output")])
def test_a_request_without_tokens_names_the_row_and_the_way_out(tmp_path: Path, row: str, field: str) -> None:
    """An empty request is no load, but it may be a failed one that should have been."""
    path = _file(tmp_path, "time,prompt,output", "1,1,1", row, "4,1,1")
    error = _failure(path)
    assert (error.field, error.value) == (field, "0")
    assert "in row 2" in error.message
    assert error.hint is not None
    assert "(drop_empty=True, --drop-empty)" in error.hint
    assert read_trace(path, drop_empty=True).arrival_s.tolist() == [0.0, 3.0]


def test_nothing_but_empty_requests_is_an_error(tmp_path: Path) -> None:
    """Dropping everything leaves no trace."""
    error = _failure(_file(tmp_path, "time,prompt,output", "1,0,1"), drop_empty=True)
    assert "at least one request with tokens" in error.message


@pytest.mark.parametrize(
    ("row", "field", "value", "rule"),
    [
        ("x,1,1", "time", "x", "a number or a date"),
        ("nan,1,1", "time", "nan", "a finite number"),
        ("-1,1,1", "time", "-1", "not be negative"),
        ("1,many,1", "prompt", "many", "a finite number"),
        ("1,,1", "prompt", "", "a finite number"),
        ("1,nan,1", "prompt", "nan", "a finite number"),
        ("1,inf,1", "prompt", "inf", "a finite number"),
        ("1,-3,1", "prompt", "-3", "not be negative"),
        ("1,2.5,1", "prompt", "2.5", "a whole number"),
        ("1,3000000000,1", "prompt", "3000000000", "not exceed 2147483647"),
        ("1,1,-1", "output", "-1", "not be negative"),
    ],
)
def test_a_value_that_is_no_count_or_time_names_its_row(
    tmp_path: Path, row: str, field: str, value: str, rule: str
) -> None:
    """The text of the file is shown as it stands."""
    error = _failure(_file(tmp_path, "time,prompt,output", row, "9,1,1"))
    assert (error.field, error.value) == (field, value)
    assert rule in error.message
    assert f"Got {value!r} in row 1 of" in error.message


def test_a_date_among_numbers_is_named(tmp_path: Path) -> None:
    """The first row decides what times are; the odd one out is the error."""
    error = _failure(_file(tmp_path, "time,prompt,output", "1,1,1", "2023-11-16,1,1"))
    assert (error.field, error.value) == ("time", "2023-11-16")


def test_a_number_among_dates_is_named(tmp_path: Path) -> None:
    """A damaged date must not become a time of its own."""
    error = _failure(_azure(tmp_path, AZURE_ROWS[0], "half past six,1,1"))
    assert (error.field, error.value) == ("TIMESTAMP", "half past six")
    assert "in row 2" in error.message


def test_the_number_of_further_bad_rows_is_said(tmp_path: Path) -> None:
    """One bad row is a slip, a thousand are another format."""
    error = _failure(_file(tmp_path, "time,prompt,output", "1,x,1", "2,y,1", "3,z,1"))
    assert "and in 2 more rows" in error.message


def test_an_absent_parquet_value_is_shown_as_nothing(tmp_path: Path) -> None:
    """How a null prints in some library is not the user's concern."""
    path = tmp_path / "trace.parquet"
    pd.DataFrame({"time": [0, 1], "prompt": [1, None], "output": [3, 4]}).to_parquet(path)
    assert "Got nothing in row 2" in _failure(path).message


@pytest.mark.parametrize("line", ["{", "[1, 2, 3]"])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    """JSON lines hold one object each; blank lines between them are none."""
    path = _file(tmp_path, '{"timestamp": 0, "input_length": 1, "output_length": 1}', "", line, name="trace.jsonl")
    assert "JSON lines" in _failure(path).message


def test_a_row_cut_short_is_named(tmp_path: Path) -> None:
    """The cut last line of a download."""
    error = _failure(_azure(tmp_path, AZURE_ROWS[0], "2023-11-16 18:15:47,5"))
    assert error.field == "GeneratedTokens"
    assert "in row 2" in error.message


@pytest.mark.parametrize("rows", [["1,1,1", "2,1,1,9"], ["1,1,1,9", "2,1,1,9"]])
def test_rows_longer_than_the_header_are_refused(tmp_path: Path, rows: list[str]) -> None:
    """Values would otherwise move to the wrong columns or vanish."""
    assert "CSV with a header" in _failure(_file(tmp_path, "time,prompt,output", *rows)).message


def test_an_empty_adapter_label_names_its_row(tmp_path: Path) -> None:
    """A request of no adapter belongs to the base model, which is not a placement question."""
    error = _failure(_file(tmp_path, "time,prompt,output,adapter", "1,1,1,a", "2,1,1, "))
    assert error.field == "adapter"
    assert "in row 2" in error.message


@pytest.mark.parametrize("lines", [[], ["time,prompt,output"]])
def test_a_file_without_rows_is_refused(tmp_path: Path, lines: list[str]) -> None:
    """Nothing at all, and a header alone."""
    message = _failure(_file(tmp_path, *lines)).message
    assert "empty" in message or "at least one row" in message


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    """The operating system's own words, with the path."""
    error = _failure(tmp_path / "absent.csv")
    assert "No such file" in error.message
    assert error.hint == "check the path and the permissions"


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    """A folder given by mistake is the commonest slip of all."""
    assert "must be a file" in _failure(tmp_path).message


@pytest.mark.parametrize("name", ["trace.csv", "trace.parquet", "trace.jsonl", "trace.csv.gz"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    """Bytes that are neither text nor what the suffix says."""
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00\x81 not what it says\n" * 3)
    assert "must be" in _failure(path).message


def test_an_unknown_format_is_answered_with_the_nearest(tmp_path: Path) -> None:
    """The list of formats is short enough to show."""
    with pytest.raises(InputError, match=r"one of azure, mooncake, csv, jsonl, parquet\. Got 'azur'") as caught:
        read_trace(_azure(tmp_path, *AZURE_ROWS), trace_format="azur")
    assert caught.value.hint == "did you mean 'azure'?"


def test_a_mapping_for_a_format_with_its_own_columns_is_refused(tmp_path: Path) -> None:
    """Ignoring the mapping would read other columns than were asked for."""
    with pytest.raises(InputError, match="column mapping goes with"):
        read_trace(_azure(tmp_path, *AZURE_ROWS), trace_format="azure", columns=TraceColumns())


def test_an_unknown_role_or_unit_of_a_mapping_is_refused() -> None:
    """A misspelt key would leave the default column in its place."""
    with pytest.raises(InputError) as role:
        TraceColumns.from_mapping({"prompts": "in"})
    assert role.value.hint == "did you mean 'prompt'?"
    with pytest.raises(InputError, match=r"one of s, ms, us, ns\. Got 'minutes'"):
        TraceColumns.from_mapping({}, time_unit="minutes")


def test_importing_the_twin_loads_no_data_frames() -> None:
    """Only reading files needs pandas; what a trace is does not."""
    script = "import sys, twin, twin.trace; print('pandas' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"


def test_servegen_rates_are_sorted_by_client_and_time(tmp_path: Path) -> None:
    """Rows of all columns move together."""
    path = _file(
        tmp_path, SERVEGEN_HEADER, "b,600,2.0,1.5,Gamma,0.5,0.1", "a,0,1.0,1.0,Weibull,0.7,0.2", "b,0,4.0,3,Gamma,1,1"
    )
    rates = read_servegen_rates(path)
    assert rates.client.tolist() == ["a", "b", "b"]
    assert rates.window_start_s.tolist() == [0.0, 0.0, 600.0]
    assert rates.rate_rps.tolist() == [1.0, 4.0, 2.0]
    assert rates.gap_cv.tolist() == [1.0, 3.0, 1.5]
    assert rates.gap_law.tolist() == ["weibull", "gamma", "gamma"]
    assert (len(rates), rates.scale.tolist()) == (3, [0.2, 1.0, 0.1])


def test_silent_windows_count_in_a_clients_mean_rate(tmp_path: Path) -> None:
    """A client that sends in one of two windows has half the rate on average."""
    path = _file(tmp_path, SERVEGEN_HEADER, "a,0,1.0,1.0,Gamma,1,1", "b,0,2.0,1.0,Gamma,1,1", "b,600,4.0,1.0,Gamma,1,1")
    assert read_servegen_rates(path).mean_rate_rps() == pytest.approx({"a": 0.5, "b": 3.0})


@pytest.mark.parametrize(
    ("row", "field"),
    [("a,0,1,1,Pareto,1,1", "pattern"), ("a,0,fast,1,Gamma,1,1", "rate_rps"), ("a,0,1,-1,Gamma,1,1", "cv")],
)
def test_servegen_rows_are_checked(tmp_path: Path, row: str, field: str) -> None:
    """An unknown law cannot be simulated by guessing."""
    with pytest.raises(InputError, match="in row 1") as caught:
        read_servegen_rates(_file(tmp_path, SERVEGEN_HEADER, row))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "num_requests", "mean_prompt", "mean_output"),
    [
        ("azure_llm2023_conv.csv", 19366, 1154.697, 211.126),
        ("azure_llm2023_code.csv", 8819, 2047.848, 27.883),
        ("mooncake_fast25_conversation.csv", 12031, 12035.061, 342.619),
    ],
)
def test_public_traces_are_read_whole(
    data_dir: Path, name: str, num_requests: int, mean_prompt: float, mean_output: float
) -> None:
    """Counts and means are those of the published files; each covers about an hour."""
    trace: Trace = read_trace(data_dir / "workloads" / name)
    assert len(trace) == num_requests
    assert trace.prompt_tokens.mean() == pytest.approx(mean_prompt, abs=1e-3)
    assert trace.output_tokens.mean() == pytest.approx(mean_output, abs=1e-3)
    assert 3400 < trace.duration_s < 3600


def test_public_client_rates_are_read_whole(data_dir: Path) -> None:
    """8,218 windows of 34 clients, two laws of gaps."""
    rates = read_servegen_rates(data_dir / "workloads" / "servegen_m_small_clients_10min.csv")
    assert len(rates) == 8218
    assert len(rates.mean_rate_rps()) == 34
    assert set(rates.gap_law) == {"gamma", "weibull"}
