"""The native libraries: living together, ending on Ctrl-C, and saying no more than they know."""

import _thread
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pulp
import pytest
from ortools.sat.python import cp_model

from solvers import cpsat_model, milp_native
from solvers.adapter_types import exact_types
from solvers.capacity_model import concave_hull
from solvers.cpsat_model import CountModel, Effort
from solvers.load_columns import LoadColumns
from solvers.milp_native import BackEnd, Outcome, Program, solve_program
from solvers.native_call import call_interruptibly
from solvers.refusals import LoadCut
from solvers.registry import get_solver, solver_entries
from tests.solvers.problems import random_problem
from twin.errors import SolverError

BACK_ENDS: tuple[BackEnd, ...] = ("highs", "cbc")
SOLVE_WITH_BOTH = """
from solvers.budget import Budget
from solvers.registry import get_solver
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.small_problems import small_problem
for name in {names}:
    result = get_solver(name).solve(small_problem(3), AnalyticSurrogate(), budget=Budget())
    print(name, result.termination.value, result.evaluation.num_gpus)
"""


def run_python(code: str) -> list[str]:
    """Run code in a new interpreter; return the lines of its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "imports", [("highspy", "ortools.sat.python.cp_model"), ("ortools.sat.python.cp_model", "highspy")]
)
def test_native_libraries_live_together(imports: tuple[str, str]) -> None:
    """Some versions of HiGHS and OR-Tools end the process when both are loaded; the pins exclude them."""
    names = ["milp", "cpsat", "milp-cbc", "milp"]
    if imports[0] != "highspy":
        names = names[1:]
    lines = run_python("\n".join(f"import {module}" for module in imports) + SOLVE_WITH_BOTH.format(names=names))
    assert [line.split()[:2] for line in lines] == [[name, "proven"] for name in names]
    assert len({line.split()[2] for line in lines}) == 1


def test_the_registry_loads_no_native_library() -> None:
    """Listing solvers, and making one, must stay quick."""
    code = (
        "import sys; from solvers.registry import get_solver, solver_names; [get_solver(n) for n in solver_names()]; "
    )
    assert run_python(code + "print(sorted({'ortools', 'pulp', 'highspy'} & set(sys.modules)))") == ["[]"]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("cpsat", "ortools", "cpsat"),
        ("milp", "highspy", "milp"),
        ("milp", "pulp", "milp"),
        ("milp-cbc", "pulp", "milp"),
        ("milp-capacity", "highspy", "milp"),
    ],
)
def test_a_missing_library_makes_the_solver_unavailable(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    """The extra that brings it is named."""
    monkeypatch.setitem(sys.modules, module, None)
    availability = next(entry for entry in solver_entries() if entry.name == name).availability()
    assert (availability.is_available, availability.extra) == (False, extra)
    with pytest.raises(SolverError, match=f"not installed: {module}") as caught:
        get_solver(name)
    assert caught.value.hint == f"pip install 'lora-placer[{extra}]'"


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize(
    ("row", "expected", "values"),
    [
        (({0: 2.0, 1: 3.0}, 7.0, 7.0), Outcome.OPTIMAL, [2, 1]),
        (({0: 2.0, 1: 2.0}, 7.0, 7.0), Outcome.INFEASIBLE, None),
        (({0: 1.0, 1: 1.0}, 9.0, None), Outcome.INFEASIBLE, None),
    ],
    ids=["optimal", "no whole solution", "no solution"],
)
def test_outcomes_are_the_same_for_every_back_end(
    back_end: BackEnd,
    row: tuple[dict[int, float], float | None, float | None],
    expected: Outcome,
    values: list[int] | None,
) -> None:
    """Optimal, and both kinds of infeasible, which CBC words differently."""
    program = Program(costs=[1, 1], upper=[4, 4], rows=[row])
    answer = solve_program(program, back_end, seconds=None, max_nodes=None)
    assert (answer.outcome, answer.values) == (expected, values)


def hard_program() -> Program:
    """Return a market split program, which takes far longer than any test: 4 sums of 30 numbers, each cut in half."""
    generator = np.random.default_rng(5)
    numbers = generator.integers(1, 100, size=(4, 30))
    rows: list[tuple[dict[int, float], float | None, float | None]] = []
    for row in numbers:
        half = float(row.sum() // 2)
        slack = {30 + 2 * len(rows): 1.0, 31 + 2 * len(rows): -1.0}
        rows.append(({**{index: float(value) for index, value in enumerate(row)}, **slack}, half, half))
    return Program(costs=[0] * 30 + [1] * 8, upper=[1] * 30 + [None] * 8, rows=rows)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_limit_is_not_called_optimal(back_end: BackEnd) -> None:
    """PuLP says "Optimal" when a limit ends the search; the answer is feasible at most, and keeps the constraints."""
    program = hard_program()
    answer = solve_program(program, back_end, seconds=None, max_nodes=1)
    assert answer.outcome in {Outcome.FEASIBLE, Outcome.UNKNOWN}
    if answer.values is not None:
        for coefficients, least, _ in program.rows:
            assert sum(value * answer.values[index] for index, value in coefficients.items()) == least


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    """A native solver's process does not outlive the call that started it."""
    pid_file = tmp_path / "pid"
    script = tmp_path / "never-ending"
    script.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nkill -INT $PPID\nexec tail -f /dev/null\n")
    script.chmod(0o755)
    problem = pulp.LpProblem("p", pulp.LpMinimize)
    problem += problem.add_variable("z", lowBound=1, cat=pulp.LpInteger)
    with pytest.raises(KeyboardInterrupt):
        problem.solve(milp_native._Cbc(path=str(script), msg=False))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_failing_child_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A native failure is an exception, not an answer."""
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(script))
    with pytest.raises(SolverError, match=r"cbc must solve a program of 1 variables\. It failed: exit status 3"):
        solve_program(
            Program(costs=[1], upper=[None], rows=[({0: 1.0}, 1.0, None)]), "cbc", seconds=None, max_nodes=None
        )


def test_ctrl_c_stops_highs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a search that would not end: this test does not end either if it is not heard."""

    class Interrupting(milp_native._Highs):
        """Presses Ctrl-C when the search is under way."""

        def createAndConfigureSolver(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
            """Configure, and watch the search."""
            super().createAndConfigureSolver(lp)
            pressed = threading.Event()

            def press(_event: object) -> None:
                if not pressed.is_set():
                    pressed.set()
                    _thread.interrupt_main()

            lp.solverModel.cbMipInterrupt += press

    monkeypatch.setattr(milp_native, "_Highs", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        solve_program(hard_program(), "highs", seconds=None, max_nodes=None)


def test_ctrl_c_stops_cpsat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when CP-SAT begins to search a model for which it would need very long."""
    types = exact_types(random_problem(1, 60, load_gpus=3.0))
    columns = LoadColumns(types)
    model = CountModel(types, columns, num_gpus=7, weights=[1], weight_limit=7, max_counts=[None])
    total = int((types.counts @ columns.units)[1])
    model.add(LoadCut(0, ((1, total // 7),)))
    configure = cpsat_model.configured_solver

    def pressing(effort: Effort) -> cp_model.CpSolver:
        solver = configure(effort)
        solver.parameters.log_search_progress = True
        solver.parameters.log_to_stdout = False
        pressed = threading.Event()

        def press(message: str) -> None:
            if "Starting" in message and not pressed.is_set():
                pressed.set()
                _thread.interrupt_main()

        solver.log_callback = press
        return solver

    monkeypatch.setattr(cpsat_model, "configured_solver", pressing)
    with pytest.raises(KeyboardInterrupt):
        model.solve(Effort(None, None))


def test_an_interrupted_call_is_stopped_and_awaited() -> None:
    """The thread of a native call does not go on behind the back of whoever pressed Ctrl-C."""
    stopped = threading.Event()

    def work() -> bool:
        _thread.interrupt_main()
        return stopped.wait()

    with pytest.raises(KeyboardInterrupt):
        call_interruptibly(work, stop=stopped.set)
    assert stopped.is_set()


def test_a_concave_hull_is_above_all_points_and_touches_some() -> None:
    """Capacity curves are no lower than what was seen."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        x = generator.integers(1, 8, size=10).astype(np.float64)
        y = generator.uniform(0.0, 1.0, size=10)
        lines = concave_hull(x, y)
        above = np.min([slope * x + offset for slope, offset in lines], axis=0)
        assert (above >= y - 1e-12).all()
        assert np.isclose(above, y).sum() >= min(2, len(np.unique(x)))
