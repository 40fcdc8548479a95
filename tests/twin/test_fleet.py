"""Replicas behind a router.

Each behaves as if it were alone with what it is given, and the router gives as it promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.handmade import STEP_NS, make_inputs
from tests.twin.strategies import assert_traces_equal, replica_inputs
from twin.errors import InputError
from twin.fleet import FleetReplica, Routing, SmoothRoundRobin, simulate_fleet
from twin.reference import run_reference
from twin.replica import ReplicaInputs
from twin.workload import RequestTable

ROUTINGS: tuple[Routing, ...] = get_args(Routing)


def table(rows: Sequence[tuple[int, int, int, int]]) -> RequestTable:
    """Return a request table of (arrival in ns, adapter, prompt tokens, output tokens)."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return RequestTable(columns[:, 0], *(columns[:, column].astype(np.int32) for column in (1, 2, 3)))


def hosting(adapters: Sequence[int], **changes: Any) -> FleetReplica:
    """Return a replica made by hand that hosts the fleet's `adapters`."""
    return FleetReplica(make_inputs([], hashes=range(len(adapters)), **changes), tuple(adapters))


def requests_of(inputs: ReplicaInputs) -> RequestTable:
    """Return the requests of an engine's inputs that arrive before its horizon."""
    columns = RequestTable(inputs.arrival_ns, inputs.adapter, inputs.prompt_tokens, inputs.output_tokens)
    return columns.select(inputs.arrival_ns < inputs.horizon_ns)


def with_requests(inputs: ReplicaInputs, requests: RequestTable) -> ReplicaInputs:
    """Return `inputs` with other requests."""
    return replace(
        inputs,
        arrival_ns=requests.arrival_ns,
        adapter=requests.adapter,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
    )


@st.composite
def fleets(draw: st.DrawFn, *, is_synchronous: bool = False) -> tuple[RequestTable, list[FleetReplica]]:
    """Draw two or three replicas under pressure; the first hosts all adapters, the others some, in any order."""
    first = draw(replica_inputs(is_synchronous=is_synchronous))
    num_adapters = len(first.adapter_hash)
    replicas = [FleetReplica(first, tuple(draw(st.permutations(range(num_adapters)))))]
    shortest = first.max_model_len
    for _ in range(draw(st.integers(1, 2))):
        other = draw(replica_inputs(is_synchronous=is_synchronous))
        shortest = min(shortest, other.max_model_len)
        adapters = draw(st.permutations(range(max(num_adapters, len(other.adapter_hash)))))
        other = replace(other, horizon_ns=first.horizon_ns, sample_interval_ns=first.sample_interval_ns)
        replicas.append(FleetReplica(other, tuple(adapters[: len(other.adapter_hash)])))
    requests = requests_of(first)
    return requests.select(requests.prompt_tokens < shortest), replicas


@settings(max_examples=60, deadline=None)
@given(fleet=fleets(), routing=st.sampled_from(ROUTINGS))
def test_every_replica_does_what_it_would_do_alone(
    fleet: tuple[RequestTable, list[FleetReplica]], routing: Routing
) -> None:
    """Replicas share a clock and a router, nothing else: replaying what each was given gives the same trace."""
    requests, replicas = fleet
    result = simulate_fleet(requests, replicas=replicas, routing=routing, log_steps=True)
    for index, (inputs, trace) in enumerate(zip(result.inputs, result.traces, strict=True)):
        assert inputs.arrival_ns.tolist() == requests.arrival_ns[result.assigned_replica == index].tolist()
        assert_traces_equal(run_reference(inputs, log_steps=True), trace)
    for adapter, replica in zip(requests.adapter.tolist(), result.assigned_replica.tolist(), strict=True):
        assert adapter == -1 or adapter in replicas[replica].adapters


@settings(max_examples=60, deadline=None)
@given(fleet=fleets(is_synchronous=True), routing=st.sampled_from(ROUTINGS))
def test_the_fast_engine_takes_the_same_decisions_and_steps(
    fleet: tuple[RequestTable, list[FleetReplica]], routing: Routing
) -> None:
    """Every request goes to the same replica, and every replica takes the same steps, as in SimPy."""
    requests, replicas = fleet
    readable = simulate_fleet(requests, replicas=replicas, routing=routing, log_steps=True)
    fast = simulate_fleet(requests, replicas=replicas, routing=routing, log_steps=True, engine="fast")
    assert fast.assigned_replica.tolist() == readable.assigned_replica.tolist()
    for expected, actual in zip(readable.traces, fast.traces, strict=True):
        assert_traces_equal(expected, actual)


