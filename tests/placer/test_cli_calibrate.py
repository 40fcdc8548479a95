"""`placer calibrate` in this process: profiles, reports, figures, warnings, and messages for bad input."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from placer.calibration import CalibrationRequest, calibrate_profile
from placer.calibration_document import CalibrationReport, calibration_schema
from placer.calibration_report import render_figures, render_report
from placer.cli.application import app
from placer.events import FitIterated, PlanEvent
from placer.unmeasured import unmeasured_warnings
from tests.twin.calibration_tables import write_tables
from tests.twin.measured import new_folder, small_workload
from tests.twin.run_tables import RUN, out_of_memory_row, write_runs
from tests.twin.test_step_table import STEP, drawn_rows, write
from twin.calibration.prior import is_prior, prior_profile
from twin.hardware import SHIPPED_MODELS
from twin.profile import load_profile, save_profile
from twin.step_time import COEFFICIENT_NAMES

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROBLEM = {
    "schema_version": 1,
    "model": "llama-3.1-8b",
    "engine": {"vllm_version": "0.8.5", "max_num_seqs": 256},
    "gpu_types": [{"name": "l4", "memory_gib": 22.0, "profile": "prior.json"}],
    "adapters": [
        {
            "name": f"adapter-{number}",
            "rank": 8,
            "rate_rps": 0.05,
            "prompt_tokens": {"mean": 100, "std": 40, "max": 400},
            "output_tokens": {"mean": 50, "std": 20, "max": 200},
        }
        for number in range(3)
    ],
}


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    texts = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, texts, prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _calibrate(data: Path | None, output: Path, *arguments: str | Path) -> tuple[int, str, str]:
    subject = ["--prior-only"] if data is None else [data]
    return _run("calibrate", *subject, "--model", "llama-3.1-8b", "--output", output, *arguments)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a table of steps and one of loads."""
    folder = tmp_path_factory.mktemp("own")
    write(folder / "steps.csv", drawn_rows(600, seed=1))
    write(folder / "loads.csv", [{"rank": 8, "cpu_to_gpu_ms": 4.0, "disk_to_cpu_ms": 50.0}])
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with published tables."""
    folder = tmp_path_factory.mktemp("published")
    write_tables(folder / "calibration")
    return folder


def test_own_tables_become_a_profile_and_a_report(own: Path, tmp_path: Path) -> None:
    """The profile loads, the tables go to standard output, warnings and progress to standard error."""
    output = tmp_path / "profile.json"
    code, printed, errors = _calibrate(own, output, "--gpu", "a100-80gb")
    assert code == 0
    profile = load_profile(str(output))
    assert (profile.name, profile.gpu_memory_gib) == ("llama-3.1-8b-a100-80gb", 78.4)
    for text in (
        "error 0.0",
        "in a regime that was not measured",
        "Errors on what was fitted",
        "regime decode, with LoRA",
        "Coefficients of the step time",
        "95 % interval",
        "per KV token read",
        "origin fitted: the measurements decide",
        *COEFFICIENT_NAMES,
    ):
        assert text in printed
    assert "warning: Not measured, and the prior's: memory, startup." in errors
    assert f"wrote {output}" in errors
    assert "warning" not in printed


def test_several_measurements_are_fitted_together(own: Path, tmp_path: Path) -> None:
    """Steps of one folder, and those of another file; neither may be replaced by the profile."""
    frame = pd.read_csv(own / "steps.csv")
    frame.iloc[::2].to_csv(tmp_path / "first.csv", index=False)
    frame.iloc[1::2].to_csv(tmp_path / "second.csv", index=False)
    code, printed, _ = _run(
        *("calibrate", tmp_path / "first.csv", tmp_path / "second.csv", "--model", "llama-3.1-8b", "--json"),
        *("--output", tmp_path / "profile.json"),
    )
    assert code == 0
    assert CalibrationReport.model_validate(json.loads(printed)).regimes[-1].num_rows == len(frame)
    for data in (("first.csv", "second.csv"), ("second.csv", "first.csv")):
        before = (tmp_path / "second.csv").read_bytes()
        paths = [tmp_path / name for name in data]
        code, _, errors = _run(
            "calibrate", *paths, "--model", "llama-3.1-8b", "--output", tmp_path / "second.csv", "--gpu", "l4-24gb"
        )
        assert (code, (tmp_path / "second.csv").read_bytes()) == (2, before)
        assert "it would replace what is read from DATA" in errors


def test_published_tables_are_given_alone(own: Path, tmp_path: Path) -> None:
    """They are fitted as they were published, with nothing else."""
    (tmp_path / "calib_runs.csv").write_text("", encoding="utf-8")
    code, _, errors = _run("calibrate", own, tmp_path, "--model", "llama-3.1-8b", "--output", tmp_path / "profile.json")
    assert code == 2
    assert "the calib_* tables must be given alone" in errors


def test_settings_without_metrics_are_refused(own: Path, tmp_path: Path) -> None:
    """Tables say by themselves what they were measured with: settings would be ignored."""
    (tmp_path / "server.yaml").write_text("engine: {max_loras: 8}", encoding="utf-8")
    code, _, errors = _calibrate(own, tmp_path / "profile.json", "--settings", tmp_path / "server.yaml")
    assert code == 2
    assert "`--settings` goes with metrics and bench results" in errors


def test_doubts_about_the_measurements_come_first(own: Path, tmp_path: Path) -> None:
    """Seconds in the column of milliseconds: said before what was not measured."""
    frame = pd.read_csv(own / "steps.csv")
    frame.assign(time_ms=frame["time_ms"] / 1000.0).to_csv(tmp_path / "steps.csv", index=False)
    code, printed, errors = _calibrate(tmp_path / "steps.csv", tmp_path / "profile.json", "--json")
    assert code == 0
    assert "is `time_ms` in seconds?" in json.loads(printed)["warnings"][0]
    assert "is `time_ms` in seconds?" in errors


def test_capacities_that_are_not_kept_are_counted(tmp_path: Path) -> None:
    """Two values of gpu_memory_utilization in one table, and a repeated setting with another capacity."""
    columns = ("max_loras", "max_lora_rank", "max_num_seqs", "gpu_memory_utilization", "kv_tokens")
    cells = [(8, 16, 256, 0.9, 300_000), (8, 16, 256, 0.9, 290_000), (8, 16, 256, 0.8, 220_000)]
    write(tmp_path / "memory.csv", [dict(zip(columns, row, strict=True)) for row in cells])
    code, _, errors = _calibrate(tmp_path, tmp_path / "profile.json", "--gpu", "a100-80gb")
    assert code == 0
    assert "1 of 3 measured KV capacities are not of the most frequent settings (gpu_memory_utilization 0.9" in errors
    assert "2 measured KV capacities differ although their settings are the same" in errors


def test_json_is_the_report_and_alone_on_standard_output(own: Path, tmp_path: Path) -> None:
    """It has the published schema; every coefficient has a unit, a meaning, an interval and an origin."""
    code, printed, _ = _calibrate(own, tmp_path / "profile.json", "--gpu", "l4-24gb", "--name", "mine", "--json")
    assert code == 0
    report = CalibrationReport.model_validate(json.loads(printed))
    assert (report.name, report.kind, report.from_prior) == ("mine", "calibrated", ("memory", "startup"))
    assert tuple(entry.name for entry in report.parameters) == COEFFICIENT_NAMES
    assert {entry.unit for entry in report.parameters} == {"ms"}
    assert all(entry.meaning and entry.low is not None and entry.prior is not None for entry in report.parameters)
    assert report.regimes[-1].regime == "all"
    assert report.num_measurements == report.regimes[-1].num_rows
    code, schema, _ = _run("schema", "calibration")
    assert json.loads(schema) == json.loads(json.dumps(calibration_schema()))


def test_same_tables_give_the_same_bytes(own: Path, tmp_path: Path) -> None:
    """Intervals are drawn with a fixed seed, and nothing of the clock is written."""
    contents = []
    for name in ("a", "b"):
        assert _calibrate(own, tmp_path / f"{name}.json", "--report", tmp_path / f"{name}.html")[0] == 0
        contents.append([(tmp_path / f"{name}.{suffix}").read_bytes() for suffix in ("json", "html")])
    assert contents[0] == contents[1]


def test_report_and_figures_are_whole(own: Path, tmp_path: Path) -> None:
    """One page that refers to nothing outside, with three figures; the same figures as PNG files."""
    page, folder = tmp_path / "fit.html", tmp_path / "new" / "figures"
    code, _, _ = _calibrate(own, tmp_path / "profile.json", "--report", page, "--figures", folder)
    assert code == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert "What it does not know" in text
    assert "http-equiv" not in text
    assert 'src="' not in text
    assert sorted(path.name for path in folder.iterdir()) == ["agreement.png", "coefficients.png", "residuals.png"]
    assert {path.read_bytes()[:8] for path in folder.iterdir()} == {PNG_SIGNATURE}


def test_a_prior_is_made_from_a_datasheet_alone(tmp_path: Path) -> None:
    """It says that nothing was measured, wherever it is shown, and has no residuals to draw."""
    output, page = tmp_path / "prior.json", tmp_path / "prior.html"
    code, printed, errors = _calibrate(None, output, "--gpu", "l40s-48gb", "--report", page)
    assert code == 0
    assert is_prior(load_profile(str(output)))
    assert "PRIOR: no step was measured on this model and GPU" in printed
    assert "warning: No step was measured" in errors
    assert page.read_text(encoding="utf-8").count("<svg") == 1


def test_a_config_file_names_a_model_that_is_not_shipped(tmp_path: Path) -> None:
    """The architecture's sizes are all that a prior needs."""
    folder = tmp_path / "small-llama"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    output = tmp_path / "profile.json"
    assert _run("calibrate", "--prior-only", "--model", folder, "--gpu", "l4-24gb", "-o", output)[0] == 0
    small = load_profile(str(output))
    large = prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "l4-24gb")
    assert small.model == "small-llama"
    assert small.step_time.base_ms < 0.5 * large.step_time.base_ms


