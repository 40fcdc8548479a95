"""While two replicas serve the same adapters: the multi-replica twin, in which a router sends each its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from placer.judge import judge_report
from placer.plan_document import Verification
from placer.replanning.stations import Station
from solvers.problem import Limits, Problem
from twin.errors import TwinError
from twin.fleet import FleetReplica, simulate_fleet
from twin.parallel import each_in_parallel
from twin.replica import Replica, build_inputs
from twin.report import build_report
from twin.workload import RequestTable, Workload

# Of the window, what is not measured.
WARMUP_SHARE = 1.0 / 6.0
FEW_QUESTIONS = 3


@dataclass(frozen=True)
class Handover:
    """Replicas before a change of the router, and who is served by two of them while it changes.

    Attributes
    ----------
    stations
        By name, those that are concerned.
    moves
        Adapter, the replica that served it so far, and the one that will.
    """

    stations: dict[str, Station]
    moves: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True)
class _Question:
    """What one simulation needs, so that another process can make it."""

    workload: Workload
    names: tuple[str, ...]
    replicas: tuple[Replica, ...]
    hosted: tuple[tuple[int, ...], ...]
    limits: tuple[Limits, ...]
    horizon_s: float
    seed: int


def simulate_handovers(
    problem: Problem, handovers: Sequence[Handover], *, horizon_s: float, seed: int, workers: int | None
) -> list[dict[str, Verification] | None]:
    """Simulate what happens while both replicas of each moving adapter get every other request of it.

    Parameters
    ----------
    problem
        Whose adapters these are.
    horizon_s
        Simulated seconds, > 0; a sixth is warm-up.
    seed, workers
        Of the traffic; processes at once.

    Returns
    -------
    For each handover the verdict of each replica, by name; ``None``: one of them does not start or cannot go on.
    """
    questions = [_question(problem, handover, horizon_s, seed) for handover in handovers]
    verdicts: list[dict[str, Verification] | None] = [None] * len(questions)
    if questions:
        # Few of them are over before other processes have started.
        backend: Literal["threading", "loky"] = "loky" if len(questions) > FEW_QUESTIONS else "threading"
        for index, found in each_in_parallel(_simulate, questions, workers=workers, backend=backend):
            verdicts[index] = found
    return verdicts


def _question(problem: Problem, handover: Handover, horizon_s: float, seed: int) -> _Question:
    hosted = {name: set(station.adapters) for name, station in handover.stations.items()}
    for adapter, _, target in handover.moves:
        hosted[target].add(adapter)
    # A replica that serves nobody yet, and to whom nobody is handed over, has nothing to simulate.
    hosted = {name: own for name, own in hosted.items() if own}
    stations = [handover.stations[name] for name in hosted]
    everyone = sorted(set().union(*hosted.values()))
    position = {adapter: index for index, adapter in enumerate(everyone)}
    return _Question(
        workload=problem.traffic_of(everyone),
        names=tuple(hosted),
        replicas=tuple(
            Replica(
                problem.model,
                problem.gpu_types[station.gpu_type],
                station.engine,
                problem.profiles[station.gpu_type],
            )
            for station in stations
        ),
        hosted=tuple(tuple(sorted(position[adapter] for adapter in own)) for own in hosted.values()),
        limits=tuple(problem.limits_of(sorted(own)) for own in hosted.values()),
        horizon_s=horizon_s,
        seed=seed,
    )


def _simulate(question: _Question) -> dict[str, Verification] | None:
    workload, horizon_s = question.workload, min(question.horizon_s, question.workload.longest_horizon_s)
    requests = workload.requests(horizon_s=horizon_s, seed=question.seed)
    try:
        replicas = [
            FleetReplica(
                build_inputs(
                    workload.subset(list(own)),
                    RequestTable.empty(),
                    replica,
                    horizon_s=horizon_s,
                    hash_seed=question.seed,
                ),
                own,
            )
            for replica, own in zip(question.replicas, question.hosted, strict=True)
        ]
        fleet = simulate_fleet(requests, replicas=replicas)
    except TwinError:
        return None
    verdicts = {}
    for index, name in enumerate(question.names):
        report = build_report(
            workload.subset(list(question.hosted[index])),
            fleet.inputs[index],
            fleet.traces[index],
            engine="simpy",
            seed=question.seed,
            warmup_s=horizon_s * WARMUP_SHARE,
            starvation_tolerance=question.limits[index].starvation_tolerance,
            with_adapter_latencies=False,
        )
        num_slots = question.replicas[index].engine.num_slots
        verdicts[name] = judge_report(report, question.limits[index], num_slots=num_slots)
    return verdicts