@settings(max_examples=50, deadline=None)
@given(left=replica_inputs(), right=replica_inputs(), routing=st.sampled_from(ROUTINGS))
def test_adapters_on_one_replica_each_need_no_router(
    left: ReplicaInputs, right: ReplicaInputs, routing: Routing
) -> None:
    """With every adapter on one replica the fleet equals independent runs, whatever the routing."""
    right = replace(right, horizon_ns=left.horizon_ns)
    independent = []
    for inputs in (left, right):
        own = requests_of(inputs)
        independent.append(with_requests(inputs, own.select(own.adapter >= 0)))
    first, second = (requests_of(inputs) for inputs in independent)
    offset = len(left.adapter_hash)
    arrival_ns = np.concatenate([first.arrival_ns, second.arrival_ns])
    order = np.argsort(arrival_ns, kind="stable")
    merged = RequestTable(
        arrival_ns[order],
        np.concatenate([first.adapter, second.adapter + np.int32(offset)])[order],
        np.concatenate([first.prompt_tokens, second.prompt_tokens])[order],
        np.concatenate([first.output_tokens, second.output_tokens])[order],
    )
    replicas = [
        FleetReplica(left, tuple(range(offset))),
        FleetReplica(right, tuple(range(offset, offset + len(right.adapter_hash)))),
    ]
    result = simulate_fleet(merged, replicas=replicas, routing=routing, log_steps=True)
    assert result.assigned_replica.tolist() == (merged.adapter >= offset).astype(int).tolist()
    for inputs, trace in zip(independent, result.traces, strict=True):
        assert_traces_equal(run_reference(inputs, log_steps=True), trace)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_round_robin_gives_exact_shares_in_every_period(weights: list[int]) -> None:
    """After as many turns as the weights sum up to, every target has had exactly its weight."""
    turns = SmoothRoundRobin(weights)
    for _ in range(3):
        counts = Counter(turns.next() for _ in range(sum(weights)))
        assert [counts[target] for target in range(len(weights))] == weights


def test_round_robin_spreads_the_turns() -> None:
    """The heavy target's turns are not bunched."""
    turns = SmoothRoundRobin([5, 1, 1])
    assert [turns.next() for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]


def test_shares_are_kept_per_adapter() -> None:
    """Each adapter has its own shares; an adapter with one host and the base model need none."""
    rows = [(step, adapter, 2, 2) for step in range(40) for adapter in (0, 1, 2, -1)]
    shares = np.array([[0.75, 0.25], [0.1, 0.9], [0.0, 1.0]])
    requests = table(rows)
    result = simulate_fleet(requests, replicas=[hosting([0, 1]), hosting([1, 2, 0])], routing="shares", shares=shares)
    counts = Counter(zip(requests.adapter.tolist(), result.assigned_replica.tolist(), strict=True))
    assert counts == {(0, 0): 30, (0, 1): 10, (1, 0): 4, (1, 1): 36, (2, 1): 40, (-1, 0): 20, (-1, 1): 20}


def test_without_shares_the_hosts_take_turns() -> None:
    """Equal shares are the default."""
    replicas = [hosting([0]), hosting([0]), hosting([1])]
    result = simulate_fleet(table([(0, 0, 2, 2)] * 4), replicas=replicas)
    assert result.assigned_replica.tolist() == [0, 1, 0, 1]


