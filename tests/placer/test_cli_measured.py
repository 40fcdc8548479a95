"""`placer calibrate` and `placer validate` in this process, on metrics, results of a benchmark, and measurements."""

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.calibration_document import CalibrationReport
from placer.cli.application import app
from placer.measurement_validation import MeasurementValidation, measurement_validation_schema
from tests.twin.measured import ignore_progress, new_folder
from tests.twin.measured_by_twin import TwinDriver
from tests.twin.simulated_serving import adapters_of
from twin.engine import EngineConfig
from twin.lengths import LengthDistribution
from twin.measurement.demo import make_demo
from twin.measurement.folder import MeasurementFolder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import EndpointSettings
from twin.measurement.session import run_segment
from twin.profile import load_profile, save_profile
from twin.workload import Workload

REAL = Path(__file__).parents[1] / "data" / "vllm_0_32_cpu"
SHIPPED = "llama-3.1-8b-h100-64gb"
ENGINE = EngineConfig(max_loras=4, max_lora_rank=16, max_num_seqs=64, max_num_batched_tokens=1024)


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _calibrate(
    data: Path, output: Path, *arguments: str | Path, model: str | Path = "llama-3.1-8b"
) -> tuple[int, str, str]:
    return _run("calibrate", data, "--model", model, "--gpu", "h100-64gb", "--workers", "1", "-o", output, *arguments)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the model that the real samples are of."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    make_demo(folder, num_adapters=1, ranks=(8,), rate_rps=1.0, seed=0)
    return folder / "model"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a measurement of the shipped profile."""
    length = LengthDistribution(mean=60, std=30, min=4)
    folder = new_folder(
        tmp_path_factory.mktemp("measured") / "m",
        Workload(adapters_of(6, 3.0, prompt=length, output=length)),
        horizon_s=20.0,
    )
    run_segment(folder, TwinDriver(load_profile(SHIPPED), ENGINE), StopRequest(), ignore_progress)
    return folder.path


def test_real_metrics_and_results_become_a_profile(tiny: Path, tmp_path: Path) -> None:
    """What came of each kind of source, what was assumed, and what stays the prior's is said."""
    data = shutil.copytree(REAL, tmp_path / "data")
    (data / "notes.bin").write_bytes(b"\0")
    code, printed, errors = _calibrate(data, tmp_path / "p.json", "--json", model=tiny)
    assert code == 0, errors
    report = CalibrationReport.model_validate(json.loads(printed))
    assert {"pages.txt", "rate3.json", "closed4.json", "detailed.json"} == set(report.sources)
    assert report.from_prior == ("loads", "memory", "startup")
    assert "which stay the prior's: " in errors
    assert "cached_adapter_ms" in errors
    assert report.serving is not None
    assert {source.kind: source.used for source in report.serving.sources} == {"server metrics": 5, "bench serve": 3}
    assert "Not read, because they are no tables, metrics or results: notes.bin." in errors
    code, printed, _ = _calibrate(data, tmp_path / "p.json", "--report", tmp_path / "p.html", model=tiny)
    page = html.unescape((tmp_path / "p.html").read_text(encoding="utf-8"))
    for text in (printed, page):
        assert "server metrics: 5 of 6 used (left out: scrapes missing in them (1))" in text
        assert "bench serve: 3 of 3 used" in text
        assert all(sentence in text for sentence in report.serving.assumed)


