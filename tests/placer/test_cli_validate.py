"""`placer validate` in this process: tables, files, JSON, the HTML report, and messages for bad input."""

import csv
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.validation import Validation, validation_schema
from placer.validation_report import render_report
from tests.twin.run_tables import RUN, out_of_memory_row, write_published, write_runs
from twin.calibration.prior import prior_profile
from twin.hardware import SHIPPED_MODELS
from twin.profile import save_profile
from twin.validation.predictions import PREDICTION_COLUMNS
from twin.validation.quantities import SCORED_QUANTITIES

ROWS = [
    RUN,
    RUN | {"run_id": "R2", "slots": 16, "n_served": 16, "rates_counts": "0.25:16", "split": "calib"},
    RUN | {"run_id": "R3", "rates_counts": "2:4", "waiting_mean": 5.0, "goodput_ratio": 0.6, "starved": 1},
    RUN | {"run_id": "R4", "client_collapse": 1, "goodput_ratio": 0.3, "starved": 1},
    {"run_id": "R5", "model": RUN["model"], "status": "infra_fail", "split": "valid"},
    out_of_memory_row(),
]


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    texts = ["validate", "--workers", "1", "--seeds", "2", *(str(argument) for argument in arguments)]
    result = CliRunner().invoke(app, texts, prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _document(*arguments: str | Path) -> dict[str, Any]:
    code, output, errors = _run(*arguments, "--json")
    assert (code, errors.count("error")) == (0, 0)
    content: dict[str, Any] = json.loads(output)
    return content


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a table of three runs that served, one whose client collapsed, one failed, one out of memory."""
    return write_runs(tmp_path / "runs.csv", ROWS)


class _Page(HTMLParser):
    """What a page refers to, and the headings of its sections."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.identifiers: list[str] = []
        self.headings: list[str] = []
        self._is_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note references and identifiers."""
        values = {name: value or "" for name, value in attrs}
        self.references += [values[name] for name in ("href", "xlink:href", "src") if name in values]
        self.identifiers += [values["id"]] if "id" in values else []
        self._is_heading = tag in {"h1", "h2"}

    def handle_endtag(self, tag: str) -> None:
        """End a heading."""
        self._is_heading = self._is_heading and tag not in {"h1", "h2"}

    def handle_data(self, data: str) -> None:
        """Note the text of a heading."""
        if self._is_heading and data.strip():
            self.headings.append(data.strip())


def test_tables_say_where_the_twin_is_wrong(runs: Path, tmp_path: Path) -> None:
    """Errors by group, starvation, memory, the worst runs and the rows that were left out; progress elsewhere."""
    published = write_published(
        tmp_path / "twin.csv", [{"run_id": "R1", "twin_total_throughput": 1500, "twin_itl": 16}]
    )
    code, output, errors = _run("--runs", runs, "--published-twin", published)
    assert code == 0
    for text in (
        "runs.csv: 5 runs replayed, 1 row left out (infra_fail)",
        "profile llama-3.1-8b-h100-64gb",
        "mean of 2 seeds",
        "Errors by split",
        "Errors by slots",
        "Errors by regime",
        "median half-SMAPE %",
        "between seeds %",
        "agreement",
        "lacked memory",
        "published",
        "R3 (",
        "slots-bound: requests wait",
        "8 simulations in",
        *SCORED_QUANTITIES.values(),
    ):
        assert text in output
    assert "simulating 5 runs with 2 seeds" in errors


def test_the_json_document_is_complete_and_alone_on_standard_output(runs: Path) -> None:
    """It has the published schema, and its parts agree with each other."""
    document = _document("--runs", runs)
    validation = Validation.model_validate(document)
    assert (validation.schema_version, validation.seeds, validation.num_failed) == (1, (0, 1), 1)
    assert [row.run_id for row in validation.rows] == ["R1", "R2", "R3", "R4", "R9"]
    assert [row.regime for row in validation.rows] == [
        *("unsaturated", "unsaturated", "slots-bound", "collapsed", "not started"),
    ]
    assert validation.memory.model_dump() == {
        "ok_predicted_ok": 4,
        "ok_predicted_oom": 0,
        "oom_predicted_ok": 0,
        "oom_predicted_oom": 1,
    }
    assert validation.groups[0].num_headline_rows == 3
    assert {entry.role for entry in validation.inputs} == {"runs", "profile"}
    assert [entry.run_id for entry in validation.timings.runs] == ["R1", "R2", "R3", "R4"]
    assert set(document) == set(validation_schema()["properties"])


def test_equal_validations_differ_in_their_timings_only(runs: Path) -> None:
    """Nothing of the clock is in what is compared."""
    first, second = _document("--runs", runs), _document("--runs", runs)
    assert first.pop("timings") != second.pop("timings")
    assert first == second


def test_predictions_are_written_beside_the_tables(runs: Path, tmp_path: Path) -> None:
    """One row per replayed run, with the columns that were promised, equal to the document's numbers."""
    path = tmp_path / "predictions.csv"
    document = _document("--runs", runs, "--predictions", path)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0])[: len(PREDICTION_COLUMNS)] == PREDICTION_COLUMNS
    assert [(row["run_id"], row["status"]) for row in rows] == [
        *(("R1", "ok"), ("R2", "ok"), ("R3", "ok"), ("R4", "ok"), ("R9", "oom")),
    ]
    for row, entry in zip(rows[:4], document["rows"], strict=False):
        assert float(row["tok_per_s"]) == pytest.approx(entry["predicted"]["tok_per_s"])
        assert row["starved"] == str(int(entry["predicted_starved"]))


