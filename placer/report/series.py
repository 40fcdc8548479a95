"""Each GPU of a plan simulated once more for the report: what it did over time, in a few numbers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placer.events import GpuVerified, PhaseStarted, PlanObserver, announce_compilation
from placer.files import ProblemFromFile
from placer.judge import judge_report
from placer.plan_document import Plan, PlannedGpu
from placer.planned_shares import planned_indices
from placer.recheck import replica_of
from placer.verify import TwinSettings, effective_horizon_s
from solvers.problem_file import Limits
from twin.errors import TwinError, VllmError
from twin.parallel import each_in_parallel
from twin.replica import SAMPLE_COLUMNS, Replica
from twin.simulate import Simulation, simulate_in_detail
from twin.workload import Workload

# Parts of the horizon: enough to see a queue grow, few enough for a page of a thousand GPUs.
NUM_PARTS = 120


@dataclass(frozen=True)
class GpuSeries:
    """What the twin says about a GPU over time.

    Attributes
    ----------
    horizon_s, warmup_s, seed, scenario
        What was simulated; the engine is the fast one.
    running, waiting
        Requests at the start of each part of the horizon, [NUM_PARTS].
    kv_permille
        KV blocks in use at that time, in thousandths of all.
    loads
        Adapters that were copied into a slot in each part.
    tokens
        Prompt + output tokens of the requests that were completed in each part.
    served_permille, adapter_loads
        For each adapter, in the plan's order: its `served_ratio` in thousandths, and its copies into a slot.
    verdict, reasons
        What the twin says this time.
    """

    horizon_s: float
    warmup_s: float
    seed: int
    scenario: str | None
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    kv_permille: tuple[int, ...]
    loads: tuple[int, ...]
    tokens: tuple[int, ...]
    served_permille: tuple[int, ...]
    adapter_loads: tuple[int, ...]
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Question:
    workload: Workload
    replica: Replica
    limits: Limits
    horizon_s: float
    warmup_s: float
    seed: int
    scenario: str | None


def simulate_series(
    plan: Plan, problem: ProblemFromFile, *, workers: int | None, observer: PlanObserver
) -> dict[str, GpuSeries]:
    """Simulate every GPU of a plan with the fast engine, in the window and with the seed of its verification.

    Parameters
    ----------
    problem
        Of the plan, divided as it does.
    workers
        At once; ``None``: one per core.

    Returns
    -------
    What each GPU did, by name; a GPU that does not start is left out.
    """
    questions = [_question(plan, problem, gpu) for gpu in plan.gpus]
    announce_compilation(observer, (question.replica.engine for question in questions))
    observer(PhaseStarted("verify", f"GPUs of the plan, {len(questions)}, for their time series"))
    series: dict[str, GpuSeries] = {}
    with closing(each_in_parallel(_simulate, questions, workers=workers, backend="threading")) as results:
        for done, (index, found) in enumerate(results, start=1):
            if found is not None:
                series[plan.gpus[index].name] = found
            is_accepted = found is not None and found.verdict == "accepted"
            observer(GpuVerified(is_accepted, done, len(questions), () if found is None else found.reasons))
    return {gpu.name: series[gpu.name] for gpu in plan.gpus if gpu.name in series}


def _question(plan: Plan, problem: ProblemFromFile, gpu: PlannedGpu) -> _Question:
    workload, replica = replica_of(problem, gpu)
    indices = planned_indices(problem, gpu)
    configuration, twin = plan.configuration, gpu.verification
    scenario = None
    if problem.scenarios is not None:
        names = [case.name for case in problem.scenarios.cases]
        position = names.index(twin.scenario) if twin is not None and twin.scenario in names else 0
        scenario = names[position]
        workload = problem.traffic_of(indices, scenario=position)
    settings = TwinSettings(
        horizon_s=configuration.horizon_s if twin is None else twin.horizon_s,
        warmup_s=configuration.warmup_s if twin is None else twin.warmup_s,
        seed=plan.seed if twin is None else twin.seed,
    )
    return _Question(
        workload,
        replica,
        problem.limits_of(indices),
        effective_horizon_s(workload, settings),
        settings.warmup_s,
        settings.seed,
        scenario,
    )


def _simulate(question: _Question) -> GpuSeries | None:
    """Simulate one GPU; ``None``: it does not start."""
    try:
        simulation = simulate_in_detail(
            question.workload,
            question.replica,
            horizon_s=question.horizon_s,
            warmup_s=question.warmup_s,
            seed=question.seed,
            sample_interval_s=question.horizon_s / NUM_PARTS,
            starvation_tolerance=question.limits.starvation_tolerance,
            with_adapter_latencies=False,
        )
    except VllmError:
        raise
    except TwinError:
        return None
    report = simulation.report
    verdict = judge_report(report, question.limits, num_slots=question.replica.engine.num_slots)
    return GpuSeries(
        horizon_s=report.horizon_s,
        warmup_s=report.warmup_s,
        seed=question.seed,
        scenario=question.scenario,
        **_parts(simulation),
        served_permille=tuple(round(1000.0 * adapter.served_ratio) for adapter in report.adapters),
        adapter_loads=tuple(adapter.gpu_loads for adapter in report.adapters),
        verdict=verdict.verdict,
        reasons=verdict.reasons,
    )


def _parts(simulation: Simulation) -> dict[str, tuple[int, ...]]:
    """Return the columns over time of a simulation whose samples are `NUM_PARTS` to the horizon."""
    inputs, trace = simulation.inputs, simulation.trace
    columns = dict(zip(SAMPLE_COLUMNS, trace.samples.T, strict=True))
    part = part_of(columns["time_ns"], trace.end_ns)
    blocks = _at_parts(columns["used_blocks"], part)
    finished = trace.finish_ns >= 0
    served = (inputs.prompt_tokens.astype(np.int64) + trace.generated_tokens)[finished]
    tokens = np.zeros(NUM_PARTS, dtype=np.int64)
    np.add.at(tokens, part_of(trace.finish_ns[finished], trace.end_ns), served)
    found = {
        "running": _at_parts(columns["running"], part),
        "waiting": _at_parts(columns["waiting"], part),
        "kv_permille": np.rint(1000.0 * blocks / max(inputs.num_blocks - 1, 1)).astype(np.int64),
        "loads": in_parts(columns["gpu_loads"], part, simulation.report.gpu_loads),
        "tokens": tokens,
    }
    return {name: tuple(values.tolist()) for name, values in found.items()}


def part_of(time_ns: NDArray[np.int64], end_ns: int) -> NDArray[np.int64]:
    """Return the part of the horizon that each time lies in, int64, 0 to NUM_PARTS - 1."""
    return np.minimum(time_ns * NUM_PARTS // max(end_ns, 1), NUM_PARTS - 1)


def _at_parts(values: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a state at the start of each part: that of its sample; without one, the GPU idles."""
    states = np.zeros(NUM_PARTS, dtype=np.int64)
    # Of several samples in a part, which rounding may give it, the first counts.
    states[part[::-1]] = values[::-1]
    return states


def in_parts(counts: NDArray[np.int64], part: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return how much a counter grew in each part, int64 [NUM_PARTS].

    Parameters
    ----------
    counts, part
        The counter at each sample, and the part that the sample is the first state of; ascending.
    total
        The counter at the end. A part without a sample has the count of the next one: the GPU idles until then.
    """
    following = np.searchsorted(part, np.arange(NUM_PARTS))
    at_start = np.append(counts, total)[following]
    at_start[0] = 0
    return np.diff(np.append(at_start, total))
