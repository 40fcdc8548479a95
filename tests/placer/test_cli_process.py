"""The program as a process: exit codes, clean standard output, signals, what a start loads."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.placer.small_fleets import PROFILE, small_data, write_problem

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "azure-llama-400.yaml"
PROGRAM = "from placer.cli import main; main()"
GPU: dict[str, Any] = {"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}


def _command(*arguments: str | Path, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\n{PROGRAM}", *map(str, arguments)]


def _environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def _run(*arguments: str | Path, before: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    run = subprocess.run(
        _command(*arguments, before=before), env=_environment(**changes), capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr
    return run


@pytest.fixture
def problem_path(tmp_path: Path) -> Path:
    """Return a problem of four adapters that need two GPUs."""
    return write_problem(tmp_path, small_data(num_adapters=4, total_rps=11.0))


def test_solve_to_verify(problem_path: Path) -> None:
    """The plan that one process prints as JSON is what another one verifies; both succeed."""
    solved = _run("solve", problem_path, "--surrogate", "exact", "--horizon", "600", "--json")
    assert solved.returncode == 0
    path = problem_path.with_name("plan.json")
    path.write_text(solved.stdout, encoding="utf-8")
    verified = _run("verify", path, "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["verdict"] == json.loads(solved.stdout)["verdict"] == "accepted"


def test_no_escape_codes_where_nobody_looks(problem_path: Path) -> None:
    """Pipes and files get plain text."""
    run = _run("simulate", problem_path, "--horizon", "60")
    assert run.returncode == 0
    assert "\x1b" not in run.stdout + run.stderr


def test_tables_survive_an_ascii_terminal(problem_path: Path) -> None:
    """Where the encoding has no lines to draw with, tables are drawn without."""
    run = _run("simulate", problem_path, "--horizon", "60", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert run.returncode == 0
    assert run.stdout.isascii()


def test_bad_input_is_exit_code_2(tmp_path: Path) -> None:
    """Message and hint."""
    run = _run("solve", tmp_path / "none.yaml", "--json")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert "\nhint: " in run.stderr


def test_proven_infeasible_is_exit_code_3(tmp_path: Path) -> None:
    """The bound is above what may be used; the JSON says so as well."""
    path = write_problem(tmp_path, small_data(total_rps=40.0, gpu_types=[{**GPU, "max_count": 1}]))
    run = _run("solve", path, "--surrogate", "exact", "--json")
    assert run.returncode == 3
    assert json.loads(run.stdout)["termination"] == "proven"
    assert "error: there is no placement. At least " in run.stderr
    assert "--budget" not in run.stderr


def test_no_solution_within_the_budget_is_exit_code_4(problem_path: Path) -> None:
    """No time, no plan, no proof."""
    run = _run("solve", problem_path, "--surrogate", "exact", "--budget", "0")
    assert (run.returncode, run.stdout) == (4, "")
    assert "error: there is no placement." in run.stderr


def test_a_rejected_plan_is_exit_code_5(tmp_path: Path) -> None:
    """A plan for light traffic does not hold for three times as much."""
    light = write_problem(tmp_path, small_data(num_adapters=4, total_rps=6.0), "light.yaml")
    heavy = write_problem(tmp_path, small_data(num_adapters=4, total_rps=18.0), "heavy.yaml")
    path = tmp_path / "plan.json"
    assert _run("solve", light, "--surrogate", "exact", "--no-verify", "-o", path).returncode == 0
    run = _run("verify", path, "--problem", heavy)
    assert run.returncode == 5
    assert "error: the twin rejects" in run.stderr


def test_a_missing_back_end_is_exit_code_6(problem_path: Path) -> None:
    """An installation without ONNX Runtime says what to install."""
    model = problem_path.with_name("model.onnx")
    model.write_bytes(b"whatever")
    run = _run("solve", problem_path, "--surrogate", model, before="import sys; sys.modules['onnxruntime'] = None")
    assert (run.returncode, run.stdout) == (6, "")
    assert "pip install onnxruntime" in run.stderr


def test_ctrl_c_is_exit_code_130() -> None:
    """The signal arrives while the solver asks the twin about 400 adapters; nothing is left behind but a message."""
    process = subprocess.Popen(
        _command("solve", EXAMPLE, "--surrogate", "exact", "--budget", "600"),
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("solving"):
            process.send_signal(signal.SIGINT)
            break
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (130, "")
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("module", ["typer", "twin.errors"])
def test_ctrl_c_while_the_program_loads_is_exit_code_130(problem_path: Path, module: str) -> None:
    """The signal arrives during an import, where no command can catch it yet."""
    before = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())"
    )
    run = _run("solve", problem_path, before=before)
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr == "error: interrupted before there was anything to report.\n"


def test_too_little_memory_is_no_bug() -> None:
    """Traffic that no machine could hold is most often a rate in another unit."""
    run = _run("schema", before="import solvers.problem_file as m; m.problem_schema = lambda: bytearray(1 << 62)")
    assert (run.returncode, run.stdout) == (6, "")
    assert "error: this takes more memory than there is." in run.stderr
    assert "hint: look for a rate in another unit" in run.stderr


def test_a_closed_pipe_is_no_error() -> None:
    """`placer ... | head -1` ends quietly."""
    process = subprocess.Popen(
        _command("schema"), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in errors


def test_a_bug_says_that_it_is_one() -> None:
    """An exception that nobody expected is the program's fault, and the user is told so."""
    before = "import solvers.problem_file as m; m.problem_schema = lambda: 1 / 0"
    run = _run("schema", before=before)
    assert (run.returncode, run.stdout) == (1, "")
    assert "error: this is a bug of placer: ZeroDivisionError" in run.stderr
    assert "hint: please report it" in run.stderr


def test_the_way_to_the_solver_loads_no_data_frames() -> None:
    """What takes long to load and is not needed to plan a problem file must not be on that way."""
    script = (
        "import json, sys\n"
        "import placer.cli.application, placer.cli.progress, placer.planning\n"
        "from placer.files import load_problem\n"
        f"load_problem({str(EXAMPLE)!r})\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run([sys.executable, "-c", script], env=_environment(), capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "numpy" in loaded
    assert loaded & {"pandas", "pyarrow", "sklearn", "scipy", "numba", "simpy", "ortools", "highspy", "rich"} == set()


def test_help_loads_nothing_but_the_options() -> None:
    """`placer --help` and completion must answer at once."""
    script = "import json, sys, placer.cli.application\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], env=_environment(), capture_output=True, text=True, check=True)
    own = {
        name for name in json.loads(run.stdout) if name.partition(".")[0] in {"placer", "twin", "solvers", "predictors"}
    }
    assert {name for name in own if not name.startswith("placer.cli")} == {"placer"}
    assert not {"numpy", "pydantic", "rich"} & {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_the_package_runs_as_a_module() -> None:
    """`python -m placer` is the program too, for environments whose scripts are not on the path."""
    run = subprocess.run([sys.executable, "-m", "placer", "--version"], check=False, capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.startswith("placer ")
