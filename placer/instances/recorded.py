"""Instances from public traces: plans are made from the first part of what was seen, and the second is replayed.

Azure's traces hold one hour: the first half gives the rates and lengths, the second half is replayed. ServeGen's rates
of real clients drift over days: an hour gives the rates, and requests drawn from those of the next hour are replayed.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placer.instances.instance import CHAT_OUTPUT, CHAT_PROMPT, Instance, chat_adapters, dealt_ranks, make_problem
from placer.instances.synthetic import generator_of
from twin.derive import derive_workload, trace_workload
from twin.popularity import Assignment, DirichletPopularity, Popularity, ZipfPopularity, assign_by_popularity
from twin.popularity import assign_ranks as deal_trace_ranks
from twin.trace import Trace, replicate
from twin.traces import ClientRates, read_azure, read_servegen_rates
from twin.workload import NANOSECONDS, RequestTable, Workload

DATA_VARIABLE = "PLACER_DATA"
POPULARITIES: dict[str, Popularity] = {"dirichlet": DirichletPopularity(0.5), "zipf": ZipfPopularity(0.9)}
SERVEGEN_FILE = "servegen_m_small_clients_10min.csv"
HOUR_S = 3600.0
# Largest and mean rate that a ServeGen client is given: real ones need many GPUs each.
CLIENT_LARGEST_RPS = 2.0
CLIENT_MEAN_RPS = 0.3


def missing_data() -> str:
    """Return why instances from traces cannot be made here; empty: they can."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return f"{DATA_VARIABLE} is not set: it names the folder that holds `workloads`"
    return "" if (Path(folder) / "workloads").is_dir() else f"{DATA_VARIABLE} must name a folder that holds `workloads`"


def azure_instance(name: str, *, kind: str, popularity: str, num_adapters: int, copies: int) -> Instance:
    """Return adapters that share the requests of an Azure trace.

    Parameters
    ----------
    name
        Decides the draws.
    kind
        ``conv`` or ``code``.
    popularity
        Of `POPULARITIES`.
    num_adapters
        Over which the requests spread.
    copies
        How often each request occurs, jittered by up to 5 s.
    """
    seed = int(generator_of(name).integers(2**31))
    trace = replicate(_azure(kind), copies=copies, seed=seed)
    assignment = assign_by_popularity(trace, num_adapters=num_adapters, popularity=POPULARITIES[popularity], seed=seed)
    ranks = deal_trace_ranks(num_adapters, (8, 16, 32), seed=seed)
    half_s = trace.known_duration_s / 2.0
    first, of_first = _part(trace, assignment, 0.0, half_s)
    second, of_second = _part(trace, assignment, half_s, trace.known_duration_s)
    planned = derive_workload(first, of_first, ranks)
    replayed = trace_workload(second, of_second, ranks)
    problem = make_problem((), workload=planned)
    what = f"Azure {kind} x {copies}, {popularity}, rank 8, 16, 32; the second half hour is replayed"
    return Instance(name, "azure", what, problem, replay=replace(problem, workload=replayed))


def servegen_instance(name: str, *, num_adapters: int) -> Instance:
    """Return adapters with the rates of real clients in an hour; the next hour's are replayed.

    An adapter is one client in one pair of hours, drawn from those in which it sent something in the first. Its rates
    are scaled alike in both hours. Lengths are those of chats; within ten minutes arrivals are Poisson.
    """
    generator = generator_of(name)
    windows = _client_hours(_servegen())
    drawn = windows[generator.permutation(len(windows))[:num_adapters]]
    if len(drawn) < num_adapters:
        raise AssertionError(f"{num_adapters} pairs of hours are needed, and the trace has {len(drawn)}")
    per_hour = drawn.shape[2]
    first = drawn[:, 0].mean(axis=1)
    factor = np.minimum(CLIENT_MEAN_RPS / first.mean(), CLIENT_LARGEST_RPS / first)
    adapters = chat_adapters(dealt_ranks((8, 16, 32), num_adapters, generator), first * factor)
    problem = make_problem(adapters)
    rates = drawn[:, 1] * factor[:, np.newaxis]
    trace = _drawn_requests(rates, HOUR_S / per_hour, generator)
    workload = Workload(problem.adapters, trace=trace, trace_duration_s=HOUR_S)
    what = "ServeGen clients, rank 8, 16, 32; the next hour's rates are replayed"
    return Instance(name, "servegen", what, problem, replay=replace(problem, workload=workload))


def _folder() -> Path:
    return Path(os.environ[DATA_VARIABLE]) / "workloads"


@lru_cache(maxsize=2)
def _azure(kind: str) -> Trace:
    return read_azure(_folder() / f"azure_llm2023_{kind}.csv")


@lru_cache(maxsize=1)
def _servegen() -> ClientRates:
    return read_servegen_rates(_folder() / SERVEGEN_FILE)


def _part(trace: Trace, assignment: Assignment, start_s: float, end_s: float) -> tuple[Trace, Assignment]:
    """Return the requests of a window, and the adapter of each."""
    inside = (trace.arrival_s >= start_s) & (trace.arrival_s < end_s)
    return trace.between(start_s, end_s), replace(assignment, adapter=assignment.adapter[inside])


def _client_hours(rates: ClientRates) -> NDArray[np.float64]:
    """Return the rates of each client in each pair of hours in which it sent something first, [P, 2, windows]."""
    per_hour = round(HOUR_S / rates.window_s)
    window = np.round(rates.window_start_s / rates.window_s).astype(np.int64)
    num_pairs = int(window.max() + 1) // (2 * per_hour)
    names, client = np.unique(rates.client.astype(str), return_inverse=True)
    table = np.zeros((len(names), num_pairs * 2 * per_hour))
    inside = window < table.shape[1]
    table[client[inside], window[inside]] = rates.rate_rps[inside]
    pairs = table.reshape(len(names) * num_pairs, 2, per_hour)
    chosen: NDArray[np.float64] = pairs[pairs[:, 0].sum(axis=1) > 0.0]
    return chosen


def _drawn_requests(rates: NDArray[np.float64], window_s: float, generator: np.random.Generator) -> RequestTable:
    """Return Poisson requests of A adapters whose rates [A, W] hold for a window each."""
    counts = generator.poisson(rates * window_s)
    adapter, window = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), rates.shape[1])
    arrival_s = (window + generator.random(len(window))) * window_s
    order = np.argsort(arrival_s, kind="stable")
    return RequestTable(
        arrival_ns=np.floor(arrival_s[order] * NANOSECONDS).astype(np.int64),
        adapter=adapter[order].astype(np.int32),
        prompt_tokens=CHAT_PROMPT.sample(len(order), generator).astype(np.int32),
        output_tokens=CHAT_OUTPUT.sample(len(order), generator).astype(np.int32),
    )