@pytest.mark.parametrize(
    ("options", "run_ids"),
    [
        (["--split", "calib"], ["R2"]),
        (["--model", "llama-3.1-8b"], ["R1", "R2", "R3", "R4", "R9"]),
        (["--only-informative"], ["R1", "R2", "R3"]),
        (["--only-informative", "--split", "valid"], ["R1", "R3"]),
    ],
)
def test_rows_can_be_chosen(runs: Path, options: list[str], run_ids: list[str]) -> None:
    """By split, model, and whether they count in the headline."""
    assert [row["run_id"] for row in _document("--runs", runs, *options)["rows"]] == run_ids


def test_the_horizon_can_be_given(runs: Path) -> None:
    """It replaces the length of every run."""
    document = _document("--runs", runs, "--only-informative", "--horizon-s", "20")
    assert document["horizon_s"] == 20.0


def test_the_report_is_one_page_that_needs_nothing_else(runs: Path, tmp_path: Path) -> None:
    """Figures are in it, references stay within it, and no two elements share an identifier."""
    path = tmp_path / "report.html"
    code, _, errors = _run("--runs", runs, "--report", path)
    assert code == 0
    assert f"wrote {path}" in errors
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert text.count("<svg") == 3
    assert page.references
    assert {reference[0] for reference in page.references} == {"#"}
    assert len(page.identifiers) == len(set(page.identifiers))
    assert {reference[1:] for reference in page.references} <= set(page.identifiers)
    assert page.headings[:2] == ["The twin against measured runs", "Errors over informative runs whose client kept up"]
    for text_of_a_row in ("R9", "lacks memory", "slots-bound", "Error over slots"):
        assert text_of_a_row in text


def test_the_report_escapes_what_the_table_says(tmp_path: Path) -> None:
    """A run's name is text, not markup."""
    runs = write_runs(tmp_path / "runs.csv", [RUN | {"run_id": "<script>alert(1)</script>"}])
    validation = Validation.model_validate(_document("--runs", runs))
    page = render_report(validation)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert render_report(validation) == page


def test_a_report_of_runs_without_measurements_can_be_drawn(tmp_path: Path) -> None:
    """Predictions of runs that nobody has measured yet: no points, no errors, but every row."""
    unmeasured = dict.fromkeys(("tok_per_s", "itl_mean_ms", "waiting_mean", "goodput_ratio", "starved"), "")
    runs = write_runs(tmp_path / "runs.csv", [RUN | unmeasured | {"informative": 0}])
    document = _document("--runs", runs, "--report", tmp_path / "report.html")
    assert document["rows"][0]["regime"] == "not measured"
    assert "R1" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_prior_is_no_measured_profile_here_either(runs: Path, tmp_path: Path) -> None:
    """Errors of a prior are those of a guess: in the document, on standard error and in the report."""
    profile, page = tmp_path / "prior.json", tmp_path / "report.html"
    save_profile(prior_profile(SHIPPED_MODELS["llama-3.1-8b"], "h100-64gb"), profile)
    chosen = ("--runs", runs, "--profile", profile, "--horizon", "60", "--only-informative")
    code, output, errors = _run(*chosen, "--json", "--report", page)
    assert code == 0
    (warning,) = json.loads(output)["warnings"]
    assert "are a prior, not measured on h100-64gb" in warning
    assert "warning: The step times of the profile" in errors
    assert "not measured on h100-64gb" in page.read_text(encoding="utf-8")


