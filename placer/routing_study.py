"""`placer.routing`: the plan's placement against adapters everywhere behind a router, and against k replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from placer.events import PhaseStarted, PlanObserver, announce_compilation, announce_router_compilation, ignore
from placer.files import ProblemFromFile, load_plan
from placer.plan_document import Plan
from placer.recheck import load_problem_of, replica_of
from placer.routing_document import FleetRun, PolicyName, PolicyResult, RoutingStudy
from placer.sequences import common_max_num_seqs
from placer.unmeasured import unmeasured_warnings
from placer.wording import counted
from solvers.slots import SlotTables
from twin.errors import InputError
from twin.fleet import FleetReplica, Routing, simulate_fleet
from twin.fleet_report import report_fleet
from twin.replica import Replica, build_inputs
from twin.workload import RequestTable, Workload

# Of a given horizon, so much is not measured at most.
WARMUP_SHARE = 1.0 / 6.0
DEFAULT_REPLICAS = (2,)
# Slots to try on GPUs that the plan does not settle, as far as they start; and as many as start.
SLOTS = (16, 32, 64, 128)


@dataclass(frozen=True)
class _Study:
    """The traffic of a study, and what its GPUs are made of."""

    problem: ProblemFromFile
    workload: Workload
    requests: RequestTable
    horizon_s: float
    warmup_s: float
    seed: int

    def member(self, adapters: Sequence[int], replica: Replica) -> FleetReplica:
        """Return a GPU that hosts these adapters."""
        own = Workload(tuple(self.workload.adapters[index] for index in adapters))
        inputs = build_inputs(own, RequestTable.empty(), replica, horizon_s=self.horizon_s, hash_seed=self.seed)
        return FleetReplica(inputs, tuple(adapters))

    def run(self, fleet: Sequence[FleetReplica], routing: Routing, max_loras: int | None) -> FleetRun:
        """Simulate a fleet."""
        trace = simulate_fleet(self.requests, replicas=fleet, routing=routing, engine="fast")
        report = report_fleet(
            self.workload,
            self.requests,
            fleet,
            trace,
            engine="fast",
            seed=self.seed,
            warmup_s=self.warmup_s,
            starvation_tolerance=self.problem.limits.starvation_tolerance,
        )
        return FleetRun(
            num_gpus=len(fleet),
            max_loras=max_loras,
            serves=not report.has_starvation,
            throughput_ratio=report.throughput_ratio,
            num_starved_adapters=len(report.starved_adapters),
            gpu_loads_per_s=report.gpu_loads / self.horizon_s,
            disk_loads_per_s=report.disk_loads / self.horizon_s,
            ttft_p50_s=report.ttft.p50_s,
            ttft_p95_s=report.ttft.p95_s,
            itl_p95_s=report.itl.p95_s,
        )


def routing(
    plan: str | Path,
    *,
    problem: str | Path | None = None,
    replicas: Sequence[int] = DEFAULT_REPLICAS,
    slots: Sequence[int] = SLOTS,
    horizon_s: float | None = None,
    seed: int | None = None,
    observer: PlanObserver | None = None,
) -> RoutingStudy:
    """Return how many GPUs, adapter loads and seconds to the first token each way to route requests takes.

    *planned*: each adapter on its GPU of the plan. *least_loaded* and *lora_affinity*: every adapter on every GPU, and
    a router that sends a request to the GPU with the fewest requests; with affinity, among those that have the adapter
    in a slot, if any. *replicas*: each adapter on k GPUs, in descending order of load on those with the least, and the
    one of them with the fewest requests. All have the same requests; CPU memory holds all adapters of a GPU.

    Parameters
    ----------
    plan
        A plan.json whose GPUs are all of one type.
    problem
        Its problem instead of the file that it names.
    replicas
        The k to compare, each at least 2.
    slots
        `max_loras` to try where the plan does not settle them; the best of them counts. Each at least 1.
    horizon_s
        Simulated seconds, of which a sixth at most is not measured; ``None``: the plan's. A trace ends it.
    seed
        Of the traffic; ``None``: the plan's.

    Raises
    ------
    InputError
        When a setting is outside of its range, the plan has no GPUs or several types of them, or its problem is not
        found.
    """
    _check_settings(replicas, slots, horizon_s)
    observer = observer or ignore
    path = Path(plan)
    content = load_plan(path)
    problem_path = None if problem is None else Path(problem)
    of_plan, warnings = load_problem_of(content, plan_path=path, problem_path=problem_path)
    _check_plan(content, path)
    # Where the plan chose one, the other policies run with it, too.
    chosen = common_max_num_seqs(of_plan, [gpu.engine.max_num_seqs for gpu in content.gpus])
    of_plan = of_plan.with_max_num_seqs(chosen)
    study = _study_of(content, of_plan, horizon_s, seed)
    announce_compilation(observer)
    names = {adapter.name: index for index, adapter in enumerate(of_plan.adapters)}
    members = [
        study.member([names[name] for name in gpu.adapters], replica_of(of_plan, gpu)[1]) for gpu in content.gpus
    ]
    observer(PhaseStarted("route", f"the plan, {counted(len(members), 'GPU')}"))
    planned = study.run(members, "least_loaded", None)
    first = PolicyResult(
        policy="planned",
        replicas=None,
        fewest=planned if planned.serves else None,
        at_plan=planned,
        tried=(planned,),
    )
    announce_router_compilation(observer)
    gpu_type = [one.name for one in of_plan.gpu_types].index(content.gpus[0].gpu_type)
    policies: list[tuple[PolicyName, int | None]] = [("lora_affinity", None), ("least_loaded", None)]
    policies += [("replicas", count) for count in replicas]
    most_gpus = 2 * len(members)
    others = [
        _Search(study, gpu_type, policy, replicas=count, slots=tuple(slots), observer=observer).result(
            plan_gpus=len(members), most_gpus=most_gpus
        )
        for policy, count in policies
    ]
    return RoutingStudy(
        num_adapters=len(of_plan.adapters),
        num_requests=len(study.requests),
        offered_rps=len(study.requests) / study.horizon_s,
        plan_gpus=len(members),
        most_gpus=most_gpus,
        slots=tuple(slots),
        horizon_s=study.horizon_s,
        warmup_s=study.warmup_s,
        seed=study.seed,
        starvation_tolerance=of_plan.limits.starvation_tolerance,
        policies=(first, *others),
        warnings=(*warnings, *unmeasured_warnings(of_plan.profiles)),
        inputs=of_plan.inputs,
    )


def _check_plan(plan: Plan, path: Path) -> None:
    """Raise InputError for a plan whose fleet cannot be compared with others."""
    if len({gpu.gpu_type for gpu in plan.gpus}) != 1 or any(gpu.shares for gpu in plan.gpus):
        raise InputError(
            "policies are compared for plans with GPUs, all of one type, and without shares of adapters. "
            f"{path} is none.",
            file=str(path),
            field="gpus",
            hint="make a plan for one of the GPU types, without replication",
        )


def _study_of(plan: Plan, problem: ProblemFromFile, horizon_s: float | None, seed: int | None) -> _Study:
    """Return the traffic to compare policies under."""
    configuration = plan.configuration
    horizon_s = min(horizon_s or configuration.horizon_s, problem.workload.longest_horizon_s)
    warmup_s = min(configuration.warmup_s, WARMUP_SHARE * horizon_s)
    seed = plan.seed if seed is None else seed
    requests = problem.workload.requests(horizon_s=horizon_s, seed=seed)
    return _Study(problem, problem.workload, requests, horizon_s, warmup_s, seed)


class _Search:
    """The fleets of a policy with ever other numbers of GPUs, each with the best of the slots to try."""

    def __init__(
        self,
        study: _Study,
        gpu_type: int,
        policy: PolicyName,
        *,
        replicas: int | None,
        slots: tuple[int, ...],
        observer: PlanObserver,
    ) -> None:
        self._study = study
        self._gpu_type = gpu_type
        self._policy = policy
        self._replicas = replicas
        self._slots = slots
        self._observer = observer
        self._tables = SlotTables(study.problem)
        self._tried: list[FleetRun] = []

    def result(self, *, plan_gpus: int, most_gpus: int) -> PolicyResult:
        """Return the fewest GPUs that serve: from the plan's number downwards, or upwards to the most.

        As soon as one number does not serve on the way down, fewer are not tried.
        """
        at_plan = self._best(plan_gpus)
        fewest = at_plan if at_plan is not None and at_plan.serves else None
        if fewest is not None:
            while fewest.num_gpus > (self._replicas or 1):
                fewer = self._best(fewest.num_gpus - 1)
                if fewer is None or not fewer.serves:
                    break
                fewest = fewer
        else:
            for num_gpus in range(plan_gpus + 1, most_gpus + 1):
                more = self._best(num_gpus)
                if more is not None and more.serves:
                    fewest = more
                    break
        return PolicyResult(
            policy=self._policy,
            replicas=self._replicas,
            fewest=fewest,
            at_plan=at_plan,
            tried=tuple(self._tried),
        )

    def _best(self, num_gpus: int) -> FleetRun | None:
        """Return the best fleet of so many GPUs over the slots to try; ``None``: none starts."""
        if self._replicas is not None and num_gpus < self._replicas:
            return None
        name = self._policy if self._replicas is None else f"{self._replicas} replicas"
        self._observer(PhaseStarted("route", f"{name} on {counted(num_gpus, 'GPU')}"))
        hosted = hosted_adapters(self._study.workload, num_gpus, self._replicas)
        runs = []
        for slots in self._slots:
            fleet = self._fleet(hosted, slots)
            if fleet is not None:
                routing: Routing = "lora_affinity" if self._policy == "lora_affinity" else "least_loaded"
                runs.append(self._study.run(fleet, routing, slots))
        self._tried += runs
        return min(runs, key=_order, default=None)

    def _fleet(self, hosted: Sequence[Sequence[int]], slots: int) -> list[FleetReplica] | None:
        """Return GPUs that host these adapters, with so many slots at most; ``None``: one of them does not start."""
        fleet = []
        problem = self._study.problem
        for adapters in hosted:
            rank = self._tables.rank_of_slots(max(problem.adapters[index].rank for index in adapters))
            replica = problem.replica(self._gpu_type, min(slots, len(adapters)), rank, len(adapters))
            if not replica.memory().starts:
                return None
            fleet.append(self._study.member(adapters, replica))
        return fleet


def _order(run: FleetRun) -> tuple[bool, int, float, float]:
    """Return what comes first: a fleet that serves, then few starved adapters, throughput, and quick first tokens."""
    return not run.serves, run.num_starved_adapters, -round(run.throughput_ratio, 2), run.ttft_p95_s or 0.0


def hosted_adapters(workload: Workload, num_gpus: int, replicas: int | None) -> list[list[int]]:
    """Return the adapters of each GPU: all (`replicas` ``None``), or each on so many GPUs with the least load.

    In descending order of load; an adapter's load is divided by its GPUs. GPUs without any are left out.
    """
    if replicas is None:
        return [list(range(len(workload.adapters)))] * num_gpus
    loads = np.array([adapter.offered_tps for adapter in workload.adapters])
    given = np.zeros(num_gpus)
    hosted: list[list[int]] = [[] for _ in range(num_gpus)]
    for adapter in np.argsort(-loads, kind="stable").tolist():
        chosen = sorted(range(num_gpus), key=lambda gpu: (given[gpu], len(hosted[gpu])))[:replicas]
        for gpu in chosen:
            hosted[gpu].append(adapter)
            given[gpu] += loads[adapter] / replicas
    return [sorted(own) for own in hosted if own]


def _check_settings(replicas: Sequence[int], slots: Sequence[int], horizon_s: float | None) -> None:
    """Raise InputError for the first setting outside of its range."""
    checks: tuple[tuple[str, object, bool, str], ...] = (
        ("replicas", tuple(replicas), all(count >= 2 for count in replicas), "at least 2 each"),
        ("slots", tuple(slots), bool(slots) and all(count >= 1 for count in slots), "at least 1 each"),
        ("horizon", horizon_s, horizon_s is None or 30.0 <= horizon_s < float("inf"), "at least 30 s"),
    )
    for field, value, holds, range_text in checks:
        if not holds:
            raise InputError(f"`{field}` must be {range_text}. Got {value}.", field=field, value=value)
