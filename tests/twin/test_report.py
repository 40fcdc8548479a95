"""What the report makes of an engine's raw outcome, on replicas where every number can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.twin.handmade import STEP_NS, coefficients, make_inputs
from twin.lengths import LengthDistribution
from twin.reference import run_reference
from twin.report import SimulationReport, build_report
from twin.workload import NANOSECONDS, Adapter, Workload

SECOND_NS = NANOSECONDS
LENGTHS = LengthDistribution.constant(1)


def report_of(
    requests: Sequence[tuple[int, int, int, int]],
    *,
    warmup_s: float = 0.0,
    num_adapters: int = 2,
    with_adapters: bool = True,
    **settings: Any,
) -> SimulationReport:
    """Return the report on the readable engine's run of `make_inputs`; times of the requests in nanoseconds."""
    inputs = make_inputs(requests, hashes=range(num_adapters), **settings)
    workload = Workload(
        tuple(
            Adapter(name=f"a{index}", rank=16, rate_rps=1.0, prompt_tokens=LENGTHS, output_tokens=LENGTHS)
            for index in range(num_adapters)
        )
    )
    return build_report(
        workload,
        inputs,
        run_reference(inputs),
        engine="simpy",
        seed=0,
        warmup_s=warmup_s,
        starvation_tolerance=0.1,
        with_adapters=with_adapters,
    )


def test_first_tokens_of_the_warmup_are_no_latencies_of_an_adapter() -> None:
    """Two requests share a step in the warm-up, one has its own after it: an adapter's TTFT is the latter's alone."""
    slow_prefill = coefficients(base_ms=1.0, token_ms=0.1)
    requests = [(0, 0, 90, 1), (50 * STEP_NS, 0, 10, 1)]
    report = report_of(requests, warmup_s=0.02, step_coefficients=slow_prefill)
    assert report.ttft.mean_s == pytest.approx(0.002)
    assert report.adapters[0].ttft == report.ttft


def test_tokens_beyond_the_context_are_neither_offered_nor_served() -> None:
    """A request that ends at `max_model_len` is served in full with the tokens that the engine can give it."""
    report = report_of([(0, 0, 60, 500)], max_model_len=100)
    assert report.requests_finished == 1
    assert report.throughput_tps == pytest.approx(100 / report.horizon_s)
    assert report.offered_tps == report.throughput_tps
    assert report.adapters[0].offered_tps == report.offered_tps


# A request that takes the only slot for longer than the simulation, and one of another adapter that waits for it.
ONE_WAITS = ((0, 0, 2, 20_000), (STEP_NS, 1, 2, 2))
ONE_WAITS_SETTINGS: dict[str, Any] = {
    "warmup_s": 2.0,
    "num_slots": 1,
    "cpu_capacity": 2,
    "max_model_len": 20_100,
    "num_blocks": 20_200,
    "horizon_ns": 10 * SECOND_NS,
}


def test_an_adapter_that_waits_since_the_warmup_starves() -> None:
    """Its only request came in the warm-up and is never served: that nothing arrived later must not excuse it."""
    report = report_of(ONE_WAITS, **ONE_WAITS_SETTINGS)
    assert report.adapters[1].requests_arrived == 0
    assert report.adapters[1].served_ratio == 0.0
    assert report.starved_adapters == ("a1",)


def test_leaving_the_adapters_out_changes_nothing_else() -> None:
    """Who labels thousands of simulations needs no report of each adapter, but the same verdicts."""
    whole = report_of(ONE_WAITS, **ONE_WAITS_SETTINGS)
    short = report_of(ONE_WAITS, with_adapters=False, **ONE_WAITS_SETTINGS)
    assert short.adapters == ()
    assert short.starved_adapters == ("a1",)
    assert short == whole.model_copy(update={"adapters": ()})
