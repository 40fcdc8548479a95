"""The command line in this process: what goes where, exit codes, and messages for every kind of bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from placer.cli.application import app
from placer.cli.exits import exit_code_of
from placer.files import load_plan, load_problem, save_plan
from placer.plan_document import Plan
from placer.planning import plan
from predictors.features import FEATURE_SCHEMA
from solvers.registry import solver_names
from tests.placer.small_fleets import LENGTHS, PROFILE, fair_surrogate, small_data, write_problem
from twin.report import SimulationReport

RUNNER = CliRunner()
NUM_ADAPTERS = 4
TOTAL_RPS = 11.0


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def problem_path(tmp_path: Path) -> Path:
    """Return a problem of four adapters that need two GPUs: small enough for the exact surrogate."""
    return write_problem(tmp_path, small_data(num_adapters=NUM_ADAPTERS, total_rps=TOTAL_RPS))


@pytest.fixture
def plan_path(problem_path: Path) -> Path:
    """Return an accepted plan of that problem."""
    path = problem_path.with_name("plan.json")
    save_plan(plan(load_problem(problem_path), surrogate=fair_surrogate()), path)
    return path


def test_solve_prints_the_plan_and_says_where_its_numbers_come_from(problem_path: Path) -> None:
    """The table on standard output, progress on standard error, success as exit code 0."""
    code, output, errors = _run("solve", problem_path, "--surrogate", "exact", "--horizon", "600")
    assert code == 0
    for text in ("h100-64gb-0", "ITL", "headroom", "lower bound: ", "surrogate exact", "twin, fast engine, 600 s"):
        assert text in output
    assert "simulating" in errors
    assert "Traceback" not in errors


def test_solve_writes_json_and_nothing_else_to_standard_output(problem_path: Path) -> None:
    """Standard output can be piped; the file that is written on the side is the same plan."""
    path = problem_path.with_name("out.json")
    arguments = ("--surrogate", "exact", "--horizon", "600", "--json", "-o", path, "--seed", "2")
    code, output, errors = _run("solve", problem_path, *arguments)
    assert code == 0
    result = Plan.model_validate(json.loads(output))
    assert load_plan(path) == result
    assert result.seed == 2
    assert f"wrote {path}" in errors


def test_solve_says_how_much_was_asked_and_what_ended_it(problem_path: Path) -> None:
    """Rows and questions, and the limit that the user may want to raise."""
    limited = ("--no-verify", "--solver", "local_search", "--max-evaluations", "20")
    code, output, _ = _run("solve", problem_path, "--surrogate", "exact", *limited)
    assert code == 0
    found = re.search(
        r"^search: local_search, (\d+) rows in (\d+) questions to the surrogate, (.*)$", output, re.MULTILINE
    )
    assert found is not None
    assert int(found[1]) >= 20
    assert 0 < int(found[2]) <= int(found[1])
    assert found[3].strip() == "ended by the limit of 20 rows"


def test_solve_without_verification_says_so(problem_path: Path) -> None:
    """Exit code 0, and the warning is on standard error."""
    code, output, errors = _run("solve", problem_path, "--surrogate", "exact", "--no-verify")
    assert code == 0
    assert "not simulated" in output
    assert "warning: Not simulated" in errors


def test_solve_says_more_when_asked(problem_path: Path) -> None:
    """Every simulated GPU is a line of its own with `-v`."""
    code, _, errors = _run("solve", problem_path, "--surrogate", "exact", "--horizon", "600", "-v")
    assert code == 0
    assert "simulated GPU 1 of " in errors


def test_verify_accepts_what_solve_accepted(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem is found beside the plan; both formats of the answer say the same."""
    monkeypatch.chdir(plan_path.parent.parent)
    code, output, _ = _run("verify", plan_path)
    assert code == 0
    assert output.count("accepted") == load_plan(plan_path).num_gpus
    code, output, _ = _run("verify", plan_path, "--json")
    content = json.loads(output)
    assert (code, content["verdict"]) == (0, "accepted")
    expected = [gpu.verification.model_dump(mode="json") for gpu in load_plan(plan_path).gpus if gpu.verification]
    assert [gpu["verification"] for gpu in content["gpus"]] == expected


