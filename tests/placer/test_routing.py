"""Placement against routing: closed cases, the merged report, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.events import KernelCompiling, PlanEvent
from placer.files import load_problem, save_plan
from placer.planning import plan
from placer.routing_document import RoutingStudy, routing_schema
from placer.routing_study import hosted_adapters, routing
from tests.placer.small_fleets import fair_surrogate, small_data, write_problem
from twin.errors import InputError
from twin.fleet import FleetReplica, simulate_fleet
from twin.fleet_report import report_fleet
from twin.lengths import LengthDistribution
from twin.replica import build_inputs
from twin.simulate import simulate
from twin.workload import Adapter, RequestTable, Workload

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plan of four adapters on two GPUs of sixteen sequences."""
    folder = tmp_path_factory.mktemp("routing")
    path = write_problem(folder, small_data(num_adapters=4, total_rps=11.0))
    save_plan(plan(load_problem(path), surrogate=fair_surrogate()), folder / "plan.json")
    return folder / "plan.json"


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def test_all_policies_run_with_the_chosen_max_num_seqs(plan_path: Path, tmp_path: Path) -> None:
    """Of a plan that could have chosen another value, the fleets without a plan have the plan's, too."""
    data = small_data(num_adapters=4, total_rps=11.0)
    given = write_problem(tmp_path, data, "given.yaml")
    free = write_problem(tmp_path, data | {"engine": data["engine"] | {"max_num_seqs": [16, 64]}}, "free.yaml")
    expected, actual = (routing(plan_path, problem=path, slots=(4,), horizon_s=60.0) for path in (given, free))
    assert expected.policies == actual.policies


