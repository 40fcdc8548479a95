"""`placer explain` and `placer train-configuration` in this process: rules, predictions, checks, messages."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from predictors.configuration import ConfigurationModel
from tests.placer.small_fleets import small_data, write_problem
from tests.predictors.configurations import handmade_model
from twin.profile import load_profile

PROFILE = "llama-3.1-8b-h100-64gb"
SHORT = ("--horizon", "60", "--warmup", "10", "--seeds", "1")


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model made by hand."""
    path = tmp_path / "model.json"
    handmade_model(load_profile(PROFILE), adapters_factor=0.8).save(path)
    return path


def test_the_rules_of_a_profile_are_printed(model: Path) -> None:
    """As text with the errors, or as JSON with the tree itself."""
    code, output, errors = _run("explain", "--profile", PROFILE, "--model", model)
    assert (code, errors) == (0, "")
    assert "if rank of the slots <= 12.0:" in output
    assert "|   adapters = 1.00 x arithmetic" in output
    assert "2.0 %" in output
    code, output, _ = _run("explain", "--profile", PROFILE, "--model", model, "--json")
    content = json.loads(output)
    assert code == 0
    assert content["rules"]["adapter"]["text"][0] == "if rank of the slots <= 12.0:"
    assert content["rules"]["replica"]["tree"]["rows"] == [6, 4, 2]


def test_a_shipped_model_is_found_by_its_profile() -> None:
    """Without --model; its rules have leaves."""
    code, output, _ = _run("explain", "--profile", PROFILE)
    assert code == 0
    assert "x arithmetic" in output


def test_a_problem_is_explained_and_checked_by_the_twin(model: Path, tmp_path: Path) -> None:
    """The prediction, the path of the rules, the twin's verdict on both, and its own best when it is asked for."""
    problem = write_problem(tmp_path, small_data())
    code, output, errors = _run("explain", problem, "--model", model, "--search", *SHORT)
    assert (code, errors.count("error")) == (0, 0)
    assert "12 adapters as a population" in output
    assert "rules: rank of the slots = " in output
    assert "twin's search" in output
    assert "served, " in output


def test_json_has_the_same_and_nothing_else_is_printed(model: Path, tmp_path: Path) -> None:
    """Numbers of the model, the rules, arithmetic and the twin."""
    code, output, _ = _run(
        "explain", write_problem(tmp_path, small_data()), "--model", model, "--search", *SHORT, "--json"
    )
    content = json.loads(output)
    assert code == 0
    assert content["model"]["num_adapters"] == round(0.8 * content["arithmetic"]["num_adapters"])
    assert 0.0 < content["twin"]["model"]["served_share"] <= 1.0
    assert content["twin"]["optimum"]["num_simulations"] > 1
    assert content["rules"]["path"][-1].endswith("x arithmetic")


def test_without_a_check_nothing_is_simulated(model: Path, tmp_path: Path) -> None:
    """And the answer says so."""
    code, output, _ = _run("explain", write_problem(tmp_path, small_data()), "--model", model, "--no-check")
    assert code == 0
    assert "not simulated" in output
    code, output, _ = _run("explain", write_problem(tmp_path, small_data()), "--model", model, "--no-check", "--json")
    assert json.loads(output)["twin"] == {"model": None, "optimum": None, "rules": None}


def test_the_papers_test_of_starvation_serves_more(model: Path, tmp_path: Path) -> None:
    """By the model that was fitted to it, and the twin is asked by it, too."""
    problem = write_problem(tmp_path, small_data())
    code, output, _ = _run("explain", problem, "--model", model, "--starvation", "replica", *SHORT, "--json")
    content = json.loads(output)
    assert code == 0
    assert content["starvation_test"] == "replica"
    assert content["model"]["num_adapters"] == round(1.6 * content["arithmetic"]["num_adapters"])


def test_slots_that_the_file_fixes_are_kept(model: Path, tmp_path: Path) -> None:
    """The answer is how many adapters they serve."""
    data = small_data()
    data["engine"]["max_loras"] = 4
    code, output, _ = _run("explain", write_problem(tmp_path, data), "--model", model, "--no-check", "--json")
    assert code == 0
    assert json.loads(output)["model"]["max_loras"] == 4


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        pytest.param((), "needs PROBLEM or --profile", id="nothing"),
        pytest.param(("--profile", PROFILE, "--model", "missing.json"), "must be a readable file", id="no model"),
        pytest.param(("--profile", "missing"), "missing", id="no profile"),
        pytest.param(("missing.yaml",), "missing.yaml", id="no problem"),
        pytest.param(("--profile", PROFILE, "--starvation", "none"), "`--starvation` must be", id="no such test"),
    ],
)
def test_bad_input_is_named(arguments: tuple[str, ...], fragment: str) -> None:
    """Exit code 2, the message, a hint."""
    code, output, errors = _run("explain", *arguments)
    assert (code, output) == (2, "")
    assert fragment in errors
    assert "hint: " in errors


def test_a_model_of_another_profile_and_an_unknown_gpu_are_refused(model: Path, tmp_path: Path) -> None:
    """With both names."""
    code, _, errors = _run("explain", "--profile", "qwen2.5-7b-h100-64gb", "--model", model)
    assert code == 2
    assert f"was made with '{PROFILE}'" in errors
    code, _, errors = _run("explain", write_problem(tmp_path, small_data()), "--model", model, "--gpu", "b200")
    assert code == 2
    assert "`--gpu` must be one of" in errors


def test_a_model_is_trained_for_a_profile(tmp_path: Path) -> None:
    """Populations are labelled, the model is written, its rules are printed, and `explain` takes it."""
    output_file = tmp_path / "mine.json"
    arguments = ("--profile", PROFILE, "--output", output_file, "--populations", "88", "--horizon", "15")
    code, output, errors = _run(
        "train-configuration", tmp_path / "populations", *arguments, "--warmup", "2", "--workers", "1"
    )
    assert code == 0, errors
    assert "x arithmetic" in output
    assert f"wrote {output_file}" in errors
    assert ConfigurationModel.load(output_file).profile.name == PROFILE
    code, _, _ = _run("explain", "--profile", PROFILE, "--model", output_file)
    assert code == 0


def test_training_refuses_what_it_cannot_write_or_use(tmp_path: Path) -> None:
    """Before minutes of work."""
    code, _, errors = _run(
        "train-configuration", tmp_path / "set", "--profile", PROFILE, "--output", tmp_path / "none" / "model.json"
    )
    assert code == 2
    assert "--output" in errors
    assert not (tmp_path / "set").exists()