def test_verify_one_gpu_with_the_readable_engine(plan_path: Path) -> None:
    """The other engine simulates the named GPU only."""
    code, output, _ = _run(
        "verify", plan_path, "--engine", "simpy", "--gpu", "h100-64gb-1", "--horizon", "120", "--json"
    )
    (gpu,) = json.loads(output)["gpus"]
    assert (gpu["name"], gpu["verification"]["engine"], gpu["verification"]["horizon_s"]) == (
        "h100-64gb-1",
        "simpy",
        120,
    )
    assert code in {0, 5}


def _overload(path: Path) -> None:
    """Move all adapters of a plan to its first GPU, as somebody might by hand."""
    content = json.loads(path.read_text(encoding="utf-8"))
    everything = [name for gpu in content["gpus"] for name in gpu["adapters"]]
    content["gpus"] = [content["gpus"][0] | {"adapters": everything}]
    content["gpus"][0]["engine"] |= {"max_lora_rank": 16, "max_cpu_loras": 64}
    path.write_text(json.dumps(content), encoding="utf-8")


def test_verify_rejects_an_overloaded_plan(plan_path: Path) -> None:
    """Exit code 5, with the reasons in words."""
    _overload(plan_path)
    code, output, errors = _run("verify", plan_path)
    assert code == 5
    assert "starve: " in output
    assert "error: the twin rejects h100-64gb-0." in errors


