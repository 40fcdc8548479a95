"""The fast router: which replica gets each request, by compiled replicas (twin/kernel.py) behind one router.

Replicas share nothing but the router, so what it decides is all that must be simulated together; each replica's trace
then follows from a run of its own. Their requests are rows of one table, because a request is at one replica only, and
their adapters have the fleet's numbers.

A replica is advanced when the router looks at it, up to the last step that ends before the arrival: at one instant
arrivals come first, and an idle replica begins its step when all requests of the instant have arrived.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import getsource
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twin.kernel import COMPILED_MODULES
from twin.kernel_account import account
from twin.kernel_compile import compiled, compiled_entry, entry_is_cached
from twin.kernel_duration import duration_ns
from twin.kernel_results import apply_results
from twin.kernel_schedule import arrive, is_settled, repeat_step, schedule
from twin.kernel_state import (
    COMPUTED,
    FINISH_TOKENS,
    NUM_REQUEST_COLUMNS,
    NUM_RUNNING,
    NUM_STEPS,
    NUM_TOKENS,
    NUM_WAITING,
    PREEMPTIONS,
    PROMPT,
    REQUEST_ADAPTER,
    SLOT_LIST,
    STEP_TOKENS,
    Array,
    Decodes,
    Settings,
    State,
    make_scratch,
    make_settings,
    make_state,
)
from twin.replica import ReplicaInputs
from twin.workload import RequestTable

# Columns of `places`, int64 [R, .]: the last step boundary; the end of the step that runs (-1: none); whether the
# replica has ended; the first and the last request that arrived since the boundary, and how many they are.
NOW, END, HAS_ENDED, INBOX_HEAD, INBOX_TAIL, NUM_IN_INBOX = range(6)
NUM_PLACE_COLUMNS = 6


class Fleet(NamedTuple):
    """The arrays of R replicas; those of `State` with a first axis for the replica, where they are not common.

    `settings` is int64 [R, fields of Settings], `coefficients` float64 [R, .], `longest` int64 [R] (`max_model_len`),
    `inbox_next` int64 [N] links the requests that have arrived at one replica since its last step boundary.
    """

    arrivals: Array
    requests: Array
    inbox_next: Array
    settings: Array
    coefficients: NDArray[np.float64]
    longest: Array
    adapters: Array
    calendars: Array
    crossings: Array
    column_steps: Array
    adapter_gaps: Array
    counters: Array
    scratch: Array
    gaps: Array
    places: Array


@compiled
def _settings_of(row: Array) -> Settings:
    """Return the settings that a row holds."""
    return Settings(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10] != 0,
        row[11] != 0,
        row[12] != 0,
        row[13] != 0,
        row[14] != 0,
        row[15] != 0,
        row[16] != 0,
        row[17] != 0,
        row[18] != 0,
        row[19],
        row[20],
        row[21],
        row[22] != 0,
    )


@compiled
def _empty_inbox(s: Settings, fleet: Fleet, adapters: Array, c: Array, place: Array) -> None:
    """Let those join the queue that have arrived by the boundary."""
    r = place[INBOX_HEAD]
    while r >= 0 and fleet.arrivals[r] <= place[NOW]:
        place[INBOX_HEAD] = fleet.inbox_next[r]
        place[NUM_IN_INBOX] -= 1
        arrive(s, fleet.requests, adapters, c, r)
        r = place[INBOX_HEAD]
    if r < 0:
        place[INBOX_TAIL] = -1


@compiled
def _advance(fleet: Fleet, replica: int, time_ns: int) -> None:
    """Simulate a replica up to the last step that ends before `time_ns`; one that ends later may run."""
    place, c, adapters = fleet.places[replica], fleet.counters[replica], fleet.adapters[replica]
    if place[HAS_ENDED] or place[END] >= time_ns:
        return
    s = _settings_of(fleet.settings[replica])
    decodes = Decodes(
        fleet.calendars[replica], fleet.crossings[replica], fleet.column_steps[replica], fleet.adapter_gaps[replica]
    )
    requests, coefficients, scratch = fleet.requests, fleet.coefficients[replica], fleet.scratch[replica]
    while True:
        if place[END] >= 0:
            if place[END] >= time_ns:
                return
            apply_results(s, requests, adapters, decodes, fleet.gaps, c, place[NOW], place[END], 0)
            place[NOW] = place[END]
            place[END] = -1
        _empty_inbox(s, fleet, adapters, c, place)
        if c[NUM_RUNNING] == 0 and c[NUM_WAITING] == 0:
            if place[INBOX_HEAD] < 0 or fleet.arrivals[place[INBOX_HEAD]] >= time_ns:
                return
            place[NOW] = fleet.arrivals[place[INBOX_HEAD]]
            continue
        if place[NOW] >= s.horizon_ns:
            place[HAS_ENDED] = 1
            return
        if not (is_settled(s, c) and repeat_step(decodes, c)):
            schedule(s, requests, adapters, decodes, scratch, c, place[NOW], c[NUM_STEPS])
            if c[STEP_TOKENS] == 0:
                # The replica's own run says so.
                place[HAS_ENDED] = 1
                return
        duration = duration_ns(s, coefficients, c)
        account(s, c, place[NOW], duration)
        if place[NOW] + duration > s.horizon_ns:
            place[HAS_ENDED] = 1
            return
        place[END] = place[NOW] + duration


@compiled
def _least_loaded(fleet: Fleet, hosts: Array, first: int, beyond: int, resident: int) -> int:
    """Return the host with the fewest requests, the first of several; -1: none has `resident` in a slot.

    `resident` is an adapter that the host must have in a slot; -1: any host will do.
    """
    chosen = -1
    fewest = 1 << 62
    for position in range(first, beyond):
        replica = hosts[position]
        if resident >= 0 and fleet.adapters[replica, SLOT_LIST, resident] < 0:
            continue
        c = fleet.counters[replica]
        load = c[NUM_RUNNING] + c[NUM_WAITING] + fleet.places[replica, NUM_IN_INBOX]
        if load < fewest:
            chosen, fewest = replica, load
    return chosen


@compiled
def _route(fleet: Fleet, wanted: Array, hosts: Array, offsets: Array, has_affinity: bool, assigned: Array) -> None:
    """Choose a replica for each request, in order of arrival; `wanted` are adapters, the base model last."""
    base = len(offsets) - 2
    for r in range(len(fleet.arrivals)):
        a, time_ns = wanted[r], fleet.arrivals[r]
        first, beyond = offsets[a], offsets[a + 1]
        chosen = hosts[first]
        if beyond - first > 1:
            for position in range(first, beyond):
                _advance(fleet, hosts[position], time_ns)
            chosen = -1
            if has_affinity and a < base:
                chosen = _least_loaded(fleet, hosts, first, beyond, a)
            if chosen < 0:
                chosen = _least_loaded(fleet, hosts, first, beyond, -1)
        assigned[r] = chosen
        # Without slots, a replica serves all by the base model.
        fleet.requests[r, REQUEST_ADAPTER] = a if fleet.settings[chosen, 3] > 0 else base
        fleet.requests[r, FINISH_TOKENS] = min(fleet.requests[r, FINISH_TOKENS], fleet.longest[chosen])
        place = fleet.places[chosen]
        if place[INBOX_TAIL] >= 0:
            fleet.inbox_next[place[INBOX_TAIL]] = r
        else:
            place[INBOX_HEAD] = r
        place[INBOX_TAIL] = r
        place[NUM_IN_INBOX] += 1


def _cached_entry(fingerprint: int) -> Any:
    """Compile the router when it is first called; `fingerprint`: see twin/kernel.py."""

    @compiled_entry
    def entry(fleet: Fleet, wanted: Array, hosts: Array, offsets: Array, has_affinity: bool, assigned: Array) -> None:
        if fingerprint >= 0:
            _route(fleet, wanted, hosts, offsets, has_affinity, assigned)

    return entry


_entry = _cached_entry(zlib.crc32("".join(getsource(module) for module in COMPILED_MODULES).encode()))


def router_is_cached() -> bool:
    """Return whether the compiled router is ready; if not, the first request with a choice of replicas compiles it."""
    return entry_is_cached(_entry)


def route_fast(
    requests: RequestTable,
    replicas: Sequence[tuple[ReplicaInputs, Sequence[int]]],
    hosts: Mapping[int, Sequence[int]],
    *,
    num_adapters: int,
    has_affinity: bool,
) -> NDArray[np.int32]:
    """Return the replica of each request, int32 [N]: the least loaded of its adapter's hosts.

    Parameters
    ----------
    requests
        All of them arrive before the replicas' horizon.
    replicas
        Inputs of each, scheduled synchronously, and its adapters' numbers in the fleet.
    hosts
        Replicas by adapter (-1: the base model), ascending; every adapter that is asked for has one.
    num_adapters
        Of the fleet, A; adapters are numbered below it.
    has_affinity
        Whether hosts that have the adapter in a slot come first.
    """
    fleet = _make_fleet(requests, replicas, num_adapters)
    of_adapters = [tuple(hosts.get(adapter, ())) for adapter in (*range(num_adapters), -1)]
    wanted = np.where(requests.adapter >= 0, requests.adapter, num_adapters).astype(np.int64)
    offsets = np.cumsum([0, *(len(own) for own in of_adapters)]).astype(np.int64)
    assigned = np.full(len(requests), -1, dtype=np.int64)
    _entry(fleet, wanted, np.array(sum(of_adapters, ()), dtype=np.int64), offsets, has_affinity, assigned)
    return assigned.astype(np.int32)


def _make_fleet(
    requests: RequestTable, replicas: Sequence[tuple[ReplicaInputs, Sequence[int]]], num_adapters: int
) -> Fleet:
    states = [_make_state(inputs, adapters, requests, num_adapters) for inputs, adapters in replicas]
    largest = max(inputs.block_size for inputs, _ in replicas)
    crossings = np.zeros((len(replicas), largest), np.int64)
    most_slots = max(min(inputs.num_slots, len(inputs.gpu_load_ns)) for inputs, _ in replicas)
    table = _request_table(requests)
    longest = int((table[:, FINISH_TOKENS] - table[:, PROMPT]).max(initial=0))
    places = np.zeros((len(replicas), NUM_PLACE_COLUMNS), np.int64)
    # Before the first instant, at which requests may arrive.
    places[:, [NOW, END, INBOX_HEAD, INBOX_TAIL]] = -1
    return Fleet(
        arrivals=states[0].arrivals,
        requests=table,
        inbox_next=np.full(len(requests), -1, np.int64),
        settings=np.array([make_settings(inputs) for inputs, _ in replicas], dtype=np.int64),
        coefficients=np.array([inputs.step_coefficients for inputs, _ in replicas], dtype=np.float64),
        longest=np.array([inputs.max_model_len for inputs, _ in replicas], dtype=np.int64),
        adapters=np.stack([state.adapters for state in states]),
        calendars=np.full((len(replicas), 1 << longest.bit_length()), -1, np.int64),
        crossings=crossings,
        column_steps=np.stack([state.decodes.column_steps for state in states]),
        adapter_gaps=np.stack([state.decodes.adapter_gaps for state in states]),
        counters=np.stack([state.counters for state in states]),
        scratch=np.stack([make_scratch(most_slots)] * len(replicas)),
        gaps=states[0].gaps,
        places=places,
    )


def _request_table(requests: RequestTable) -> Array:
    """Return the rows of requests that have not arrived yet; who serves one decides its adapter and its end."""
    table = np.full((len(requests), NUM_REQUEST_COLUMNS), -1, np.int64)
    table[:, [PROMPT, NUM_TOKENS]] = requests.prompt_tokens[:, np.newaxis]
    table[:, FINISH_TOKENS] = requests.prompt_tokens.astype(np.int64) + requests.output_tokens
    table[:, [COMPUTED, PREEMPTIONS]] = 0
    return table


def _make_state(inputs: ReplicaInputs, adapters: Sequence[int], requests: RequestTable, num_adapters: int) -> State:
    """Return the state of an empty replica, its adapters numbered as the fleet's."""
    columns: dict[str, Any] = {}
    for field in ("gpu_load_ns", "disk_load_ns", "adapter_hash"):
        own = getattr(inputs, field)
        columns[field] = np.zeros(num_adapters, dtype=own.dtype)
        columns[field][list(adapters)] = own
    everything = replace(
        inputs,
        arrival_ns=requests.arrival_ns,
        adapter=requests.adapter,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        sample_interval_ns=0,
        **columns,
    )
    return make_state(everything, log_capacity=0, table_capacity=0)
