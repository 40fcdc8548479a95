"""What the engine that runs vLLM refuses, and how it talks to vLLM's process; vLLM itself is not needed for it."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from tests.twin.handmade import make_inputs
from tests.twin.strategies import assert_traces_equal
from twin.errors import InputError
from twin.headless.frames import pack, read_frame, unpack_inputs, unpack_trace, write_frame
from twin.name_hash import adapter_name_hashes
from twin.reference import run_reference
from twin.replica import ReplicaInputs
from twin.vllm_engine import run_vllm

NAMES = ("a", "b", "c", "d", "e")


def _named(**settings: Any) -> ReplicaInputs:
    """Return inputs with names, on fewer slots than adapters."""
    inputs = make_inputs(
        [(0, 0, 4, 3), (5, 4, 9, 2)], hashes=adapter_name_hashes(NAMES, 7).tolist(), **{"num_slots": 2, **settings}
    )
    return replace(inputs, adapter_names=NAMES, hash_seed=7)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"long_prefill_token_threshold": 8, "threshold_when_alone": True}, "long_prefill_threshold_when_alone"),
        ({"long_prefill_token_threshold": 101}, "long_prefill_token_threshold"),
        ({"load_in_set_order": False}, "lora_load_order"),
    ],
)
def test_settings_that_vllm_does_not_have_are_refused(settings: dict[str, Any], field: str) -> None:
    """Before any process is started, with the setting's name and what to do."""
    with pytest.raises(InputError, match="vLLM") as caught:
        run_vllm(_named(**settings))
    assert caught.value.field == field
    assert caught.value.hint


def test_adapters_need_names() -> None:
    """CPython's hashes come from the names; a replica without them could not be the twin's."""
    with pytest.raises(InputError, match="names of the adapters"):
        run_vllm(replace(_named(), adapter_names=("a",)))


def test_frames_bring_inputs_and_traces_through_a_pipe() -> None:
    """Every field arrives with its type, the step log and the step table included, and what was not asked is None."""
    inputs = _named()
    logged, bare = run_reference(inputs, log_steps=True, keep_step_table=True), run_reference(inputs)
    pipe = io.BytesIO()
    write_frame(pipe, "run", pack(inputs), log_steps=True)
    write_frame(pipe, "trace", pack(logged))
    write_frame(pipe, "trace", pack(bare))
    pipe.seek(0)
    question, first, second = (read_frame(pipe) for _ in range(3))
    assert question is not None
    assert first is not None
    assert second is not None
    assert (question.header["kind"], question.header["log_steps"]) == ("run", True)
    received = unpack_inputs(question.arrays)
    for field in fields(ReplicaInputs):
        expected, actual = getattr(inputs, field.name), getattr(received, field.name)
        assert type(actual) is type(expected), field.name
        assert np.array_equal(actual, expected), field.name
    assert_traces_equal(unpack_trace(first.arrays), logged)
    assert_traces_equal(unpack_trace(second.arrays), bare)


def test_a_frame_that_was_cut_off_is_none() -> None:
    """A process that died in the middle of an answer is noticed, not waited for or misread."""
    pipe = io.BytesIO()
    write_frame(pipe, "trace", pack(run_reference(_named())))
    whole = pipe.getvalue()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        assert read_frame(io.BytesIO(whole[:length])) is None
