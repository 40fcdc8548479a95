"""The batching advisor: the knee and the KV budget against brute force, replicas in closed cases, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from placer.advice_document import Advice, advice_schema
from placer.advising import advise
from placer.batch_sweep import KV_RESOLUTION, Aim, BatchSweep, batch_sizes, kv_budget, with_engine
from placer.cli.application import app
from placer.shared_replicas import divided_workload, shared_replicas
from tests.placer.small_fleets import small_data, small_problem, write_problem
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.profile import StepTimeCoefficients
from twin.replica import Replica
from twin.saturation import SaturatedRun, saturate, saturated_mix, simulate_all
from twin.workload import Adapter, RequestTable, Workload

RUNNER = CliRunner()
ENGINE = {"max_num_seqs": 8, "max_num_batched_tokens": 48, "gpu_memory_utilization": 0.9, "max_model_len": 1024}


def saturated_run(folder: Path, **step_time: float) -> SaturatedRun:
    """Return a saturated GPU of batches up to 48; `step_time`: its only coefficients, if given, and no datasheet."""
    problem = small_problem(folder, num_adapters=4, engine=ENGINE)
    replica = problem.replica(0, 4, 16, 4)
    if step_time:
        plain = StepTimeCoefficients(**({"token_ms": 0.0, "request_ms": 0.0, "context_token_ms": 0.0} | step_time))
        profile = replica.profile.model_copy(update={"step_time": plain, "gpu": "nobody's"})
        replica = Replica(replica.model, replica.gpu, replica.engine, profile)
    run = SaturatedRun(saturated_mix(problem.workload), RequestTable.empty(), replica, 120.0, 20.0, 0)
    widest = saturate(with_engine(run, max_num_seqs=48))
    return SaturatedRun(**(vars(run) | {"requests": widest.requests}))


@pytest.mark.parametrize(("tolerance", "limit_s"), [(0.05, None), (0.3, None), (0.02, 0.03), (0.0, 0.025)])
def test_the_knee_is_the_smallest_batch_that_does(tmp_path: Path, tolerance: float, limit_s: float | None) -> None:
    """Brute force over every batch size finds the same, but for what chance gives to neighbours."""
    run, aim = saturated_run(tmp_path), Aim(tolerance, limit_s)
    sweep = BatchSweep(run, aim, workers=1)
    sweep.simulate(batch_sizes(run.replica))
    knee = sweep.knee()
    assert knee is not None
    everything = BatchSweep(run, aim, workers=1)
    everything.simulate(range(1, 49))
    within = [point for point in everything.points if point.is_within_limit]
    most = max(point.throughput_tps for point in within)
    does = [point.max_num_seqs for point in within if point.throughput_tps >= (1.0 - tolerance) * most]
    assert knee.is_within_limit
    assert knee.max_num_seqs == pytest.approx(does[0], abs=1)
    assert knee.throughput_tps == pytest.approx(most, rel=tolerance + 0.01)


def test_no_batch_keeps_a_limit_below_one_step(tmp_path: Path) -> None:
    """There is no knee, not the least bad one."""
    run = saturated_run(tmp_path)
    sweep = BatchSweep(run, Aim(0.05, 0.001), workers=1)
    sweep.simulate([1, 8])
    assert sweep.knee() is None
    assert sweep.reachable_tps() is None


def test_the_kv_budget_does_and_less_does_not(tmp_path: Path) -> None:
    """At the budget, throughput is what was asked for; below, by more than the resolution, it is not."""
    run, aim = saturated_run(tmp_path), Aim(0.05, None)
    (whole,) = simulate_all([with_engine(run, max_num_seqs=32)], workers=1)
    least_tps = 0.95 * whole.throughput_tps
    budget = kv_budget(run, 32, aim, least_tps=least_tps)
    assert budget.point.throughput_tps >= least_tps
    present = run.replica.memory()
    assert budget.decided_by == "throughput"
    longer = kv_budget(with_engine(run, max_model_len=8192), 32, aim, least_tps=least_tps)
    assert (longer.decided_by, longer.kv_tokens) == ("max_model_len", 8192)
    assert longer.enough_tokens == budget.enough_tokens
    block_size = run.replica.engine.block_size
    less = budget.enough_tokens // block_size - 2 * max(1, int(KV_RESOLUTION * present.num_blocks))
    fewer = SaturatedRun(**(vars(with_engine(run, max_num_seqs=32)) | {"num_blocks": max(less, 14)}))
    (report,) = simulate_all([fewer], workers=1)
    assert report.throughput_tps < least_tps
    engine = run.replica.engine.model_copy(
        update={"max_num_seqs": 32, "gpu_memory_utilization": budget.gpu_memory_utilization}
    )
    verdict = Replica(run.replica.model, run.replica.gpu, engine, run.replica.profile).memory()
    assert verdict.starts
    assert verdict.kv_tokens >= budget.kv_tokens
    assert budget.freed_gib == pytest.approx(0.9 * 63.43 - budget.memory_gib)


def test_steps_of_the_host_only_overlap_and_replicas_double(tmp_path: Path) -> None:
    """A step is a constant, of which nothing is the GPU's for certain: least sharing gives twice as much, else none."""
    run = saturated_run(tmp_path, base_ms=10.0)
    (alone,) = simulate_all([with_engine(run, max_num_seqs=32)], workers=1)
    # Powers of two are tried, so 32 is the largest for each.
    entry = shared_replicas(run, 2, Aim(0.05, None), alone_tps=1.01 * alone.throughput_tps, workers=1)
    least, assumed, most = (case.throughput_tps for case in entry.cases)
    assert [case.max_num_seqs for case in entry.cases] == [32, 32, 32]
    assert least == pytest.approx(2 * alone.throughput_tps, rel=0.04)
    assert assumed == pytest.approx(alone.throughput_tps, rel=0.04)
    assert most == pytest.approx(assumed)
    assert (entry.serves_more, entry.adapters_each, entry.max_loras_each) == ("cannot tell", 3, 3)


