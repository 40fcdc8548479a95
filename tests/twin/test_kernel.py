"""The compiled engine against the readable one, and what only the compiled one has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from tests.twin.strategies import assert_traces_equal, replica_inputs
from twin.errors import TwinError
from twin.kernel import run_kernel
from twin.reference import run_reference
from twin.replica import ReplicaInputs


@settings(max_examples=400)
@given(inputs=replica_inputs())
def test_kernel_equals_reference(inputs: ReplicaInputs) -> None:
    """Both engines take the same steps, to the nanosecond, block and queue position."""
    assert_traces_equal(run_kernel(inputs, log_steps=True), run_reference(inputs, log_steps=True))
