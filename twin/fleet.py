"""Several replicas behind a router: the twin of adapters that are replicated.

All replicas live in one SimPy environment and are the processes of twin/reference.py, unchanged; a router process sends
each request to one of the replicas that host its adapter. Events have a total order: at one instant first the arrivals,
in table order, then the ends of steps, in the order in which the steps began. The router therefore sees a replica as it
was before a step that ends at that instant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from simpy import Environment
from simpy.events import Event

from twin.errors import InputError
from twin.recorder import Request
from twin.reference import Arrival, ReplicaProcess
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.workload import RequestTable

Routing = Literal["shares", "least_loaded", "lora_affinity"]
FleetEngine = Literal["simpy", "fast"]


@dataclass(frozen=True)
class FleetReplica:
    """One replica of a fleet.

    Attributes
    ----------
    inputs
        Settings, and the adapters it hosts. Its request columns are not read: build it with none.
    adapters
        For each of those adapters, its index in the fleet's request table.
    """

    inputs: ReplicaInputs
    adapters: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the two lists of adapters fit."""
        if len(self.adapters) != len(self.inputs.adapter_hash) or len(set(self.adapters)) != len(self.adapters):
            raise InputError(
                f"`adapters` must name each of the replica's {len(self.inputs.adapter_hash)} adapters once. "
                f"Got {self.adapters}.",
                field="adapters",
                value=self.adapters,
                hint="give one distinct index into the fleet's adapters per adapter of `inputs`",
            )


@dataclass(frozen=True)
class FleetTrace:
    """Raw outcome of a simulated fleet (N requests, R replicas).

    Attributes
    ----------
    assigned_replica
        int32 [N], the replica that each request was sent to; -1: it arrives at or after the horizon.
    inputs
        Per replica, its inputs with the requests it was given, in order of arrival: an engine that runs them alone
        gives the same trace.
    traces
        Per replica; row i is the i-th request with ``assigned_replica == r``.
    """

    assigned_replica: NDArray[np.int32]
    inputs: tuple[ReplicaInputs, ...]
    traces: tuple[ReplicaTrace, ...]


def simulate_fleet(
    requests: RequestTable,
    *,
    replicas: Sequence[FleetReplica],
    routing: Routing = "shares",
    shares: NDArray[np.float64] | None = None,
    log_steps: bool = False,
    engine: FleetEngine = "simpy",
) -> FleetTrace:
    """Simulate replicas that share the requests of replicated adapters.

    Parameters
    ----------
    requests
        Requests of the whole fleet; adapter indices are the fleet's; -1 asks the base model, which all replicas serve.
    replicas
        At least one; all with the same horizon.
    routing
        ``"shares"``: smooth weighted round robin by `shares`, without regard to load. ``"least_loaded"``: the replica
        with the fewest running and waiting requests. ``"lora_affinity"``: the least loaded of the replicas that have
        the adapter in a slot; if none has, the least loaded that hosts it. Ties go to the first replica.
    shares
        float64 [A, R], traffic shares of the fleet's adapters on the replicas, in any unit per adapter; ``None``: equal
        shares among the replicas that host the adapter. The base model is always shared equally.
    log_steps
        Whether the traces get a `StepLog`.
    engine
        ``simpy`` (readable), or ``fast``: the same replicas and router compiled (twin/kernel_fleet.py), which assign
        every request as the readable ones do; not with asynchronous scheduling.

    Raises
    ------
    InputError
        When the engine cannot do what is asked, an adapter that is asked for has no replica, its shares are unusable, a
        prompt is too long for a replica that may get it, or the replicas' horizons differ.
    TwinError
        When requests run or wait on a replica and none of them can be scheduled.
    """
    horizon_ns = _common_horizon(replicas)
    arrived = requests.select(requests.arrival_ns < horizon_ns)
    hosts = _find_hosts(arrived, replicas)
    _check_prompts(arrived, replicas, hosts)
    if engine == "fast":
        return _simulate_fast(requests, arrived, replicas, hosts, routing=routing, shares=shares, log_steps=log_steps)
    environment = Environment()
    processes = [ReplicaProcess(environment, replica.inputs, log_steps=log_steps) for replica in replicas]
    chooser = _make_chooser(routing, replicas, processes, hosts, shares)
    router = _Router(environment, arrived, replicas=replicas, processes=processes, hosts=hosts, choose=chooser)
    environment.process(router.run())
    for process in processes:
        environment.process(process.run())
    environment.run()
    assigned = np.full(len(requests), -1, dtype=np.int32)
    assigned[: len(arrived)] = router.assigned
    return FleetTrace(
        assigned_replica=assigned,
        inputs=tuple(_with_requests(replica, arrived, router.assigned == r) for r, replica in enumerate(replicas)),
        traces=tuple(process.trace(sent) for process, sent in zip(processes, router.sent, strict=True)),
    )