def test_least_loaded_counts_running_waiting_and_just_arrived_requests() -> None:
    """Adapter 1 keeps the first replica busy; ties go to the first one."""
    rows = [
        (0, 1, 2, 5),
        (0, 1, 2, 1),  # waits: one request runs at a time
        (0, 0, 2, 9),  # 2 : 0
        (0, 0, 2, 9),  # 2 : 1
        (0, 0, 2, 9),  # 2 : 2, a tie
        (STEP_NS // 2, 0, 2, 9),  # 3 : 2
        (30 * STEP_NS, 0, 2, 9),  # the second replica has had 27 steps of work, the first 15: a tie at 0
    ]
    replicas = [hosting([0, 1], max_num_seqs=1), hosting([0], max_num_seqs=1)]
    result = simulate_fleet(table(rows), replicas=replicas, routing="least_loaded")
    assert result.assigned_replica.tolist() == [0, 0, 1, 1, 0, 1, 0]


def test_arrivals_come_before_ends_of_steps_at_the_same_instant() -> None:
    """The router sees a request that ends at that very instant as running."""
    rows = [(0, 0, 2, 3), (3 * STEP_NS, 0, 2, 1), (3 * STEP_NS + 1, 0, 2, 1)]
    replicas = [hosting([0]), hosting([0])]
    result = simulate_fleet(table(rows), replicas=replicas, routing="least_loaded")
    assert result.assigned_replica.tolist() == [0, 1, 0]


def test_affinity_prefers_a_replica_that_has_the_adapter_in_a_slot() -> None:
    """Even a busier one; an adapter that is nowhere goes to the least loaded host, which then keeps it."""
    rows = [
        (0, 1, 2, 50),
        (1, 0, 2, 50),  # nowhere: the first replica is busy
        (2 * STEP_NS, 2, 2, 50),
        (2 * STEP_NS, 0, 2, 2),  # 1 : 2, but the second replica has it
        (9 * STEP_NS, 0, 2, 2),
    ]
    replicas = [hosting([0, 1]), hosting([2, 0])]
    affinity = simulate_fleet(table(rows), replicas=replicas, routing="lora_affinity")
    assert affinity.assigned_replica.tolist() == [0, 1, 1, 1, 1]
    least_loaded = simulate_fleet(table(rows), replicas=replicas, routing="least_loaded")
    assert least_loaded.assigned_replica.tolist() == [0, 1, 1, 0, 0]
    assert affinity.traces[0].adapter_gpu_loads.tolist() == [0, 1]
    assert least_loaded.traces[0].adapter_gpu_loads.tolist() == [1, 1]


def test_affinity_balances_among_the_replicas_that_have_the_adapter() -> None:
    """Two of three replicas have it; the third is idle and gets nothing.

    The first two requests find it nowhere, since adapters are loaded by steps, and these start after the arrivals.
    """
    rows = [(0, 0, 2, 90), (0, 0, 2, 90), (1, 0, 2, 90), (1, 0, 2, 90), (2, 0, 2, 90)]
    result = simulate_fleet(table(rows), replicas=[hosting([0])] * 3, routing="lora_affinity")
    assert result.assigned_replica.tolist() == [0, 1, 0, 1, 0]


def test_a_replica_without_lora_serves_its_adapters_by_the_base_model() -> None:
    """As `build_inputs` does when LoRA is off."""
    replicas = [hosting([0, 1], num_slots=0), hosting([0])]
    result = simulate_fleet(table([(0, 1, 2, 2), (0, 0, 2, 2), (0, 0, 2, 2)]), replicas=replicas)
    assert result.assigned_replica.tolist() == [0, 0, 1]
    assert result.inputs[0].adapter.tolist() == [-1, -1]
    assert np.all(result.traces[0].finish_ns == 2 * STEP_NS)


def test_requests_at_or_after_the_horizon_go_nowhere() -> None:
    """They are in no trace."""
    replicas = [hosting([0], horizon_ns=5 * STEP_NS)]
    result = simulate_fleet(table([(0, 0, 2, 1), (5 * STEP_NS, 0, 2, 1), (9 * STEP_NS, 7, 2, 1)]), replicas=replicas)
    assert result.assigned_replica.tolist() == [0, -1, -1]
    assert [len(trace.finish_ns) for trace in result.traces] == [1]


def test_an_empty_table_gives_empty_traces() -> None:
    """No request, no step."""
    result = simulate_fleet(RequestTable.empty(), replicas=[hosting([0]), hosting([])], routing="lora_affinity")
    assert [trace.num_steps for trace in result.traces] == [0, 0]


def test_an_adapter_without_a_replica_is_refused() -> None:
    """The message names it."""
    with pytest.raises(InputError, match="Adapter 3 has none"):
        simulate_fleet(table([(0, 0, 2, 1), (0, 3, 2, 1)]), replicas=[hosting([0, 1])])


@pytest.mark.parametrize(
    "shares",
    [
        [[1.0, -1.0, 0.0]],
        [[0.0, 0.0, 0.0]],
        [[np.nan, 1.0, 0.0]],
        [[np.inf, 1.0, 0.0]],
        [[0.5, 0.25, 0.25]],  # the third replica does not host it
        [[1.0]],  # a column is missing
        np.zeros((0, 3)),  # the row is missing
    ],
)
def test_unusable_shares_are_refused(shares: Any) -> None:
    """Negative, zero in sum, not finite, where the adapter is not hosted, or incomplete."""
    replicas = [hosting([0]), hosting([0]), hosting([])]
    with pytest.raises(InputError, match="`shares` must give adapter 0") as caught:
        simulate_fleet(table([(0, 0, 2, 1)]), replicas=replicas, shares=np.array(shares))
    assert caught.value.field == "shares.0"


def test_replicas_must_share_the_horizon() -> None:
    """Otherwise the end of the fleet's run is not defined."""
    with pytest.raises(InputError, match="same horizon"):
        simulate_fleet(RequestTable.empty(), replicas=[hosting([0]), hosting([0], horizon_ns=7)])
    with pytest.raises(InputError, match="same horizon"):
        simulate_fleet(RequestTable.empty(), replicas=[])


def test_a_prompt_that_one_of_the_hosts_cannot_hold_is_refused() -> None:
    """Whichever replica the router would choose."""
    replicas = [hosting([0]), hosting([0], max_model_len=8)]
    with pytest.raises(InputError, match=r"\(8\).*8 tokens \(request 1\)"):
        simulate_fleet(table([(0, 0, 7, 1), (0, 0, 8, 1)]), replicas=replicas)


def test_an_unknown_routing_is_refused() -> None:
    """The message names the three that exist."""
    routing: Any = "random"
    with pytest.raises(InputError, match="shares, least_loaded, lora_affinity"):
        simulate_fleet(RequestTable.empty(), replicas=[hosting([0])], routing=routing)


@pytest.mark.parametrize("adapters", [(0,), (0, 0), (0, 1, 2)])
def test_a_replica_must_name_each_of_its_adapters_once(adapters: tuple[int, ...]) -> None:
    """The columns of its inputs and the fleet's indices belong together."""
    with pytest.raises(InputError, match="each of the replica's 2 adapters once"):
        FleetReplica(make_inputs([], hashes=[5, 6]), adapters)