def test_verify_warns_when_problem_and_plan_do_not_belong_together(plan_path: Path) -> None:
    """A problem that has changed since, and adapters that the plan leaves out."""
    path = plan_path.with_name("problem.yaml")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    data["adapters"].append({"name": "late", "rank": 8, "rate_rps": 0.1, **LENGTHS})
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    code, _, errors = _run("verify", plan_path)
    assert code == 0
    assert "warning: " in errors
    assert "has changed since" in errors
    assert "adapters of the problem are not in the plan: 1, the first is 'late'" in errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda content: content["gpus"][0]["adapters"].append("ghost"), "'ghost'", id="adapter"),
        pytest.param(lambda content: content["gpus"][0].update(gpu_type="b200"), "'b200'", id="gpu type"),
        pytest.param(lambda content: content.update(gpus=[]), "must have GPUs", id="no gpus"),
        pytest.param(lambda content: content["inputs"][0].update(name="lost.yaml"), "lost.yaml", id="problem lost"),
        pytest.param(lambda content: content.update(inputs=[]), "made without a file", id="no problem"),
    ],
)
def test_verify_refuses_a_plan_that_does_not_fit(
    plan_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """What cannot be simulated is bad input, by name."""
    content = json.loads(plan_path.read_text(encoding="utf-8"))
    change(content)
    plan_path.write_text(json.dumps(content), encoding="utf-8")
    code, output, errors = _run("verify", plan_path)
    assert (code, output) == (2, "")
    assert message in errors


def test_verify_takes_another_problem_file(plan_path: Path) -> None:
    """A problem that has moved is given by hand."""
    moved = plan_path.with_name("moved.yaml")
    plan_path.with_name("problem.yaml").rename(moved)
    assert _run("verify", plan_path)[0] == 2
    assert _run("verify", plan_path, "--problem", moved)[0] == 0


def test_verify_names_the_gpus_when_there_is_none_of_that_name(plan_path: Path) -> None:
    """The choice is in the message."""
    code, _, errors = _run("verify", plan_path, "--gpu", "h100-64gb-9")
    assert code == 2
    assert "h100-64gb-0, h100-64gb-1" in errors


def test_verify_refuses_an_unknown_engine(plan_path: Path) -> None:
    """The engines that exist are in the message."""
    code, _, errors = _run("verify", plan_path, "--engine", "warp")
    assert code == 2
    assert "fast, simpy" in errors


def test_simulate_all_adapters_on_one_replica(problem_path: Path) -> None:
    """A summary for people: load, starvation, memory, latencies."""
    code, output, _ = _run("simulate", problem_path, "--horizon", "300", "--max-loras", "2")
    assert code == 0
    for text in ("4 adapters on h100-64gb, 2 slots of rank 16", "throughput / offered", "starved", "TTFT", "p99"):
        assert text in output


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_simulate_a_gpu_of_a_plan_into_a_file(problem_path: Path, plan_path: Path, suffix: str) -> None:
    """Both formats hold the whole report; Parquet has a row per adapter on top."""
    path = problem_path.with_name(f"report.{suffix}")
    window = ("--horizon", "300", "--warmup", "60", "--interval", "30")
    arguments = (problem_path, "--plan", plan_path, "--gpu", "h100-64gb-0", *window)
    code, output, _ = _run("simulate", *arguments, "--json", "--output", path)
    assert code == 0
    report = SimulationReport.model_validate_json(output)
    assert tuple(adapter.name for adapter in report.adapters) == load_plan(plan_path).gpus[0].adapters
    assert len(report.time_series.time_s) > 5
    if suffix == "json":
        assert SimulationReport.model_validate_json(path.read_text(encoding="utf-8")) == report
        return
    table = pq.read_table(path)
    assert SimulationReport.model_validate_json(table.schema.metadata[b"placer_report"]) == report
    assert table["name"].to_pylist() == [adapter.name for adapter in report.adapters]
    assert table["ttft_p95_s"].to_pylist() == [adapter.ttft.p95_s for adapter in report.adapters]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--max-loras", "2000"), "must start", id="slots"),
        pytest.param(("--max-lora-rank", "12"), "must be one of 8, 16", id="rank not supported"),
        pytest.param(("--max-lora-rank", "8"), "at most `max_lora_rank`", id="rank too small"),
        pytest.param(("--gpu", "b200"), "must be one of h100-64gb", id="gpu type"),
        pytest.param(("--horizon", "0"), "horizon must be positive", id="horizon"),
        pytest.param(("--warmup", "4000"), "warm-up shorter", id="warm-up"),
        pytest.param(("--engine", "warp"), "fast, simpy", id="engine"),
        pytest.param(("-o", "report.txt"), ".json or .parquet", id="format"),
    ],
)
def test_simulate_refuses_what_does_not_go_together(
    problem_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Settings of one replica are the user's, and checked."""
    code, output, errors = _run("simulate", problem_path, *arguments)
    assert (code, output) == (2, "")
    assert message in errors


def test_simulate_wants_one_gpu_of_a_plan(problem_path: Path, plan_path: Path) -> None:
    """A plan of several GPUs has no default."""
    code, _, errors = _run("simulate", problem_path, "--plan", plan_path)
    assert code == 2
    assert "--gpu: h100-64gb-0, h100-64gb-1" in errors


@pytest.fixture
def trace_path(tmp_path: Path) -> Path:
    """Return a trace of two hundred requests in a hundred seconds."""
    path = tmp_path / "requests.csv"
    rows = "".join(f"{index / 2},{50 + index % 9},{20 + index % 5},lora-{index % 3}\n" for index in range(200))
    path.write_text(f"when,input,completion,adapter\n{rows}", encoding="utf-8")
    return path


COLUMNS = ("--columns", "time=when,prompt=input,output=completion,adapter=adapter")


def test_workload_makes_a_problem_that_can_be_solved(trace_path: Path) -> None:
    """From a trace to a plan in two commands."""
    path = trace_path.with_name("workload.yaml")
    mapping = ("--adapters", "4", "--popularity", "zipf:0.9", "--ranks", "8,16", "-o", path)
    code, output, errors = _run("workload", trace_path, *COLUMNS, *mapping)
    assert code == 0
    assert "offered tokens/s" in output
    assert f"wrote {path}" in errors
    problem = load_problem(path)
    assert len(problem.adapters) == 4
    assert sum(adapter.rate_rps for adapter in problem.adapters) == pytest.approx(2.0, rel=0.02)
    assert _run("solve", path, "--surrogate", "exact", "--horizon", "600")[0] == 0


def test_workload_summarises_without_writing(trace_path: Path) -> None:
    """Numbers as JSON on standard output; a hint how to go on, on standard error."""
    code, output, errors = _run("workload", trace_path, *COLUMNS, "--json")
    assert code == 0
    assert json.loads(output)["trace"]["num_requests"] == 200
    assert "hint: " in errors


def test_workload_prints_the_problem_when_asked(trace_path: Path) -> None:
    """`-o -` is for pipes: nothing but the problem file."""
    code, output, _ = _run("workload", trace_path, *COLUMNS, "-o", "-")
    assert code == 0
    assert len(yaml.safe_load(output)["adapters"]) == 3


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        pytest.param("time,prompt,output\n5,1,1\n1,1,1\n", (), "sort", id="unsorted"),
        pytest.param("time,prompt\n0,1\n1,1\n", (), "output", id="missing column"),
        pytest.param("time,prompt,output\n0,1,1\n1,0,1\n", (), "`prompt`", id="zero length"),
        pytest.param("time,prompt,output\n0,1,1\n1,1,1\n", ("--columns", "time"), "role=column", id="columns"),
        pytest.param("time,prompt,output\n0,1,1\n1,1,1\n", ("--columns", "when=time"), "when", id="role"),
        pytest.param(
            "time,prompt,output\n0,1,1\n1,1,1\n",
            ("--ranks", "12", "--adapters", "2", "--popularity", "uniform"),
            "`ranks` must be of 8, 16",
            id="rank",
        ),
        pytest.param("time,prompt,output\n0,1,1\n1,1,1\n", ("--ranks", "12"), "`ranks` must be", id="unused rank"),
        pytest.param("time,prompt,output\n0,1,1\n1,1,1\n", ("--popularity", "zipf"), "zipf", id="popularity"),
        pytest.param("time,prompt,output\n0,1,1\n1,1,1\n", ("-o", "none/w.yaml"), "writable", id="output"),
    ],
)
def test_workload_refuses_a_bad_trace(tmp_path: Path, text: str, arguments: tuple[str, ...], message: str) -> None:
    """Row and column of the trace, or the option, are in the message."""
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    code, output, errors = _run("workload", path, *arguments)
    assert (code, output) == (2, "")
    assert "error: " in errors
    assert message in errors
    assert "Traceback" not in errors