def test_published_tables_are_recognised(published: Path, tmp_path: Path) -> None:
    """The folder above them will do; host terms may come from a shipped profile."""
    code, printed, errors = _calibrate(
        published, tmp_path / "p.json", "--host-profile", "llama-3.1-8b-h100-64gb", "--name", "again", "--json"
    )
    assert code == 0
    report = CalibrationReport.model_validate(json.loads(printed))
    origins = {entry.name: entry.origin for entry in report.parameters}
    assert origins["slot_lookup_ms"] == "taken over"
    assert origins["base_ms"] == "fitted"
    assert report.prior is None
    assert "with a queue" not in errors
    context = next(entry for entry in report.parameters if entry.name == "context_token_ms")
    assert context.low is not None
    assert context.high is not None
    assert context.low <= 1.05 * context.value
    assert context.high >= 0.95 * context.value


def test_a_machine_without_a_datasheet_may_be_guessed(own: Path, tmp_path: Path) -> None:
    """Nothing is presumed of it: what the tables tell is fitted, and all else is labelled as the prior's."""
    output = tmp_path / "fitted.json"
    assert _calibrate(own, output, "--gpu", "cpu", "--prior", "guess")[0] == 2
    code, printed, errors = _calibrate(own, output, "--gpu", "cpu", "--prior", "guess", "--gpu-memory-gib", "30")
    assert code == 0
    assert "origin prior: " in printed
    assert "datasheet" not in printed
    profile = load_profile(str(output))
    assert (profile.gpu, profile.gpu_memory_gib) == ("cpu", 30.0)
    assert profile.provenance["prior"]["profile"] == "llama-3.1-8b-cpu-guess"
    assert not is_prior(profile)
    assert "warning: Not measured, and the prior's: memory, startup." in errors


