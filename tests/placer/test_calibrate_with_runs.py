"""Reports of calibrations with serving runs: as honest about what nothing shows as those without."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from placer.calibration import CalibrationRequest, calibrate_profile
from placer.calibration_tables import summary_lines
from tests.twin.calibration_tables import write_tables
from tests.twin.run_tables import RUN, write_runs
from tests.twin.test_step_table import drawn_rows, write


def test_runs_do_not_hide_what_nothing_shows(tmp_path: Path) -> None:
    """Steps without LoRA, two slots with it: origins and warnings say what is the prior's, and what only a mean has."""
    write(tmp_path / "steps.csv", [row for row in drawn_rows(600, seed=1) if row["max_loras"] == 0])
    runs = write_runs(tmp_path / "runs.csv", [RUN])
    request = CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", workers=1)
    alone, joint = (calibrate_profile(replace(request, runs=path)).report for path in (None, runs))
    origins = {entry.name: entry.origin for entry in joint.parameters}
    assert origins["base_ms"] == "fitted"
    assert origins["cached_adapter_ms"] == "prior"
    text = " ".join(joint.warnings)
    kept = [name for name, origin in origins.items() if origin == "prior"]
    assert f"The measurements do not identify these coefficients, which stay the prior's: {', '.join(kept)}." in text
    assert "every LoRA cost is extrapolated" in " ".join(alone.warnings)
    assert "every LoRA cost is extrapolated" not in text
    assert "Only serving runs, by their mean time per token, show steps with LoRA" in text
    assert "One number of slots only (2)" in text
    assert "Slots of rank 8, 32 are extrapolated from those of rank 16" in text


def test_runs_alone_are_said_to_be_means(tmp_path: Path) -> None:
    """Without a table of steps the profile is no prior, and the report says what it rests on."""
    write(tmp_path / "loads.csv", [{"rank": 8, "cpu_to_gpu_ms": 4.0, "disk_to_cpu_ms": 50.0}])
    runs = write_runs(tmp_path / "runs.csv", [RUN])
    report = calibrate_profile(
        CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", runs=runs, workers=1),
    ).report
    assert (report.kind, report.num_measurements) == ("calibrated", 0)
    text = " ".join(report.warnings)
    assert "step times rest on the mean times per token of serving runs" in text
    assert "all step times are extrapolated" not in text
    assert {"joint", "prior"} == {entry.origin for entry in report.parameters}


def test_published_tables_with_runs_say_what_the_runs_had_in_them(tmp_path: Path) -> None:
    """The same rows and the same coverage as with own tables: what was fitted is what is judged."""
    write_tables(tmp_path)
    runs = write_runs(tmp_path / "runs.csv", [RUN])
    outcome = calibrate_profile(CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", runs=runs, workers=1))
    steps = outcome.profile.provenance["step_time"]
    assert steps["serving_runs"]["coverage"]["max_loras"] == [2]
    assert outcome.report.num_measurements == steps["in_sample_percent"]["all"]["rows"]
    assert not any("is not known" in text for text in outcome.report.warnings)


def test_the_runs_table_is_a_source_like_any_other(tmp_path: Path) -> None:
    """Name and hash of every table that the numbers depend on, of own and of published tables."""
    runs = write_runs(tmp_path / "served.csv", [RUN])
    digest = "sha256:" + hashlib.sha256(runs.read_bytes()).hexdigest()
    own, published = tmp_path / "own", tmp_path / "published"
    own.mkdir()
    write(own / "steps.csv", drawn_rows(50, seed=1))
    write_tables(published)
    for data in (own, published):
        request = CalibrationRequest(data=(data,), model="llama-3.1-8b", runs=runs, workers=1)
        sources = calibrate_profile(request).profile.provenance["sources"]
        assert sources["served.csv"] == digest
        assert len(sources) > 1


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({}, None),
        ({"tpot_mean_ms": 0.0165}, "is `tpot_mean_ms` in seconds?"),
        ({"tpot_mean_ms": 16_500}, "is `tpot_mean_ms` in microseconds?"),
        ({"tpot_mean_ms": 55.0}, "check that steps and runs are of one server"),
    ],
)
def test_runs_that_contradict_the_steps_are_doubted(
    tmp_path: Path, changes: dict[str, float], question: str | None
) -> None:
    """Another GPU, or other units: what the steps alone give is far from the runs."""
    write(tmp_path / "steps.csv", drawn_rows(300, seed=1))
    runs = write_runs(tmp_path / "runs.csv", [RUN | changes])
    report = calibrate_profile(CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", runs=runs, workers=1)).report
    assert report.serving_runs is not None
    assert report.serving_runs["steps_alone"]["measured_over_predicted"] > 0
    doubts = [text for text in report.warnings if "output token" in text]
    assert bool(doubts) == (question is not None)
    assert (question or "") in " ".join(doubts)
    assert "without them in the fit by" in " ".join(summary_lines(report))


def test_runs_of_another_gpu_or_model_are_counted(tmp_path: Path) -> None:
    """Rows of other models are left out, and those of another GPU fitted: both are said, before anything else."""
    write(tmp_path / "steps.csv", drawn_rows(50, seed=1))
    rows = [RUN | {"gpu": "NVIDIA A100-SXM4-80GB"}, RUN | {"run_id": "R2", "model": "gemma"}]
    runs = write_runs(tmp_path / "runs.csv", rows, columns=(*RUN, "gpu"))
    report = calibrate_profile(CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", runs=runs, workers=1)).report
    assert report.serving_runs is not None
    assert report.serving_runs["run_ids"] == ["R1"]
    assert "1 rows of" in report.warnings[0]
    assert "of other models, and left out: 'gemma' (1)" in report.warnings[0]
    assert "the profile's (h100-64gb): 'NVIDIA A100-SXM4-80GB' (1)" in report.warnings[1]


def test_runs_of_a_server_that_nobody_polls_have_no_stalls(tmp_path: Path) -> None:
    """The front end of the published runs delays requests, and with them what the fit explains; it can be left out."""
    write(tmp_path / "steps.csv", drawn_rows(50, seed=1))
    busy = {"slots": 64, "n_served": 200, "rates_counts": "0.05:200", "total_time": 900, "tpot_mean_ms": 60.0}
    runs = write_runs(tmp_path / "runs.csv", [RUN | busy])
    request = CalibrationRequest(data=(tmp_path,), model="llama-3.1-8b", runs=runs, workers=1)
    polled, quiet = (
        calibrate_profile(replace(request, has_front_end=has_front_end)).report.serving_runs
        for has_front_end in (True, False)
    )
    assert polled is not None
    assert quiet is not None
    assert (polled["polled"], quiet["polled"]) == (1, 0)
    assert polled["steps_alone"] != quiet["steps_alone"]
