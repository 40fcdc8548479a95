"""Reports of calibrations with serving runs: as honest about what nothing shows as those without."""

from dataclasses import replace
from pathlib import Path

from placer.calibration import CalibrationRequest, calibrate_profile
from placer.calibration_document import build_report
from tests.twin.calibration_tables import write_tables
from tests.twin.run_tables import RUN, write_runs
from tests.twin.test_step_table import drawn_rows, write
from twin.calibration.tables import step_observations
from twin.profile import load_profile


def test_runs_do_not_hide_what_nothing_shows(tmp_path: Path) -> None:
    """Steps without LoRA, two slots with it: origins and warnings say what is the prior's, and what only a mean has."""
    write(tmp_path / "steps.csv", [row for row in drawn_rows(600, seed=1) if row["max_loras"] == 0])
    runs = write_runs(tmp_path / "runs.csv", [RUN])
    request = CalibrationRequest(data=tmp_path, model="llama-3.1-8b", workers=1)
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
        CalibrationRequest(data=tmp_path, model="llama-3.1-8b", runs=runs, workers=1),
    ).report
    assert (report.kind, report.num_measurements) == ("calibrated", 0)
    text = " ".join(report.warnings)
    assert "step times rest on the mean times per token of serving runs" in text
    assert "all step times are extrapolated" not in text
    assert {"fitted", "prior"} == {entry.origin for entry in report.parameters}


def test_published_tables_with_runs_have_their_warnings_too(tmp_path: Path) -> None:
    """What the runs had in them is not known there, and said so where the tables lack something."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    assert "serving_runs" in profile.provenance["step_time"]
    write_tables(tmp_path)
    observations = step_observations(tmp_path, "llama-3.1-8b")
    dense = observations.select(observations.means(observations.steps.slots) == 0)
    warnings = build_report(profile, dense).warnings
    assert "No steps with LoRA: every LoRA cost is extrapolated." in warnings
    assert "What the serving runs had in them is not known: regimes without steps may be in their means." in warnings
    assert not any("No step has what these coefficients" in text for text in warnings)
