"""Both of the twin's engines against vLLM's own scheduler and LoRA caches: not one step may differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.strategies import assert_traces_equal, replica_inputs
from tests.vllm.configurations import CONFIGURATIONS, Configuration
from tests.vllm.golden import read_golden
from twin.headless.frames import pack
from twin.kernel import run_kernel
from twin.name_hash import adapter_name_hashes
from twin.reference import run_reference
from twin.replica import ReplicaInputs
from twin.vllm_engine import run_vllm

pytestmark = pytest.mark.usefixtures("python")

GOLDEN = read_golden()
# Each is a process of its own.
HASH_SEEDS = (0, 31337)
MOST_ADAPTERS = 10


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
def test_all_engines_take_vllms_steps(configuration: Configuration) -> None:
    """Tokens, queues, blocks, loads, both caches in order of use, and every statistic, in a case that has its point."""
    inputs = configuration.inputs()
    logs: dict[str, Any] = {"log_steps": True, "keep_step_table": True}
    vllm = run_vllm(inputs, **logs)
    assert configuration.shows(inputs, vllm)
    if configuration.name in GOLDEN:
        assert_traces_equal(GOLDEN[configuration.name].trace, vllm)
    assert_traces_equal(vllm, run_reference(inputs, **logs))
    assert_traces_equal(vllm, run_kernel(inputs, **logs))


def test_there_are_configurations_enough() -> None:
    """Thirty at least of either way to schedule, each with a name of its own."""
    assert len({configuration.name for configuration in CONFIGURATIONS}) == len(CONFIGURATIONS)
    asynchronous = sum(configuration.inputs().async_scheduling for configuration in CONFIGURATIONS)
    assert min(asynchronous, len(CONFIGURATIONS) - asynchronous) >= 30


def test_the_recorded_steps_are_of_the_configurations() -> None:
    """The file holds what they describe now; else it is to be recorded anew (tests/vllm/golden.py)."""
    recorded = {configuration.name: configuration for configuration in CONFIGURATIONS if configuration.is_recorded}
    assert recorded.keys() == GOLDEN.keys()
    for name, configuration in recorded.items():
        assert pack(GOLDEN[name].inputs).keys() == pack(configuration.inputs()).keys()
        for field, array in pack(configuration.inputs()).items():
            assert np.array_equal(pack(GOLDEN[name].inputs)[field], array), f"{name}: {field}"


@st.composite
def vllm_inputs(draw: st.DrawFn) -> ReplicaInputs:
    """Draw a replica that vLLM can express, whose adapters have names that collide in sets under its hash seed."""
    inputs = draw(replica_inputs())
    hash_seed = draw(st.sampled_from(HASH_SEEDS))
    names = draw(st.permutations(_NAMES[hash_seed]))[: len(inputs.adapter_hash)]
    return replace(
        inputs,
        adapter_names=tuple(names),
        adapter_hash=adapter_name_hashes(names, hash_seed),
        hash_seed=hash_seed,
        load_in_set_order=True,
        # vLLM refuses a threshold above the longest sequence.
        long_prefill_token_threshold=min(inputs.long_prefill_token_threshold, inputs.max_model_len),
        threshold_when_alone=inputs.threshold_when_alone and inputs.long_prefill_token_threshold == 0,
        # vLLM's is a share of the blocks.
        watermark_blocks=min(inputs.watermark_blocks, inputs.num_blocks - 1),
    )


@settings(max_examples=100)
@given(inputs=vllm_inputs())
def test_generated_replicas_take_vllms_steps(inputs: ReplicaInputs) -> None:
    """Small replicas under pressure, with settings that go together at random."""
    vllm = run_vllm(inputs, log_steps=True, keep_step_table=True)
    assert_traces_equal(vllm, run_reference(inputs, log_steps=True, keep_step_table=True))
    assert_traces_equal(vllm, run_kernel(inputs, log_steps=True, keep_step_table=True))


def _colliding_names(hash_seed: int) -> list[str]:
    """Return names of which half begin probing at one of two entries, in small and in larger sets."""
    names = np.array([f"lora/{number}" for number in range(600)])
    entries = adapter_name_hashes(names.tolist(), hash_seed) & np.uint64(31)
    colliding = names[(entries == 5) | (entries == 30)].tolist()
    others = names[(entries != 5) & (entries != 30)].tolist()
    return [*colliding[: MOST_ADAPTERS // 2], *others[: MOST_ADAPTERS - MOST_ADAPTERS // 2]]


_NAMES = {hash_seed: _colliding_names(hash_seed) for hash_seed in HASH_SEEDS}