def test_replicas_that_do_not_fit_do_not_start(tmp_path: Path) -> None:
    """Four times the weights are more than the GPU has; the reason is vLLM's."""
    run = saturated_run(tmp_path)
    entry = shared_replicas(run, 4, Aim(0.05, None), alone_tps=1.0, workers=1)
    assert (entry.serves_more, entry.cases) == ("does not start", ())
    assert "available memory" in entry.message


@given(rates=st.lists(st.floats(0.0, 9.0), min_size=1, max_size=20), num_replicas=st.integers(1, 4))
def test_adapters_are_divided_evenly(rates: list[float], num_replicas: int) -> None:
    """Each adapter has one replica, and no two replicas differ by more than the largest load."""
    length = LengthDistribution.constant(10)
    adapters = tuple(
        Adapter(name=f"a{index}", rank=8, rate_rps=rate, prompt_tokens=length, output_tokens=length)
        for index, rate in enumerate(rates)
    )
    parts = divided_workload(Workload(adapters), num_replicas)
    assert len(parts) == num_replicas
    if len(adapters) < num_replicas:
        assert all(part.adapters == adapters for part in parts)
        return
    assert sorted(adapter.name for part in parts for adapter in part.adapters) == sorted(a.name for a in adapters)
    loads = [sum(adapter.offered_tps for adapter in part.adapters) for part in parts]
    assert max(loads) - min(loads) <= max(adapter.offered_tps for adapter in adapters) + 1e-9
    assert all(part.adapters for part in parts)


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _problem(folder: Path, **changes: Any) -> Path:
    return write_problem(folder, small_data(num_adapters=4, **({"engine": ENGINE} | changes)))


def test_the_command_prints_the_knee_the_budget_and_replicas(tmp_path: Path) -> None:
    """For people on standard output; the same as JSON in a file, and a figure."""
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "advice.json", tmp_path / "knee.svg"
    path = _problem(tmp_path)
    code, output, errors = _run("advise", path, "--horizon", "60", "-o", out, "--plot", plot, "--seed", "3")
    assert code == 0
    for text in (
        "knee: max_num_seqs",
        "KV budget: ",
        "gpu_memory_utilization",
        "2 replicas on the GPU",
        "assumption: ",
    ):
        assert text in output
    assert "wrote" in errors
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    advice = Advice.model_validate_json(out.read_text(encoding="utf-8"))
    assert advice.knee in advice.points
    assert advice.seed == 3
    code, output, _ = _run("advise", path, "--horizon", "60", "--seed", "3", "--json")
    assert (code, Advice.model_validate(json.loads(output))) == (0, advice)


def test_the_problems_limit_is_kept_and_an_impossible_one_is_no_advice(tmp_path: Path) -> None:
    """Exit code 4, with the sweep on standard output and what to do on standard error."""
    path = _problem(tmp_path, limits={"starvation_tolerance": 0.1, "itl_p95_ms": 16.0})
    code, output, _ = _run("advise", path, "--horizon", "60", "--replicas-per-gpu", "1")
    assert code == 0
    assert "above the limit" in output
    code, output, errors = _run("advise", path, "--horizon", "60", "--itl-p95-ms", "1")
    assert code == 4
    assert "knee" not in output
    assert "no batch size keeps the ITL limit" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tolerance", "1"), "`tolerance` must be at least 0 and less than 1. Got 1.0."),
        (("--itl-p95-ms", "0"), "`itl_p95_ms` must be more than 0. Got 0.0."),
        (("--horizon", "1"), "`horizon` must be at least 30 s. Got 1.0."),
        (("--plot", "knee.pdf"), "ending in .png or .svg"),
        (("--gpu-type", "a100"), "`--gpu` must be one of h100-64gb"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Before anything is simulated, with what would be right."""
    code, output, errors = _run("advise", _problem(tmp_path), *arguments)
    assert (code, output) == (2, "")
    assert message in errors


def test_the_schema_describes_the_document() -> None:
    """`placer schema advice` is the document's own schema."""
    code, output, _ = _run("schema", "advice")
    assert (code, json.loads(output)) == (0, advice_schema())


def test_more_replicas_than_four_are_refused(tmp_path: Path) -> None:
    """By the Python interface as by the command's own range."""
    problem = small_problem(tmp_path, num_adapters=4, engine=ENGINE)
    with pytest.raises(InputError, match=r"`replicas_per_gpu` must be from 1 to 4\. Got 5"):
        advise(problem, replicas_per_gpu=5)


def test_equal_questions_have_equal_answers(tmp_path: Path) -> None:
    """Whatever the number of workers."""
    problem = small_problem(tmp_path, num_adapters=4, engine=ENGINE)
    answers = [advise(problem, horizon_s=60.0, workers=workers) for workers in (1, 2)]
    assert answers[0] == answers[1]
    assert np.all(np.diff([point.max_num_seqs for point in answers[0].points]) > 0)
