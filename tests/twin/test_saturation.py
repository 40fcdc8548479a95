"""Traffic that saturates a replica, and several replicas on one GPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.memory import check_memory, least_utilization
from twin.profile import load_profile
from twin.replica import Replica
from twin.saturation import (
    LEAST_RATIO,
    MOST_RATIO,
    SaturatedRun,
    longest_request_tokens,
    saturate,
    saturated_mix,
    simulate_lightly,
    simulate_saturated,
)
from twin.shared_gpu import SHARED_CASES, SharedCase, shared_coefficients
from twin.step_time import COEFFICIENT_NAMES, step_time_ms
from twin.workload import Adapter, Phase, RequestTable, Workload

MODEL = load_model("llama-3.1-8b")
PROFILE = load_profile("llama-3.1-8b-h100-64gb")
GPU = GpuType(name=PROFILE.gpu, memory_gib=PROFILE.gpu_memory_gib)


def make_run(total_rps: float, *, max_num_seqs: int = 16) -> SaturatedRun:
    """Return a replica of four adapters that ask for `total_rps` requests/s, without any requests yet."""
    length = LengthDistribution.constant(50)
    adapters = tuple(
        Adapter(name=f"a{index}", rank=8, rate_rps=total_rps / 4, prompt_tokens=length, output_tokens=length)
        for index in range(4)
    )
    engine = EngineConfig(max_loras=4, max_lora_rank=8, max_num_seqs=max_num_seqs)
    replica = Replica(MODEL, GPU, engine, PROFILE)
    return SaturatedRun(Workload(adapters), RequestTable.empty(), replica, horizon_s=60.0, warmup_s=10.0, seed=0)


@pytest.mark.parametrize("total_rps", [0.01, 10.0, 500.0])
def test_traffic_is_scaled_until_it_just_saturates(total_rps: float) -> None:
    """Whether it is far too little or far too much: the batch is full, and the queue short."""
    report = simulate_saturated(saturate(make_run(total_rps)))
    assert LEAST_RATIO <= report.throughput_ratio <= MOST_RATIO
    assert report.running_mean > 15.0


def test_a_smaller_batch_gets_the_same_requests_more_slowly() -> None:
    """The queue stays short, too; and the batch full."""
    wide = saturate(make_run(10.0))
    small = simulate_lightly(SaturatedRun(**(vars(wide) | {"replica": make_run(10.0, max_num_seqs=2).replica})))
    assert LEAST_RATIO <= small.throughput_ratio <= 1.0
    assert 1.9 < small.running_mean <= 2.0


def test_the_mix_is_the_mean_rates_without_their_course() -> None:
    """A phase without traffic does not leave the GPU idle."""
    workload = Workload(make_run(1.0).workload.adapters, phases=(Phase(start_s=0.0, rate_scale=0.0),))
    assert saturated_mix(workload) == Workload(workload.adapters)


def test_no_traffic_cannot_saturate() -> None:
    """There is no mix where all rates are 0."""
    with pytest.raises(InputError, match="must have traffic"):
        saturated_mix(make_run(0.0).workload)


def test_the_longest_request_ends_at_the_models_length() -> None:
    """As the engine does."""
    run = saturate(make_run(10.0))
    assert longest_request_tokens(run) == 100
    engine = run.replica.engine.model_copy(update={"max_model_len": 64})
    short = SaturatedRun(**(vars(run) | {"replica": Replica(MODEL, GPU, engine, PROFILE)}))
    assert longest_request_tokens(short) == 64


@given(num_blocks=st.integers(2, 15_000), slots=st.integers(1, 64), seqs=st.integers(1, 2048))
def test_the_least_utilization_leaves_the_blocks_and_hardly_more(num_blocks: int, slots: int, seqs: int) -> None:
    """Set back into the memory formula, it gives the blocks asked for; a step less does not."""
    engine = EngineConfig(max_loras=slots, max_num_seqs=seqs, max_num_batched_tokens=2048, max_model_len=16)
    utilization = least_utilization(MODEL, GPU, engine, PROFILE, num_blocks=num_blocks)
    if utilization > 1.0:
        return

    def blocks_at(value: float) -> int:
        return check_memory(MODEL, GPU, engine.model_copy(update={"gpu_memory_utilization": value}), PROFILE).num_blocks

    assert blocks_at(utilization) >= num_blocks
    assert blocks_at(utilization - 2e-4) < num_blocks


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, int, int, bool, bool, int, int, int, int]:
    """Draw the arguments of a step's time."""
    num_requests = draw(st.integers(1, 256))
    slots = draw(st.integers(0, 64))
    return (
        draw(st.integers(num_requests, 2048)),
        num_requests,
        draw(st.integers(0, 300_000)),
        draw(st.integers(0, min(slots, num_requests))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 1000)),
        slots,
        draw(st.sampled_from([8, 16, 32])),
        draw(st.integers(slots, 500)),
    )


@given(step=steps(), num_replicas=st.integers(1, 4), has_datasheet=st.booleans())
def test_the_cases_are_ordered_and_equal_for_one_replica(
    step: tuple[int, int, int, int, bool, bool, int, int, int, int], num_replicas: int, *, has_datasheet: bool
) -> None:
    """More sharing is never faster, no step is faster than alone, and none takes more than R times as long."""
    profile = PROFILE if has_datasheet else PROFILE.model_copy(update={"gpu": "nobody's"})

    def time_ms(case: SharedCase) -> float:
        times = shared_coefficients(profile, MODEL, num_replicas=num_replicas, case=case)
        return max(step_time_ms(coefficients, *step) for coefficients in times)

    alone = step_time_ms(profile.step_time.as_array(), *step)
    least, assumed, most = (time_ms(case) for case in SHARED_CASES)
    tolerance = 1e-9 * most
    assert alone <= least + tolerance
    assert least <= assumed + tolerance
    assert assumed <= most + tolerance
    assert most == pytest.approx(num_replicas * alone)


def test_reading_the_weights_is_shared_in_every_case() -> None:
    """With a datasheet, part of a step's constant is the GPU's for certain."""
    base = COEFFICIENT_NAMES.index("base_ms")
    _, on_device = shared_coefficients(PROFILE, MODEL, num_replicas=2, case="least")
    assert 0.0 < on_device[base] / 2 < PROFILE.step_time.base_ms
    unknown = PROFILE.model_copy(update={"gpu": "nobody's"})
    assert shared_coefficients(unknown, MODEL, num_replicas=2, case="least")[1][base] == 0.0
    (assumed,) = shared_coefficients(unknown, MODEL, num_replicas=2, case="assumed")
    assert assumed[base] == pytest.approx(2 * PROFILE.step_time.base_ms)
    assert np.all(assumed >= PROFILE.step_time.as_array())