def _simulate_fast(
    requests: RequestTable,
    arrived: RequestTable,
    replicas: Sequence[FleetReplica],
    hosts: dict[int, tuple[int, ...]],
    *,
    routing: Routing,
    shares: NDArray[np.float64] | None,
    log_steps: bool,
) -> FleetTrace:
    """Assign the requests by the compiled router, then simulate each replica alone with what it is given."""
    from twin.kernel import run_kernel  # noqa: PLC0415 - loads the compiler
    from twin.kernel_fleet import route_fast  # noqa: PLC0415

    if any(replica.inputs.async_scheduling for replica in replicas):
        raise InputError(
            "the fast engine of fleets needs replicas without `async_scheduling`. Got one with it.",
            field="async_scheduling",
            value=True,
            hint="take the engine simpy",
        )
    if routing == "shares":
        turns = {adapter: SmoothRoundRobin(_weights(adapter, own, shares)) for adapter, own in hosts.items()}
        chosen = [hosts[adapter][turns[adapter].next()] for adapter in arrived.adapter.tolist()]
        given = np.array(chosen, dtype=np.int32)
    else:
        num_adapters = 1 + max((adapter for replica in replicas for adapter in replica.adapters), default=-1)
        pairs = [(replica.inputs, replica.adapters) for replica in replicas]
        has_affinity = routing == "lora_affinity"
        given = route_fast(arrived, pairs, hosts, num_adapters=num_adapters, has_affinity=has_affinity)
    inputs = tuple(_with_requests(replica, arrived, given == r) for r, replica in enumerate(replicas))
    assigned = np.full(len(requests), -1, dtype=np.int32)
    assigned[: len(arrived)] = given
    return FleetTrace(assigned, inputs, tuple(run_kernel(own, log_steps=log_steps) for own in inputs))