def test_solvers_lists_the_registry() -> None:
    """Names, availability and capabilities, for people and for programs."""
    code, output, _ = _run("solvers")
    assert code == 0
    assert all(name in output for name in solver_names())
    content = json.loads(_run("solvers", "--json")[1])
    assert [entry["name"] for entry in content["solvers"]] == list(solver_names())
    assert all(entry["is_available"] for entry in content["solvers"] if entry["name"] in {"bfd", "ffd"})


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        ((), "placer problem"),
        (("plan",), "placer plan"),
        (("why-not",), "placer why-not"),
        (("comparison",), "placer comparison"),
    ],
)
def test_schema_prints_json_schemas(arguments: tuple[str, ...], title: str) -> None:
    """Editors complete problem files with them."""
    code, output, errors = _run("schema", *arguments)
    content = json.loads(output)
    assert (code, errors) == (0, "")
    assert content["title"] == title
    assert content["additionalProperties"] is False


def test_schema_refuses_another_document() -> None:
    """And says which there are."""
    code, _, errors = _run("schema", "bill")
    assert code == 2
    assert "problem, plan" in errors


def _first_adapter(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["adapters"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        pytest.param(lambda d: d.update(modle="x"), ("modle", "did you mean `model`"), id="unknown key"),
        pytest.param(lambda d: d["engine"].update(max_num_seq=4), ("did you mean `max_num_seqs`",), id="engine key"),
        pytest.param(_first_adapter(rate_per_minute=3), ("`rate_rps`", "divide"), id="wrong unit"),
        pytest.param(_first_adapter(rate_rps=-1.0), ("rate_rps", "at least 0", "'a0'"), id="sign"),
        pytest.param(_first_adapter(rate_rps=float("nan")), ("rate_rps", "'a0'"), id="nan rate"),
        pytest.param(_first_adapter(rate_rps=float("inf")), ("rate_rps", "finite", "'a0'"), id="infinite rate"),
        pytest.param(_first_adapter(rank=12), ("`rank`", "8, 16, 32", "12"), id="rank not supported"),
        pytest.param(
            lambda d: (_first_adapter(rank=512)(d), d["engine"].update(max_loras=40)),
            ("`rank` must be at most", "512"),
            id="rank above the largest feasible",
        ),
        pytest.param(_first_adapter(name="a1"), ("unique", "'a1'"), id="duplicate name"),
        pytest.param(lambda d: d.update(adapters=[]), ("`adapters`", "at least 1"), id="empty workload"),
        pytest.param(_first_adapter(output_tokens={"mean": 0}), ("mean", "at least 1"), id="zero length"),
        pytest.param(
            lambda d: d["gpu_types"][0].update(profile="qwen2.5-7b-h100-64gb"),
            ("qwen2.5-7b", "llama-3.1-8b"),
            id="profile of another model",
        ),
        pytest.param(lambda d: d["gpu_types"][0].update(memory_gib=79.0), ("63.43", "79"), id="profile of another gpu"),
        pytest.param(
            lambda d: d["gpu_types"][0].update(profile="none.json"), ("`profile`", "none.json"), id="no profile"
        ),
        pytest.param(
            lambda d: d["engine"].update(gpu_memory_utilization=0.2),
            ("must fit a GPU", "h100-64gb"),
            id="model does not fit",
        ),
        pytest.param(_first_adapter(rate_rps=200.0), ("'a0'", "Replicate", "exclude"), id="adapter too large"),
    ],
)
def test_a_bad_problem_is_refused_with_what_would_be_right(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], fragments: tuple[str, ...]
) -> None:
    """Exit code 2, nothing on standard output, one sentence and no traceback on standard error."""
    data = small_data(num_adapters=NUM_ADAPTERS, total_rps=TOTAL_RPS)
    change(data)
    path = write_problem(tmp_path, data)
    code, output, errors = _run("solve", path, "--surrogate", "exact")
    assert (code, output) == (2, "")
    assert "error: " in errors
    assert "Traceback" not in errors
    for fragment in fragments:
        assert fragment in errors


