"""HiGHS and CBC through PuLP: the one module that knows them.

PuLP reports a time limit as "Optimal" for both, gives infeasible variables the value 0, and of CBC without an integer
solution the values of a relaxation. So only `sol_status` is read, values count only when they are whole, and nothing is
called optimal but what the solver itself calls optimal. HiGHS runs in this process (in another thread, so that Ctrl-C
can stop it), CBC in a child process, which ends with the call whatever ends that.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import highspy
import pulp

from solvers.native_call import call_interruptibly
from twin.errors import SolverError

BackEnd = Literal["highs", "cbc"]

# Largest distance of a value from a whole number.
INTEGRALITY = 1e-5


class Outcome(Enum):
    """What the back end proved, or has."""

    OPTIMAL = "optimal"
    """Whole values, and a proof that there are none better."""
    FEASIBLE = "feasible"
    """Whole values."""
    INFEASIBLE = "infeasible"
    """A proof that there are none."""
    UNKNOWN = "unknown"
    """Nothing."""


_OUTCOMES = {
    pulp.LpSolutionOptimal: Outcome.OPTIMAL,
    pulp.LpSolutionIntegerFeasible: Outcome.FEASIBLE,
    pulp.LpSolutionInfeasible: Outcome.INFEASIBLE,
    pulp.LpSolutionNoSolutionFound: Outcome.UNKNOWN,
}
_HIGHS_STATUSES = {
    highspy.HighsModelStatus.kOptimal: (pulp.LpStatusOptimal, pulp.LpSolutionOptimal),
    highspy.HighsModelStatus.kInfeasible: (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible),
}
_UNKNOWN = (pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound)
_STOPPED = (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible)


@dataclass(frozen=True)
class Program:
    """Minimise ``costs @ z`` over whole z >= 0, with linear constraints.

    Attributes
    ----------
    costs
        Of the V variables.
    upper
        Largest value of each; ``None``: no limit.
    rows
        Each: coefficients by variable, and what their sum must be: at least the first, at most the second number
        (``None``: no limit).
    """

    costs: list[int]
    upper: list[int | None]
    rows: list[tuple[dict[int, float], float | None, float | None]]


@dataclass(frozen=True)
class Answer:
    """What a back end says; `values` are whole, and there unless the outcome is INFEASIBLE or UNKNOWN."""

    outcome: Outcome
    values: list[int] | None


def solve_program(program: Program, back_end: BackEnd, *, seconds: float | None, max_nodes: int | None) -> Answer:
    """Let a back end solve a program; Ctrl-C ends it.

    Parameters
    ----------
    program, back_end
        What, and who.
    seconds, max_nodes
        Limits; ``None``: unlimited. Nodes of the search are the same on every machine.

    Raises
    ------
    SolverError
        When the back end fails.
    """
    problem = pulp.LpProblem("placement", pulp.LpMinimize)
    variables = [
        problem.add_variable(f"z{index}", lowBound=0, upBound=upper, cat=pulp.LpInteger)
        for index, upper in enumerate(program.upper)
    ]
    problem += pulp.lpSum(cost * variable for cost, variable in zip(program.costs, variables, strict=True))
    for coefficients, least, most in program.rows:
        total = pulp.lpSum(coefficient * variables[index] for index, coefficient in coefficients.items())
        if least is not None and least == most:
            problem += total == least
            continue
        if least is not None:
            problem += total >= least
        if most is not None:
            problem += total <= most
    solver = _highs(seconds, max_nodes) if back_end == "highs" else _cbc(seconds, max_nodes)
    try:
        problem.solve(solver)
    except pulp.PulpSolverError as error:
        raise SolverError(
            f"{back_end} must solve a program of {len(variables)} variables. It failed: {error}", field="solver"
        ) from error
    return _answer(problem, variables)


def _answer(problem: pulp.LpProblem, variables: list[pulp.LpVariable]) -> Answer:
    outcome = _OUTCOMES.get(problem.sol_status, Outcome.UNKNOWN)
    if outcome in {Outcome.INFEASIBLE, Outcome.UNKNOWN}:
        return Answer(outcome, None)
    values = [variable.value() for variable in variables]
    if any(value is None or abs(value - round(value)) > INTEGRALITY for value in values):
        return Answer(Outcome.UNKNOWN, None)
    return Answer(outcome, [round(value) for value in values])


class _Highs(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS, stopped by Ctrl-C, and with statuses that promise no more than HiGHS does."""

    def callSolver(self, lp: Any) -> None:  # noqa: N802 - PuLP's name
        lp.solverModel.HandleUserInterrupt = True
        call_interruptibly(lp.solverModel.run, stop=lp.solverModel.cancelSolve)

    def findSolutionValues(self, lp: Any) -> tuple[int, int]:  # noqa: N802 - PuLP's name
        status = lp.solverModel.getModelStatus()
        has_values = lp.solverModel.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if has_values:
            values = lp.solverModel.getSolution().col_value
            for variable in lp.variables():
                variable.varValue = values[variable.index]
        return _HIGHS_STATUSES.get(status, _STOPPED if has_values else _UNKNOWN)


def _highs(seconds: float | None, max_nodes: int | None) -> pulp.LpSolver:
    """Return HiGHS with one thread: instances with different numbers of threads fail in one process."""
    options = {} if max_nodes is None else {"mip_max_nodes": max_nodes}
    return _Highs(msg=False, gapRel=0.0, threads=1, timeLimit=seconds, random_seed=0, **options)


class _Child:
    """A child process that can be stopped at any time, also while it is being started."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def run(self) -> int:
        """Start the process, wait for its end, and return its exit status."""
        # A session of its own: Ctrl-C of the terminal must reach this process only, which ends the child itself.
        with subprocess.Popen(  # noqa: S603 - PuLP's own CBC, with file names made here
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            # Whoever comes second, this line or `stop`, sees what the other did.
            self._process = process
            if self._is_stopped:
                process.kill()
            return process.wait()

    def stop(self) -> None:
        """End the process, from another thread."""
        self._is_stopped = True
        if self._process is not None:
            self._process.kill()


class _Cbc(pulp.COIN_CMD):  # type: ignore[misc]
    """CBC, whose process ends with the call."""

    def solve_CBC(self, lp: Any, use_mps: bool = True) -> int:  # noqa: N802, FBT001, FBT002 - PuLP's signature
        del use_mps
        with TemporaryDirectory(prefix="placement-") as folder:
            model, solution = Path(folder) / "model.mps", Path(folder) / "solution.txt"
            variables, names, row_names, _ = lp.writeMPS(str(model), rename=1)
            limits = [] if self.timeLimit is None else ["-sec", str(self.timeLimit)]
            options = [part for option in self.getOptions() for part in f"-{option}".split()]
            command = [self.path, str(model), *limits, *options, "-solve", "-printingOptions", "all"]
            child = _Child([*command, "-solution", str(solution)])
            exit_status = call_interruptibly(child.run, stop=child.stop)
            if exit_status != 0 or not solution.exists():
                raise pulp.PulpSolverError(f"exit status {exit_status}")
            status, values, *_, sol_status = self.readsol_MPS(str(solution), lp, variables, names, row_names)
        if status == pulp.LpStatusInfeasible:
            # "Integer infeasible" is a proof too, which PuLP does not count as one.
            sol_status = pulp.LpSolutionInfeasible
        lp.assignVarsVals(values)
        lp.assignStatus(status, sol_status)
        return int(status)


def _cbc(seconds: float | None, max_nodes: int | None) -> pulp.LpSolver:
    return _Cbc(
        path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.0, threads=1, timeLimit=seconds, maxNodes=max_nodes
    )