def test_a_guess_alone_is_no_profile(tmp_path: Path) -> None:
    """Without measurements there is nothing to say about such a machine."""
    output = tmp_path / "guess.json"
    code, _, errors = _run(
        "calibrate", "--prior-only", "--prior", "guess", "--gpu", "cpu", "--gpu-memory-gib", "30",
        "--model", "llama-3.1-8b", "-o", output,
    )  # fmt: skip
    assert code == 2
    assert "`--prior` must come with measurements" in errors
    assert not output.exists()


def test_own_prior_replaces_the_datasheet(own: Path, tmp_path: Path) -> None:
    """A GPU without a datasheet needs a profile to start from, and its memory."""
    prior = tmp_path / "prior.json"
    save_profile(prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "l4-24gb"), prior)
    output = tmp_path / "profile.json"
    code, _, _ = _calibrate(own, output, "--gpu", "mygpu", "--prior", prior, "--gpu-memory-gib", "30")
    assert code == 0
    profile = load_profile(str(output))
    assert (profile.gpu, profile.gpu_memory_gib) == ("mygpu", 30.0)
    assert profile.provenance["prior"]["profile"] == "llama-3.1-8b-l4-24gb-prior"


def test_serving_runs_are_fitted_too(own: Path, tmp_path: Path) -> None:
    """Runs of the asked part only; whoever waits is told after each iteration."""
    rows = [
        RUN | {"split": "calib", "run_id": "kept"},
        RUN | {"split": "calib", "run_id": "collapsed", "client_collapse": 1},
        RUN | {"split": "valid", "run_id": "judged"},
    ]
    events: list[PlanEvent] = []
    outcome = calibrate_profile(
        CalibrationRequest(
            data=(own,),
            model="llama-3.1-8b",
            runs=write_runs(tmp_path / "runs.csv", rows),
            split="calib",
            workers=1,
        ),
        events.append,
    )
    assert outcome.report.serving_runs is not None
    assert outcome.report.serving_runs["run_ids"] == ["kept"]
    assert [event.number for event in events if isinstance(event, FitIterated)] == list(range(8))
    assert "serving runs: 1, time per output token" in render_report(outcome.report, outcome.points)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{own}", "--prior-only"], "either measurements or --prior-only must be given"),
        ([], "either measurements or --prior-only must be given. Got neither"),
        (["{nothing}"], "must be a folder or a table of steps"),
        (["{empty}"], "has none of them"),
        (["{own}", "--gpu", "tpu"], "must be one whose datasheet is known"),
        (["{own}", "--gpu", "tpu", "--prior", "{prior}"], "the memory of a GPU without a datasheet must be given"),
        (["{own}", "--prior", "gess"], "`--prior` must be auto, guess, a shipped profile (llama-3.1-8b-h100-64gb, "),
        (["{own}", "--prior", "nothing.json"], ") or a profile file. Got 'nothing.json'."),
        (["{own}", "--prior", "{empty}"], "Is a directory"),
        (["{own}", "--host-profile", "nothing.json"], "`profile` must be one of"),
        (["{own}", "--runs", "{nothing}"], "a table of runs must be a readable file"),
        (["{own}", "--split", "calib"], "`--split` must come with --runs"),
        (["--prior-only", "--runs", "{runs}"], "`--runs` must come with measurements"),
        (["--prior-only", "--split", "calib"], "`--split` must come with measurements"),
        (["{own}", "--runs", "{collapsed}"], "at least one run must be of use"),
        (["{own}", "--runs", "{out_of_memory}"], "at least one run must be of use"),
        (["{own}", "--runs", "{untimed}"], "at least one run must be of use"),
        (["{own}", "--runs", "{short}"], "run 'R1' must complete requests in the twin"),
        (["--prior-only", "--host-profile", "llama-3.1-8b-h100-64gb"], "`--host-profile` must come with measurements"),
        (["--prior-only", "--prior", "{prior}"], "`--prior` must come with measurements"),
        (["{own}", "--output", "{nothing}/profile.json"], "the output path of `--output` must be writable"),
        (["{own}", "--report", "{nothing}/fit.html"], "the output path of `--report` must be writable"),
        (["{own}", "--figures", "{own}/steps.csv"], "the folder for the figures must be writable"),
        (["{published}", "--gpu", "a100-80gb"], "were measured on h100-64gb"),
        (["{published}", "--prior", "{prior}"], "are fitted without a prior"),
        (["{own}", "--model", "nothing"], "`model` must be one of"),
        (["{own}", "--gpu-memory-gib", "0"], "`--gpu-memory-gib` must be from 1 to 4096 GiB. Got 0."),
        (["--prior-only", "--gpu-memory-gib", "inf"], "`--gpu-memory-gib` must be from 1 to 4096 GiB. Got inf."),
        (["--prior-only", "--gpu-memory-gib", "nan"], "`--gpu-memory-gib` must be from 1 to 4096 GiB. Got nan."),
        (["--prior-only", "--gpu-memory-gib", "-80"], "`--gpu-memory-gib` must be from 1 to 4096 GiB. Got -80."),
        (["--prior-only", "--gpu-memory-gib", "1e300"], "`--gpu-memory-gib` must be from 1 to 4096 GiB. Got 1e+300."),
    ],
)
def test_bad_input_is_reported_and_nothing_is_written(
    own: Path, published: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Exit code 2, two lines on standard error, no profile."""
    (tmp_path / "empty").mkdir()
    save_profile(prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "l4-24gb"), tmp_path / "prior.json")
    places = {
        "own": own,
        "published": published,
        "nothing": tmp_path / "nothing",
        "empty": tmp_path / "empty",
        "prior": tmp_path / "prior.json",
        "runs": write_runs(tmp_path / "runs.csv", [RUN]),
        "collapsed": write_runs(tmp_path / "collapsed.csv", [RUN | {"client_collapse": 1}]),
        "out_of_memory": write_runs(tmp_path / "oom.csv", [out_of_memory_row()]),
        "untimed": write_runs(tmp_path / "untimed.csv", [RUN | {"tpot_mean_ms": ""}]),
        "short": write_runs(tmp_path / "short.csv", [RUN | {"total_time": 1}]),
    }
    output = tmp_path / "profile.json"
    texts = [argument.format(**places) for argument in arguments]
    code, printed, errors = _run("calibrate", "--model", "llama-3.1-8b", "--output", output, *texts)
    assert (code, printed) == (2, "")
    assert message in errors
    assert "hint: " in errors
    assert not output.exists()


def test_the_parent_of_a_measurement_is_told_its_name(tmp_path: Path) -> None:
    """As the demo's folder is one."""
    new_folder(tmp_path / "demo" / "measurement", small_workload())
    code, _, errors = _calibrate(tmp_path / "demo", tmp_path / "profile.json")
    assert code == 2
    assert "has none of them" in errors
    assert f"hint: give {tmp_path / 'demo' / 'measurement'}, " in errors


def test_bad_cell_names_file_line_column_and_value(tmp_path: Path) -> None:
    """As everywhere: what must hold, what was given, where, and what to do."""
    path = write(tmp_path / "steps.csv", [STEP, STEP | {"tokens": "x"}])
    code, _, errors = _calibrate(tmp_path, tmp_path / "profile.json")
    assert code == 2
    assert f"error: `tokens` must be a number of at least 1. Got 'x' ({path}:3)." in errors
    assert "hint: correct the cell, or remove the row" in errors


def test_model_without_published_tables_is_refused(published: Path, tmp_path: Path) -> None:
    """The calib_* tables cover two models."""
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 100}
    config |= {"intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, _, errors = _run("calibrate", published, "--model", tmp_path, "-o", tmp_path / "p.json")
    assert code == 2
    assert "cover the models llama-3.1-8b, qwen2.5-7b" in errors


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_missing_extra_is_named_before_the_work(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """Nobody waits for a fit whose report cannot be drawn."""
    monkeypatch.setitem(sys.modules, library, None)
    code, _, errors = _calibrate(own, tmp_path / "profile.json", "--report", tmp_path / "fit.html")
    assert code != 0
    assert "pip install 'lora-placer[report]'" in errors
    assert not (tmp_path / "profile.json").exists()


def test_missing_scipy_names_the_extra(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitting needs it; a prior does not."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    code, _, errors = _calibrate(own, tmp_path / "profile.json")
    assert code == 6
    assert "lora-placer[train]" in errors
    assert _calibrate(None, tmp_path / "prior.json")[0] == 0


def test_many_points_are_drawn_as_an_image(own: Path) -> None:
    """A page of a hundred thousand marks could not be opened."""
    outcome = calibrate_profile(CalibrationRequest(data=(own,), model="llama-3.1-8b"))
    few = len(render_report(outcome.report, outcome.points))
    many = len(render_report(outcome.report, outcome.points * 20))
    assert many < 4 * few
    assert all(content.startswith(PNG_SIGNATURE) for content in render_figures(outcome.report, ()).values())


def test_text_in_tables_is_escaped(tmp_path: Path) -> None:
    """A regime's name is a user's text."""
    write(tmp_path / "steps.csv", [STEP | {"regime": "<script>x</script>", "tokens": 40 + row} for row in range(4)])
    page = tmp_path / "fit.html"
    assert _calibrate(tmp_path, tmp_path / "profile.json", "--report", page)[0] == 0
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_simulating_with_a_prior_warns(tmp_path: Path) -> None:
    """Whoever plans with times that nobody measured must know by how much they may be off."""
    save_profile(prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "l4-24gb", gpu_memory_gib=22.0), tmp_path / "prior.json")
    problem = tmp_path / "problem.yaml"
    problem.write_text(yaml.safe_dump(PROBLEM | {"engine": {"max_model_len": 2048}}), encoding="utf-8")
    code, _, errors = _run("simulate", problem, "--horizon", "20")
    assert code == 0, errors
    assert "are a prior, not measured on l4-24gb: real ones may be 0." in errors
    plan = tmp_path / "plan.json"
    code, _, errors = _run("solve", problem, "--horizon", "60", "--warmup", "10", "--output", plan)
    assert code == 0, errors
    assert "are a prior, not measured on l4-24gb" in errors
    warnings: list[Any] = json.loads(plan.read_text(encoding="utf-8"))["warnings"]
    assert sum("are a prior" in warning for warning in warnings) == 1


def test_measured_profiles_bring_no_warning() -> None:
    """And two GPU types with one prior bring one."""
    prior = prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "l4-24gb")
    measured = load_profile("llama-3.1-8b-h100-64gb")
    assert unmeasured_warnings([measured]) == ()
    assert len(unmeasured_warnings([prior, measured, prior])) == 1


def test_terms_that_stay_the_priors_bring_a_warning_where_they_matter(own: Path, tmp_path: Path) -> None:
    """Steps without LoRA leave what LoRA costs to the prior: who plans with it is told how much it may err."""
    frame = pd.read_csv(own / "steps.csv")
    frame[frame["max_loras"] == 0].to_csv(tmp_path / "steps.csv", index=False)
    request = CalibrationRequest(data=(own,), model="llama-3.1-8b", gpu="l4-24gb", gpu_memory_gib=22.0)
    whole, dense = (calibrate_profile(replace(request, data=(data,))).profile for data in (own, tmp_path))
    assert unmeasured_warnings([whole]) == ()
    (warning,) = unmeasured_warnings([dense, whole])
    for text in ("expand_tile_ms", "are a prior's, not measured on l4-24gb", "real step times may be 0."):
        assert text in warning
    assert "base_ms," not in warning.replace("lora_base_ms,", "")
    save_profile(dense, tmp_path / "prior.json")
    problem = tmp_path / "problem.yaml"
    problem.write_text(yaml.safe_dump(PROBLEM | {"engine": {"max_model_len": 2048}}), encoding="utf-8")
    code, _, errors = _run("simulate", problem, "--horizon", "20")
    assert code == 0, errors
    assert "are a prior's, not measured on l4-24gb" in errors


def test_profile_of_logged_steps_reads_a_single_file(own: Path, tmp_path: Path) -> None:
    """A table of steps alone needs no folder, and Parquet is as good."""
    frame = pd.read_csv(own / "steps.csv")
    frame.to_parquet(tmp_path / "log.parquet")
    assert _calibrate(tmp_path / "log.parquet", tmp_path / "a.json")[0] == 0
    assert _calibrate(own / "steps.csv", tmp_path / "b.json")[0] == 0
    first, second = (load_profile(str(tmp_path / f"{name}.json")) for name in "ab")
    assert first.step_time == second.step_time


def test_an_unknown_gpu_has_a_hint_that_can_be_followed(tmp_path: Path) -> None:
    """Without measurements, --prior is refused: the hint must not send there."""
    code, _, errors = _calibrate(None, tmp_path / "p.json", "--gpu", "tpu")
    assert code == 2
    assert "h100-80gb, " in errors
    hint = errors.rpartition("hint: ")[2]
    assert "--gpu-memory-gib" in hint
    assert "with measurements" in hint


@pytest.mark.parametrize("option", ["--prior", "--host-profile"])
def test_a_folder_is_no_profile(own: Path, tmp_path: Path, option: str) -> None:
    """The message says what was found, and the hint which command writes profiles."""
    code, _, errors = _calibrate(own, tmp_path / "p.json", option, "..")
    assert code == 2
    assert "Got '..': Is a directory." in errors
    assert "placer calibrate" in errors.rpartition("hint: ")[2]