def _write_model(path: Path, metadata: dict[str, str]) -> None:
    """Write an ONNX model that is no surrogate."""
    shape = [None, len(FEATURE_SCHEMA.names)]
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("features", "y")]
    node = onnx.helper.make_node("Identity", ["features"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))


METADATA = {
    "feature_schema": json.dumps({"version": 99, "names": [], "units": []}),
    "domain": "{}",
    "profile": json.dumps({"name": PROFILE}),
    "training": "{}",
    "producer": "{}",
}


@pytest.mark.parametrize(
    ("metadata", "fragment"),
    [
        pytest.param({}, "`feature_schema` is missing", id="no metadata"),
        pytest.param(METADATA, "feature schema version 2", id="another schema"),
    ],
)
def test_a_foreign_surrogate_is_refused(problem_path: Path, metadata: dict[str, str], fragment: str) -> None:
    """A file that cannot be trusted is bad input, and says what it lacks."""
    path = problem_path.with_name("model.onnx")
    _write_model(path, metadata)
    code, output, errors = _run("solve", problem_path, "--surrogate", path)
    assert (code, output) == (2, "")
    assert fragment in errors


@pytest.mark.parametrize("surrogate", ["none.onnx", "problem.yaml"])
def test_a_file_that_is_no_surrogate_is_refused(
    problem_path: Path, surrogate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing, or something else."""
    monkeypatch.chdir(problem_path.parent)
    code, _, errors = _run("solve", problem_path, "--surrogate", surrogate)
    assert code == 2
    assert surrogate in errors


def test_an_unknown_solver_is_refused_with_the_nearest_name(problem_path: Path) -> None:
    """Exit code 2: the name is the user's."""
    code, _, errors = _run("solve", problem_path, "--solver", "bdf")
    assert code == 2
    assert "hint: did you mean 'bfd'?" in errors


def test_an_unwritable_output_is_refused_before_solving(problem_path: Path, tmp_path: Path) -> None:
    """Nothing was computed that would be lost."""
    code, output, errors = _run("solve", problem_path, "-o", tmp_path / "none" / "plan.json")
    assert (code, output) == (2, "")
    assert "must be writable" in errors
    assert "solving" not in errors


def test_a_plan_that_cannot_be_written_in_the_end_is_still_printed(
    problem_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may vanish while the plan is made: exit code 2, and the result is not lost."""
    folder = problem_path.parent / "out"
    folder.mkdir()

    def plan_and_lose_the_folder(*arguments: Any, **options: Any) -> Plan:
        found = plan(*arguments, **options)
        folder.rmdir()
        return found

    monkeypatch.setattr("placer.planning.plan", plan_and_lose_the_folder)
    code, output, errors = _run(
        "solve", problem_path, "--surrogate", "exact", "--no-verify", "--json", "-o", folder / "plan.json"
    )
    assert code == 2
    assert "must be writable" in errors
    assert json.loads(output)["num_gpus"] == 2


def test_a_truncated_plan_is_refused(plan_path: Path) -> None:
    """With the command that makes it again."""
    plan_path.write_text(plan_path.read_text(encoding="utf-8")[:300], encoding="utf-8")
    code, output, errors = _run("verify", plan_path)
    assert (code, output) == (2, "")
    assert "hint: make the plan again: `placer solve" in errors


def test_a_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    """For those who report a problem."""
    code, _, errors = _run("solve", tmp_path / "none.yaml", "-v")
    assert code == 2
    assert "Traceback" in errors
    assert "error: " in errors


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        pytest.param(("sovle",), ("No such command 'sovle'", "hint: see `placer --help`"), id="command"),
        pytest.param(("solve",), ("Missing argument", "hint: see `placer solve --help`"), id="argument"),
        pytest.param(("solve", "x.yaml", "--buget", "1"), ("--buget", "--budget"), id="option"),
        pytest.param(("solve", "x.yaml", "--seed", "-1"), ("--seed",), id="range"),
        pytest.param(("solve", "x.yaml", "--budget", "soon"), ("--budget", "number"), id="type"),
    ],
)
def test_wrong_usage_is_reported_like_every_error(arguments: tuple[str, ...], fragments: tuple[str, ...]) -> None:
    """Two lines, exit code 2."""
    code, output, errors = _run(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    for fragment in fragments:
        assert fragment in errors


def test_without_a_command_the_help_is_shown() -> None:
    """On standard error, because nothing was asked for."""
    code, output, errors = _run()
    assert (code, output) == (2, "")
    assert "Commands:" in errors


def test_the_version_is_printed() -> None:
    """One line on standard output."""
    code, output, _ = _run("--version")
    assert code == 0
    assert output.startswith("placer ")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"verdict": "accepted", "termination": "completed"}, 0),
        ({"verdict": "unverified", "termination": "completed"}, 0),
        ({"verdict": "accepted", "termination": "time_limit"}, 0),
        ({"verdict": "none", "termination": "proven"}, 3),
        ({"verdict": "none", "termination": "time_limit"}, 4),
        ({"verdict": "none", "termination": "completed"}, 4),
        ({"verdict": "rejected", "termination": "completed"}, 5),
        ({"verdict": "none", "termination": "error"}, 6),
        ({"verdict": "unverified", "termination": "interrupted"}, 130),
        ({"verdict": "none", "termination": "interrupted"}, 130),
    ],
)
def test_exit_codes_follow_from_the_plan(plan_path: Path, changes: dict[str, str], code: int) -> None:
    """The table of the documentation, row by row."""
    assert exit_code_of(load_plan(plan_path).model_copy(update=changes)) == code
