"""The command that compares predicted with measured stalls: what it chooses, and what its fit gives back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.front_end_fit import fit_times, fit_wait, mean_stall_s
from benchmarks.front_end_stalls import main, polled_runs, simulated_pages
from tests.twin.run_tables import RUN, out_of_memory_row, write_runs
from twin.errors import InputError
from twin.validation.front_end import FrontEnd, PageGrowth
from twin.workload import NANOSECONDS

TRUE = FrontEnd(label_s=20e-6, label_name_s=0.4e-6)
COLUMNS = (*RUN, "n_samples", "duration_s")


def _page(lines_per_s: float, names: int, horizon_s: int = 3600) -> PageGrowth:
    """Return a page that grows steadily."""
    grid_s = np.arange(0, horizon_s + 10, 10)
    lines = np.floor(lines_per_s * grid_s).astype(np.int64)
    return PageGrowth(
        horizon_s * NANOSECONDS, grid_s * NANOSECONDS, np.diff(lines, prepend=0), np.full(len(grid_s), names)
    )


PAGES = [(_page(rate, names), _page(1.1 * rate, names)) for rate in (2.0, 5.0, 9.0) for names in (10, 60, 200)]


def test_the_fit_gives_back_the_times_that_made_the_stalls() -> None:
    """Also when what is shipped is far from them, and with an interval that holds nothing else."""
    stalls_s = np.array([mean_stall_s(pages, TRUE) for pages in PAGES])
    label, name = fit_times(PAGES, stalls_s, FrontEnd(label_s=5e-6, label_name_s=1e-6))
    assert (label.shipped_s, name.shipped_s) == (5e-6, 1e-6)
    assert (TRUE.label_s, TRUE.label_name_s) == pytest.approx((label.fitted_s, name.fitted_s), rel=1e-3)
    assert (label.low_s, label.high_s) == pytest.approx((TRUE.label_s, TRUE.label_s), rel=1e-2)


def test_two_times_need_three_runs() -> None:
    """A fit that cannot miss says nothing."""
    with pytest.raises(InputError, match=r"at least 3 runs\. There are 2"):
        fit_times(PAGES[:2], np.array([0.1, 0.2]), TRUE)


def test_the_wait_is_what_the_stalls_leave_of_the_interval() -> None:
    """The median over the runs; nothing without a run."""
    intervals_s = np.array([mean_stall_s(pages, TRUE) for pages in PAGES[:3]]) + np.array([2.0, 2.1, 2.7])
    wait = fit_wait(PAGES[:3], intervals_s, TRUE)
    assert wait is not None
    assert wait.fitted_s == pytest.approx(2.1)
    assert (wait.low_s, wait.high_s) == pytest.approx((2.0, 2.7))
    assert fit_wait([], np.empty(0), TRUE) is None


def _row(run_id: str, **changes: Any) -> dict[str, Any]:
    """Return an hour of 32 adapters on as many slots that all answer soon."""
    traffic = {"slots": 32, "n_served": 32, "rates_counts": "0.05:32", "total_time": 3600, "duration_s": 3600.0}
    return RUN | {"n_samples": 1700} | traffic | {"run_id": run_id} | changes


def test_runs_that_say_nothing_of_the_server_are_left_out(tmp_path: Path) -> None:
    """Those without a server or a count, and those whose client was late."""
    rows = [
        _row("kept"),
        _row("collapsed", client_collapse=1),
        _row("uncounted", n_samples=""),
        out_of_memory_row() | {"n_samples": "", "duration_s": ""},
    ]
    (polled,) = polled_runs(write_runs(tmp_path / "runs.csv", rows, columns=COLUMNS))
    assert (polled.run.run_id, polled.num_samples) == ("kept", 1700)
    assert polled.interval_s == pytest.approx(3600.0 / 1700)
    assert polled.load_rps == pytest.approx(1.6)


@pytest.fixture(scope="module")
def data_of_the_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs whose samples are those of the twin behind the front end `TRUE`."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        _row(f"R{index}", rates_counts=f"{rate}:{count}", n_served=count, slots=count, split=split)
        for index, (rate, count, split) in enumerate(
            [(0.05, 32, "calib"), (0.1, 32, "calib"), (0.05, 64, "calib"), (0.02, 128, "calib"), (0.1, 48, "valid")]
        )
    ]
    path = folder / "runs" / "real_runs.csv"
    path.parent.mkdir()
    runs = polled_runs(write_runs(path, rows, columns=COLUMNS))
    for row, pages in zip(rows, simulated_pages(runs, num_seeds=1, horizon_s=None), strict=True):
        row["n_samples"] = round(3600.0 / (TRUE.poll_interval_s + mean_stall_s(pages, TRUE)))
    # A quiet run for the wait, and a loaded one that must not take part in the fit.
    rows.append(_row("quiet", rates_counts="0.01:4", n_served=4, slots=4, split="calib", n_samples=1810))
    rows.append(_row("loaded", rates_counts="0.7:32", split="calib", n_samples=900))
    write_runs(path, rows, columns=COLUMNS)
    return folder


def test_the_command_finds_the_times_of_a_made_up_server(
    data_of_the_twin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predictions with the times found agree where those with the shipped ones fall short."""
    assert main([str(data_of_the_twin), "--seeds", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    fitted = {time["name"]: time["fitted_s"] for time in report["times"]}
    assert fitted["per line"] == pytest.approx(TRUE.label_s, rel=0.1)
    assert fitted["per adapter name"] == pytest.approx(TRUE.label_name_s, rel=0.1)
    assert fitted["wait"] == pytest.approx(3600.0 / 1810, abs=0.01)
    assert {"R0", "R1", "R2", "R3", "R4", "loaded"} == {run["run_id"] for run in report["runs"]}
    (valid,) = (run for run in report["runs"] if run["split"] == "valid")
    assert valid["measured_stall_s"] == pytest.approx(valid["refitted_stall_s"], rel=0.05)
    assert valid["predicted_stall_s"] < 0.75 * valid["measured_stall_s"]
    found = {(row["runs"], row["times"]): row for row in report["agreements"]}
    assert tuple(found["valid", "shipped"][key] for key in ("num_runs", "within_10", "within_25")) == (1, 0, 0)
    assert tuple(found["valid", "fitted here"][key] for key in ("num_runs", "within_10", "within_25")) == (1, 1, 1)
    light = found["calib, at most 19 requests/s", "fitted here"]
    assert (light["num_runs"], light["within_10"]) == (4, 4)
    assert found["calib", "fitted here"]["num_runs"] == 5


def test_the_table_of_a_document_is_replaced(data_of_the_twin: Path, tmp_path: Path) -> None:
    """What stands around it stays; the worst runs are not for the document."""
    document = tmp_path / "document.md"
    document.write_text("before\n<!-- stalls: begin -->\nold\n<!-- stalls: end -->\nafter\n", encoding="utf-8")
    assert main([str(data_of_the_twin), "--seeds", "1", "--update", str(document)]) == 0
    before, *lines, after = document.read_text(encoding="utf-8").splitlines()
    assert (before, after) == ("before", "after")
    assert "old" not in lines
    assert sum(line.startswith("| calib") for line in lines) == 4
    assert not any("R0" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--update", "document.md", "--smoke"], "leave out --smoke"),
        (["--seeds", "0"], "--seeds must be at least 1. Got 0"),
        ([], "must be a readable file"),
    ],
)
def test_bad_use_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with exit code 2 and says what to do."""
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