def test_settings_are_given_beside_or_by_the_option(tiny: Path, tmp_path: Path) -> None:
    """Without them, the command ends with 2 and says which is missing; with `--settings FILE` it does not."""
    (tmp_path / "data").mkdir()
    shutil.copy(REAL / "pages.txt", tmp_path / "data")
    code, _, errors = _calibrate(tmp_path / "data", tmp_path / "p.json", model=tiny)
    assert code == 2
    assert "`max_lora_rank` of the server must be given" in errors
    assert "hint: give a YAML file" in errors
    assert not (tmp_path / "p.json").exists()
    settings = REAL / "settings.yaml"
    assert _calibrate(tmp_path / "data", tmp_path / "p.json", "--settings", settings, model=tiny)[0] == 0
    code, _, errors = _calibrate(
        tmp_path / "data", tmp_path / "q.json", "--settings", tmp_path / "none.yaml", model=tiny
    )
    assert code == 2
    assert "none.yaml" in errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.json", '{"status": "succ', "must be whole and valid"),
        ("notes.txt", "hello", "is none of them"),
        ("answer.json", '{"status": "error", "error": "query timed out"}', "query timed out"),
        ("pages.txt", "# scraped_at soon\nvllm:num_requests_running 1\n", "Got 'soon'"),
    ],
)
def test_bad_measurements_end_with_2(tmp_path: Path, name: str, content: str, message: str) -> None:
    """The message names the file; no profile is written."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    code, printed, errors = _calibrate(tmp_path / name, tmp_path / "p.json")
    assert (code, printed) == (2, "")
    assert message in errors
    assert name in errors
    assert not (tmp_path / "p.json").exists()


def test_a_measurement_is_calibrated_and_validated(measured: Path, tmp_path: Path) -> None:
    """The folder is read as it is; the profile made from it predicts it, and so does the true one, exactly."""
    code, printed, errors = _calibrate(measured, tmp_path / "p.json")
    assert code == 0, errors
    assert "step times: " in printed
    for profile, most_percent in ((SHIPPED, 0.01), (tmp_path / "p.json", 3.0)):
        code, printed, errors = _run("validate", measured, "--profile", profile, "--json")
        assert code == 0, errors
        validation = MeasurementValidation.model_validate(json.loads(printed))
        found = {row.name: row for row in validation.quantities}
        assert validation.kind == "in_process"
        assert found["copies into slots"].measured == found["copies into slots"].predicted
        for name in ("throughput", "ITL mean", "TPOT mean", "step mean"):
            error = found[name].error_percent
            assert error is not None
            assert abs(error) < most_percent


def _on_clock(folder: Path, copy: Path, clock: str, **changes: Any) -> Path:
    """Return a copy of a measurement whose manifest says another clock, or other settings."""
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["settings"] |= {"clock": clock, **changes}
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


def test_clocks_are_not_mixed(measured: Path, tmp_path: Path) -> None:
    """Fitted together: refused. Validated with a profile of another clock: said."""
    steady, wall = (_on_clock(measured, tmp_path / clock, clock) for clock in ("steady", "wall"))
    code, _, errors = _run(
        "calibrate", steady, wall, "--model", "llama-3.1-8b", "--gpu", "h100-64gb", "-o", tmp_path / "p.json"
    )
    assert code == 2
    assert "must be on one clock" in errors
    code, _, errors = _calibrate(steady, tmp_path / "p.json")
    assert code == 0, errors
    for folder, is_warned in ((steady, False), (wall, True)):
        code, _, errors = _run("validate", folder, "--profile", tmp_path / "p.json")
        assert code == 0, errors
        assert ("fitted to times on the clock `steady`" in errors) == is_warned


def test_another_model_than_the_measured_one_is_refused(measured: Path, tiny: Path, tmp_path: Path) -> None:
    """Its times would be compared with those of a model a thousand times as large."""
    folder = _on_clock(measured, tmp_path / "m", "wall", model=str(tiny))
    for command in (
        ("calibrate", folder, "--model", "llama-3.1-8b", "--gpu", "h100-64gb", "-o", tmp_path / "p.json"),
        ("validate", folder, "--profile", SHIPPED),
    ):
        code, _, errors = _run(*command)
        assert code == 2
        assert "must be the one that was measured" in errors
        assert "num_layers" in errors


def test_a_partial_measurement_is_said_to_be_one_when_it_is_calibrated(measured: Path, tmp_path: Path) -> None:
    """The fit holds for what was measured; its reader should know that it is not all."""
    folder = _on_clock(measured, tmp_path / "m", "wall")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"status": "partial", "reason": "the server vanished"}), encoding="utf-8"
    )
    code, _, errors = _calibrate(folder, tmp_path / "p.json")
    assert code == 0, errors
    assert "The measurement m is partial: the server vanished." in errors


def test_the_table_and_the_schema_of_a_validated_measurement(measured: Path) -> None:
    """One line per quantity; the schema is that of the JSON."""
    code, printed, errors = _run("validate", measured, "--profile", SHIPPED)
    assert code == 0, errors
    for text in ("replayed as they were sent", "throughput", "ITL p95", "TTFT p50", "reads from disk", "error %"):
        assert text in printed
    code, printed, _ = _run("schema", "measurement-validation")
    assert json.loads(printed) == json.loads(json.dumps(measurement_validation_schema()))


def test_a_prior_is_said_to_be_one(measured: Path, tmp_path: Path) -> None:
    """Errors of a prior are no errors of a measured profile."""
    assert (
        _run("calibrate", "--prior-only", "--model", "llama-3.1-8b", "--gpu", "h100-64gb", "-o", tmp_path / "p.json")[0]
        == 0
    )
    code, _, errors = _run("validate", measured, "--profile", tmp_path / "p.json")
    assert code == 0
    assert "are a prior, not measured" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "must be given. Got neither"),
        (("FOLDER",), "the profile to validate must be given"),
        (("FOLDER", "--runs", "runs.csv"), "`--runs` goes with a table of runs"),
        (("FOLDER", "--profile", SHIPPED, "--seeds", "2"), "`--seeds` goes with a table of runs"),
        (("FOLDER", "--profile", SHIPPED, "--report", "x.html"), "`--report` goes with a table of runs"),
        (("EMPTY", "--profile", SHIPPED), "must have a manifest.json"),
    ],
)
def test_what_does_not_go_together_ends_with_2(
    measured: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """The message says which option is one too many, or what is missing."""
    folders = {"FOLDER": str(measured), "EMPTY": str(tmp_path)}
    code, printed, errors = _run("validate", *(folders.get(argument, argument) for argument in arguments))
    assert (code, printed) == (2, "")
    assert message in errors


def _served(path: Path) -> MeasurementFolder:
    """Return a measurement over HTTP of a server that is as the shipped profile says."""
    length = LengthDistribution(mean=60, std=30, min=4)
    folder = new_folder(
        path,
        Workload(adapters_of(6, 3.0, prompt=length, output=length)),
        settings=EndpointSettings(url="http://s", metrics_url="http://s/metrics", engine=ENGINE.model_dump()),
    )
    driver = TwinDriver(load_profile(SHIPPED), ENGINE, sees_steps=False)
    run_segment(folder, driver, StopRequest(), ignore_progress)
    return folder


def test_a_server_of_unknown_settings_cannot_be_replayed(tmp_path: Path) -> None:
    """Over HTTP, settings that nobody declared are not guessed; latencies are said to be the client's."""
    folder = _served(tmp_path / "m")
    save_profile(load_profile(SHIPPED), tmp_path / "p.json")
    code, printed, errors = _run("validate", folder.path, "--profile", tmp_path / "p.json")
    assert code == 0, errors
    assert "Latencies were measured by a client" in errors
    assert "copies into slots" not in printed
    folder.update(server=folder.manifest.server.model_copy(update={"engine": None}))
    code, _, errors = _run("validate", folder.path, "--profile", tmp_path / "p.json")
    assert code == 2
    assert "settings must be known" in errors
    assert "declare `engine` in the workload file" in errors
    folder.update(status="partial", reason="the server must answer.")
    code, _, errors = _run("validate", folder.path, "--profile", tmp_path / "p.json")
    assert code == 2
    assert f"placer measure --resume {folder.path}" in errors


def test_a_server_of_another_model_needs_its_config(tmp_path: Path, tiny: Path) -> None:
    """The error names the option that gives it; the reason of a partial measurement is one sentence."""
    folder = _served(tmp_path / "m")
    folder.update(status="partial", reason="the server must answer.")
    save_profile(load_profile(SHIPPED).model_copy(update={"model": "model"}), tmp_path / "p.json")
    code, _, errors = _run("validate", folder.path, "--profile", tmp_path / "p.json")
    assert code == 2
    assert "--model" in errors
    code, _, errors = _run("validate", folder.path, "--profile", tmp_path / "p.json", "--model", tiny / "config.json")
    assert code == 0, errors
    assert "must answer.\n" in errors