class SmoothRoundRobin:
    """Deterministic weighted round robin that spreads each target's turns evenly (the rule of nginx's upstream module).

    Parameters
    ----------
    weights
        Per target, finite, >= 0, not all 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(weights)
        self._total = sum(self._weights)
        self._credit = [0.0] * len(self._weights)

    def next(self) -> int:
        """Return the target whose turn it is: every target earns its weight, the richest pays the sum of all."""
        self._credit = [credit + weight for credit, weight in zip(self._credit, self._weights, strict=True)]
        chosen = max(range(len(self._credit)), key=self._credit.__getitem__)
        self._credit[chosen] -= self._total
        return chosen


class _Router:
    """The process that sends each request to a replica when it arrives."""

    def __init__(
        self,
        environment: Environment,
        requests: RequestTable,
        *,
        replicas: Sequence[FleetReplica],
        processes: Sequence[ReplicaProcess],
        hosts: dict[int, tuple[int, ...]],
        choose: Callable[[int], int],
    ) -> None:
        self._environment = environment
        self._requests = requests
        self._processes = processes
        self._hosts = hosts
        self._choose = choose
        self._local = [_local_indices(replica) for replica in replicas]
        self.sent: list[list[Request]] = [[] for _ in replicas]
        self.assigned = np.full(len(requests), -1, dtype=np.int32)

    def run(self) -> Generator[Event, Any, None]:
        """Push every request into the replica chosen for it."""
        table = self._requests
        columns = (table.arrival_ns, table.adapter, table.prompt_tokens, table.output_tokens)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for row, (arrival_ns, adapter, prompt_tokens, output_tokens) in enumerate(rows):
            if arrival_ns > self._environment.now:
                yield Arrival(self._environment, arrival_ns)
            hosts = self._hosts[adapter]
            chosen = hosts[0] if len(hosts) == 1 else self._choose(adapter)
            self.assigned[row] = chosen
            local_adapter = self._local[chosen].get(adapter, -1)
            request = Request(len(self.sent[chosen]), local_adapter, prompt_tokens, output_tokens)
            self.sent[chosen].append(request)
            self._processes[chosen].push(request)


def _make_chooser(
    routing: Routing,
    replicas: Sequence[FleetReplica],
    processes: Sequence[ReplicaProcess],
    hosts: dict[int, tuple[int, ...]],
    shares: NDArray[np.float64] | None,
) -> Callable[[int], int]:
    """Return the function that chooses a replica for a request of an adapter with several hosts."""

    def least_loaded(candidates: Sequence[int]) -> int:
        return min(candidates, key=lambda replica: (processes[replica].num_requests, replica))

    if routing == "least_loaded":
        return lambda adapter: least_loaded(hosts[adapter])
    if routing == "lora_affinity":
        local = [_local_indices(replica) for replica in replicas]

        def with_affinity(adapter: int) -> int:
            resident = [r for r in hosts[adapter] if processes[r].has_slot(local[r].get(adapter, -1))]
            return least_loaded(resident or hosts[adapter])

        return with_affinity
    if routing == "shares":
        turns = {adapter: SmoothRoundRobin(_weights(adapter, hosts[adapter], shares)) for adapter in hosts}
        return lambda adapter: hosts[adapter][turns[adapter].next()]
    raise InputError(
        f"`routing` must be one of shares, least_loaded, lora_affinity. Got {routing!r}.",
        field="routing",
        value=routing,
        hint="choose one of the three",
    )


def _weights(adapter: int, hosts: Sequence[int], shares: NDArray[np.float64] | None) -> list[float]:
    """Return the usable shares of an adapter on its hosts."""
    if shares is None or adapter < 0:
        return [1.0] * len(hosts)
    row: list[float] = shares[adapter].tolist() if adapter < len(shares) else []
    elsewhere = [share for replica, share in enumerate(row) if replica not in hosts]
    is_complete = len(row) > max(hosts) and all(math.isfinite(share) and share >= 0 for share in row)
    if not is_complete or any(elsewhere) or sum(row) <= 0:
        raise InputError(
            f"`shares` must give adapter {adapter} finite shares >= 0, positive in sum, on its replicas {list(hosts)} "
            f"only. Got {row}.",
            field=f"shares.{adapter}",
            value=row,
            hint="give one row per adapter and one column per replica, 0 where the adapter is not hosted",
        )
    return [row[replica] for replica in hosts]


def _common_horizon(replicas: Sequence[FleetReplica]) -> int:
    horizons = sorted({replica.inputs.horizon_ns for replica in replicas})
    if len(horizons) != 1:
        raise InputError(
            f"a fleet must have replicas, all with the same horizon. Got {len(replicas)} with horizons {horizons} ns.",
            field="horizon_ns",
            value=horizons,
            hint="build all inputs with the same horizon_s",
        )
    return horizons[0]


def _local_indices(replica: FleetReplica) -> dict[int, int]:
    """Return the replica's own index of each of the fleet's adapters; without LoRA it serves all by the base model."""
    if replica.inputs.num_slots == 0:
        return {}
    return {adapter: index for index, adapter in enumerate(replica.adapters)}


def _find_hosts(requests: RequestTable, replicas: Sequence[FleetReplica]) -> dict[int, tuple[int, ...]]:
    """Return the replicas that may serve each adapter that is asked for; -1, the base model, is served by all."""
    hosts = {-1: tuple(range(len(replicas)))}
    for adapter in np.unique(requests.adapter[requests.adapter >= 0]).tolist():
        hosts[adapter] = tuple(index for index, replica in enumerate(replicas) if adapter in replica.adapters)
        if not hosts[adapter]:
            raise InputError(
                f"every adapter that is asked for must have a replica. Adapter {adapter} has none.",
                field="adapter",
                value=adapter,
                hint="place the adapter on a replica or drop its requests",
            )
    return hosts


def _check_prompts(requests: RequestTable, replicas: Sequence[FleetReplica], hosts: dict[int, tuple[int, ...]]) -> None:
    """Refuse prompts that a replica which may get them cannot hold."""
    limits = {adapter: min(replicas[r].inputs.max_model_len for r in indices) for adapter, indices in hosts.items()}
    for row, (adapter, prompt_tokens) in enumerate(
        zip(requests.adapter.tolist(), requests.prompt_tokens.tolist(), strict=True)
    ):
        if prompt_tokens >= limits[adapter]:
            raise InputError(
                f"prompts must be shorter than `max_model_len` ({limits[adapter]}) of every replica that may get them. "
                f"Got {prompt_tokens} tokens (request {row}).",
                field="prompt_tokens",
                value=prompt_tokens,
                hint="raise max_model_len, or cap the prompt lengths with `max`",
            )


def _with_requests(replica: FleetReplica, requests: RequestTable, mask: NDArray[np.bool_]) -> ReplicaInputs:
    """Return the replica's inputs with the requests where `mask` holds, their adapters numbered as the replica does."""
    chosen = requests.select(mask)
    local = _local_indices(replica)
    return replace(
        replica.inputs,
        arrival_ns=chosen.arrival_ns,
        adapter=np.array([local.get(adapter, -1) for adapter in chosen.adapter.tolist()], dtype=np.int32),
        prompt_tokens=chosen.prompt_tokens,
        output_tokens=chosen.output_tokens,
    )
