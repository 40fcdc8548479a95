"""What the fast engine is asked and what it answers, a column for each quantity of the requests.

In between, it keeps a row for each request (twin/kernel_requests.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twin.replica import ReplicaInputs


class Asked(NamedTuple):
    """Columns of `ReplicaInputs`, int32 [N], from which the table of requests is filled."""

    adapter: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]


class Outcome(NamedTuple):
    """What is read from the table of requests in the end; names, shapes and types are those of `ReplicaTrace`.

    `gap_sum_ns` and `gap_count` are its `adapter_gap_sum_ns` and `adapter_gap_count`.
    """

    first_scheduled_ns: NDArray[np.int64]
    first_token_ns: NDArray[np.int64]
    finish_ns: NDArray[np.int64]
    generated_tokens: NDArray[np.int32]
    preemptions: NDArray[np.int32]
    is_running: NDArray[np.bool_]
    gap_sum_ns: NDArray[np.int64]
    gap_count: NDArray[np.int64]


def copy_asked(inputs: ReplicaInputs) -> Asked:
    """Return the columns of `inputs`, each with its one fixed type."""
    return Asked(
        adapter=np.array(inputs.adapter, np.int32),
        prompt_tokens=np.array(inputs.prompt_tokens, np.int32),
        output_tokens=np.array(inputs.output_tokens, np.int32),
    )


def make_outcome(num_requests: int, num_adapters: int) -> Outcome:
    """Return room for what becomes of so many requests."""
    return Outcome(
        first_scheduled_ns=np.empty(num_requests, np.int64),
        first_token_ns=np.empty(num_requests, np.int64),
        finish_ns=np.empty(num_requests, np.int64),
        generated_tokens=np.empty(num_requests, np.int32),
        preemptions=np.empty(num_requests, np.int32),
        is_running=np.zeros(num_requests, np.bool_),
        gap_sum_ns=np.zeros(num_adapters + 1, np.int64),
        gap_count=np.zeros(num_adapters + 1, np.int64),
    )