def test_what_makes_the_numbers_say_less_is_said(tmp_path: Path) -> None:
    """Another GPU, cells that are empty, replays in part, and another twin that ran something else."""
    rows = [RUN | {"gpu": "NVIDIA A100-SXM4-80GB", "tok_per_s": ""}, RUN | {"run_id": "R2", "model": "gemma"}]
    runs = write_runs(tmp_path / "runs.csv", rows, columns=(*RUN, "gpu"))
    published = write_published(
        tmp_path / "twin.csv", [{"run_id": "X1", "twin_total_throughput": 1500, "twin_itl": 16}]
    )
    code, output, errors = _run(
        *("--runs", runs, "--model", "llama-3.1-8b", "--published-twin", published, "--horizon", "20", "--json")
    )
    assert code == 0
    warnings = json.loads(output)["warnings"]
    for text in (
        "are of other models, and left out: 'gemma' (1)",
        "is another than the profile's (h100-64gb): 'NVIDIA A100-SXM4-80GB' (1)",
        "not scored by what is empty: `tok_per_s` in 1",
        "than the 20 s that are simulated",
        f"None of the 1 rows of {published} is of a replayed run",
    ):
        assert sum(text in warning for warning in warnings) == 1, text
        assert text in errors


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_of_the_report_is_named_with_its_extra(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    """Before anything is simulated; exit code 6."""
    monkeypatch.setitem(sys.modules, library, None)
    code, output, errors = _run("--runs", runs, "--report", tmp_path / "report.html")
    assert (code, output) == (6, "")
    assert "error: an HTML report needs the extra `report`." in errors
    assert library in errors
    assert "hint: pip install 'lora-placer[report]'" in errors
    assert "simulating" not in errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rates_counts": "0.5"}, ["`rates_counts` must be rate:count pairs", "'0.5'", "run R1", "runs.csv:2"]),
        ({"tok_per_s": "much"}, ["`tok_per_s` must be a number", "'much'", "run R1"]),
        ({"model": "gemma"}, ["`model` must be one of", "'gemma'", "run R1"]),
    ],
)
def test_a_bad_cell_is_bad_input(tmp_path: Path, changes: dict[str, str], words: list[str]) -> None:
    """Exit code 2 and a message that names file, run, column and value."""
    code, output, errors = _run("--runs", write_runs(tmp_path / "runs.csv", [RUN | changes]))
    assert (code, output) == (2, "")
    for word in words:
        assert word in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "test"], "none is left"),
        (["--model", "gemma"], "must be one of"),
        (["--profile", "nowhere.json"], "`profile` must be one of"),
        (["--profile", "qwen2.5-7b-h100-64gb"], "the profile's model must be that of the runs"),
        (["--published-twin", "nowhere.csv"], "must be a readable file"),
        (["--predictions", "nowhere/p.csv"], "the output path of `--predictions` must be writable"),
        (["--report", "nowhere/r.html"], "the output path of `--report` must be writable"),
        (["--engine", "magic"], "`engine` must be one of"),
        (["--horizon-s", "0"], "--horizon"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_bad_options_are_bad_input(runs: Path, options: list[str], words: str) -> None:
    """Exit code 2, nothing on standard output."""
    code, output, errors = _run("--runs", runs, *options)
    assert (code, output) == (2, "")
    assert words in errors
    assert "Traceback" not in errors


def test_a_missing_table_is_bad_input(tmp_path: Path) -> None:
    """Both without the option and without the file."""
    assert _run()[0] == 2
    code, _, errors = _run("--runs", tmp_path / "missing.csv")
    assert code == 2
    assert "must be a readable file" in errors


def test_the_schema_of_the_document_is_printed() -> None:
    """`placer schema` knows what `--json` prints."""
    result = CliRunner().invoke(app, ["schema", "validation"], prog_name="placer")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == validation_schema()


def test_one_of_a_thing_is_not_several(tmp_path: Path) -> None:
    """One run, one row, one core; and what is loaded is named."""
    table = write_runs(tmp_path / "runs6.csv", [RUN])
    code, output, errors = _run("--runs", table, "--workers", "1")
    assert code == 0
    assert f"loading the runs of {table}" in errors
    assert "simulating 1 run with" in errors
    assert "runs6.csv: 1 run replayed, 0 rows left out" in output
    assert " on 1 core; one takes" in output