def test_the_wait_for_the_compiler_is_announced(
    plan_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router is compiled on its own: with an empty cache that takes long, and afterwards no time."""
    script = "from twin.kernel_fleet import router_is_cached; print(router_is_cached())"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "False"
    routing(plan_path, slots=(4,), horizon_s=60.0)
    for is_cached in (True, False):
        events: list[PlanEvent] = []
        if not is_cached:
            monkeypatch.setattr("twin.kernel_fleet.router_is_cached", lambda: False)
        routing(plan_path, slots=(4,), horizon_s=60.0, observer=events.append)
        assert any(isinstance(event, KernelCompiling) for event in events) is not is_cached


@pytest.mark.parametrize("routing_name", ["least_loaded", "lora_affinity"])
def test_one_gpu_is_reported_as_a_simulation_of_it(tmp_path: Path, routing_name: str) -> None:
    """With one replica every policy is the same, and the merged report is that of the replica."""
    problem = load_problem(write_problem(tmp_path, small_data(num_adapters=4, total_rps=12.0)))
    replica = problem.replica(0, 2, 16, 4)
    expected = simulate(problem.workload, replica, horizon_s=120.0, warmup_s=20.0, seed=3)
    requests = problem.workload.requests(horizon_s=120.0, seed=3)
    inputs = build_inputs(problem.workload, RequestTable.empty(), replica, horizon_s=120.0, hash_seed=3)
    fleet = [FleetReplica(inputs, (0, 1, 2, 3))]
    trace = simulate_fleet(requests, replicas=fleet, routing=routing_name, engine="fast")  # type: ignore[arg-type]
    actual = report_fleet(
        problem.workload,
        requests,
        fleet,
        trace,
        engine="fast",
        seed=3,
        warmup_s=20.0,
        starvation_tolerance=0.1,
    )
    assert actual == expected.model_copy(update={"adapters": ()})


def test_no_request_is_lost_or_doubled(tmp_path: Path) -> None:
    """The fleet's report counts every request once, wherever it was served."""
    problem = load_problem(write_problem(tmp_path, small_data(num_adapters=5, total_rps=20.0)))
    requests = problem.workload.requests(horizon_s=60.0)
    members = ((0, 1, 2, 3, 4), (4, 2, 0), (1, 3))
    fleet = []
    for own in members:
        workload = problem.workload.subset(list(own))
        replica = problem.replica(0, 2, 16, len(own))
        fleet.append(FleetReplica(build_inputs(workload, RequestTable.empty(), replica, horizon_s=60.0), own))
    trace = simulate_fleet(requests, replicas=fleet, routing="least_loaded", engine="fast")
    report = report_fleet(
        problem.workload, requests, fleet, trace, engine="fast", seed=0, warmup_s=0.0, starvation_tolerance=0.1
    )
    assert report.requests_arrived == len(requests) == sum(len(own.arrival_ns) for own in trace.inputs)
    assert report.requests_finished == sum(int((own.finish_ns >= 0).sum()) for own in trace.traces)
    assert report.gpu_loads == sum(int(own.adapter_gpu_loads.sum()) for own in trace.traces)
    gaps = sum(int(own.gap_histogram.sum()) for own in trace.traces)
    assert gaps == sum(int(own.adapter_gap_count.sum()) for own in trace.traces)


def test_each_adapter_is_on_k_gpus_of_about_equal_load() -> None:
    """No two GPUs differ by more than the largest share."""
    length = LengthDistribution.constant(10)
    rates = np.random.default_rng(0).exponential(size=30)
    adapters = tuple(
        Adapter(name=f"a{index}", rank=8, rate_rps=float(rate), prompt_tokens=length, output_tokens=length)
        for index, rate in enumerate(rates)
    )
    hosted = hosted_adapters(Workload(adapters), 5, 2)
    counts = np.bincount([index for own in hosted for index in own], minlength=30)
    assert counts.tolist() == [2] * 30
    loads = [sum(rates[index] for index in own) / 2 for own in hosted]
    assert max(loads) - min(loads) <= rates.max() / 2 + 1e-9
    assert hosted_adapters(Workload(adapters), 3, None) == [list(range(30))] * 3


def test_the_command_compares_all_policies_on_the_same_requests(plan_path: Path) -> None:
    """A table for people, the document as JSON; the plan's own fleet comes first."""
    out = plan_path.with_name("study.json")
    arguments = ("routing", plan_path, "--horizon", "120", "--slots", "2", "--slots", "4")
    code, output, errors = _run(*arguments, "-o", out)
    assert code == 0, errors
    for text in ("planned GPU", "everywhere, LoRA affinity", "everywhere, least loaded", "2 GPUs each", "loads"):
        assert text in output
    study = RoutingStudy.model_validate_json(out.read_text(encoding="utf-8"))
    assert [result.policy for result in study.policies] == ["planned", "lora_affinity", "least_loaded", "replicas"]
    for result in study.policies:
        assert result.at_plan is not None
        assert result.at_plan.num_gpus == study.plan_gpus == 2
        if result.fewest is not None:
            assert result.fewest.serves
            assert all(not run.serves for run in result.tried if run.num_gpus == result.fewest.num_gpus - 1)
    # Two GPUs of two replicas each: every adapter is everywhere.
    everywhere, replicated = study.policies[2], study.policies[3]
    assert everywhere.at_plan == replicated.at_plan
    code, output, _ = _run(*arguments, "--json")
    assert (code, RoutingStudy.model_validate(json.loads(output))) == (0, study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": (1,)}, "`replicas` must be at least 2 each"),
        ({"slots": ()}, "`slots` must be at least 1 each"),
        ({"horizon_s": 1.0}, "`horizon` must be at least 30 s"),
    ],
)
def test_bad_settings_are_refused(plan_path: Path, changes: dict[str, object], message: str) -> None:
    """Before anything is simulated."""
    with pytest.raises(InputError, match=message):
        routing(plan_path, **changes)  # type: ignore[arg-type]


def test_the_schema_describes_the_document() -> None:
    """`placer schema routing` is the document's own schema."""
    code, output, _ = _run("schema", "routing")
    assert (code, json.loads(output)) == (0, routing_schema())
