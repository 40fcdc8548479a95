"""Constraints from a problem file to the plan: solved, repaired, told, and checked again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_problem
from placer.plan_document import Plan, plan_schema
from placer.planning import plan
from placer.verify import verify_gpus
from predictors.surrogate import Surrogate
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from tests.placer.small_fleets import PROFILE, HopefulSurrogate, fair_surrogate, small_data, write_problem

RUNNER = CliRunner()
GPU = {"memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE}
TYPES = [{"name": "common", **GPU}, {"name": "special", **GPU}]
RULES: dict[str, Any] = {
    "gpu_type": [{"adapters": ["a0", "a5"], "types": ["special"]}],
    "together": [{"adapters": ["a4", "a[67]"]}],
    "apart": [{"adapters": ["a1", "a2", "a3"]}],
    "limits": [{"adapters": ["a4"], "itl_p95_ms": 60}],
}


def constrained_file(folder: Path, **changes: Any) -> Path:
    """Return a problem of eight adapters with rules of all kinds."""
    data = small_data(num_adapters=8, total_rps=12.0, gpu_types=TYPES, constraints=RULES)
    return write_problem(folder, data | changes)


def assert_kept(gpus: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Assert the rules one by one on (GPU type, adapters)."""
    sets = [set(adapters) for _, adapters in gpus]
    assert all(kind == "special" for kind, adapters in gpus if {"a0", "a5"} & set(adapters))
    assert all({"a4", "a6", "a7"} <= served for served in sets if served & {"a4", "a6", "a7"})
    assert all(len(served & {"a1", "a2", "a3"}) <= 1 for served in sets)
    assert sorted(name for served in sets for name in served) == [f"a{index}" for index in range(8)]


def planned(problem: Problem, surrogate: Surrogate) -> Plan:
    """Return the plan of a few questions."""
    return plan(problem, surrogate=surrogate, solver="bfd", horizon_s=600.0, warmup_s=100.0)


def test_solve_and_verify_keep_and_tell_constraints(tmp_path: Path) -> None:
    """The file, the plan, its text and the second look at it say the same."""
    path, out = constrained_file(tmp_path), tmp_path / "plan.json"
    arguments = ["solve", str(path), "--solver", "bfd", "--horizon", "600", "--output", str(out)]
    result = RUNNER.invoke(app, arguments, prog_name="placer")
    assert result.exit_code == 0, result.stderr
    assert "constraints: gpu_type (1 rule), together (1 rule), apart (1 rule), limits (1 rule)" in result.stdout
    content = json.loads(out.read_text(encoding="utf-8"))
    assert_kept([(gpu["gpu_type"], gpu["adapters"]) for gpu in content["gpus"]])
    assert content["configuration"]["constraints"]["together"] == [{"adapters": ["a4", "a[67]"]}]
    checked = RUNNER.invoke(app, ["verify", str(out), "--horizon", "300"], prog_name="placer")
    assert "breaks" not in checked.stderr
    constrained_file(tmp_path, constraints={"apart": [{"adapters": ["a4", "a6"]}]})
    warned = RUNNER.invoke(app, ["verify", str(out), "--horizon", "300"], prog_name="placer")
    assert "breaks the problem's constraints" in " ".join(warned.stderr.split())


def test_a_solver_that_ignores_constraints_is_refused(tmp_path: Path) -> None:
    """The command says which solver to take, before anything is solved."""
    arguments = ["solve", str(constrained_file(tmp_path)), "--solver", "dlora"]
    result = RUNNER.invoke(app, arguments, prog_name="placer")
    assert result.exit_code == 6
    assert "portfolio" in result.stderr


def test_repair_and_improvement_keep_constraints(tmp_path: Path) -> None:
    """What an optimistic surrogate packs is taken apart by the twin, group by group, on the right types."""
    busy = small_data(num_adapters=8, total_rps=22.0)["adapters"]
    result = planned(load_problem(constrained_file(tmp_path, adapters=busy)), HopefulSurrogate())
    assert result.repair.rejected_at_first > 0
    assert result.verdict == "accepted"
    assert_kept([(gpu.gpu_type, gpu.adapters) for gpu in result.gpus])


def test_the_twin_judges_a_gpu_by_the_limits_of_its_adapters(tmp_path: Path) -> None:
    """A limit that one adapter has is checked where it is served, and nowhere else."""
    gpus = [GpuAssignment(1, (0, other), 2, 16) for other in (4, 5)]
    window: dict[str, Any] = {"horizon_s": 600.0, "warmup_s": 100.0}
    free = verify_gpus(load_problem(constrained_file(tmp_path, constraints={})), gpus, **window)
    assert [verdict.is_accepted for verdict in free] == [True, True]
    assert free[0].itl_p95_s is not None
    limit_ms = round(900.0 * free[0].itl_p95_s, 1)
    own = {"limits": [{"adapters": ["a4"], "itl_p95_ms": limit_ms}]}
    limited = verify_gpus(load_problem(constrained_file(tmp_path, constraints=own)), gpus, **window)
    assert [verdict.is_accepted for verdict in limited] == [False, True]
    assert f"is above {limit_ms:g} ms" in limited[0].reasons[0]


def test_unconstrained_plans_say_nothing_of_constraints(tmp_path: Path) -> None:
    """The section is optional in the file, in the plan, and in plans of earlier versions."""
    path = write_problem(tmp_path, small_data(num_adapters=4, total_rps=4.0))
    result = planned(load_problem(path), fair_surrogate())
    assert not result.configuration.constraints.are_given
    assert "constraints" in plan_schema()["$defs"]["PlanConfiguration"]["properties"]
