"""vLLM's own scheduler, KV-cache manager and LoRA caches as an engine of the twin: no model, no GPU, a virtual clock.

It takes the steps that vLLM takes, and the time of each is the profile's. It runs in an interpreter that has vLLM, in
a process with the replica's PYTHONHASHSEED; docs/vllm-engine.md says how to install it and what it shows.
"""

from __future__ import annotations

import atexit
import os
import sys
from functools import cache

from twin.errors import InputError
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.vllm_process import ProcessPool, Progress, ignore
from twin.vllm_python import PYTHON_VARIABLE, VllmPython, find_vllm_python, require_supported


def run_vllm(
    inputs: ReplicaInputs,
    *,
    log_steps: bool = False,
    keep_step_table: bool = False,
    progress: Progress = ignore,
) -> ReplicaTrace:
    """Simulate one replica with vLLM's own code; see `run_vllm_timed`."""
    return run_vllm_timed(inputs, log_steps=log_steps, keep_step_table=keep_step_table, progress=progress)[0]


def run_vllm_timed(
    inputs: ReplicaInputs,
    *,
    log_steps: bool = False,
    keep_step_table: bool = False,
    progress: Progress = ignore,
) -> tuple[ReplicaTrace, float]:
    """Simulate one replica with vLLM's own code; return also the CPU time that it took there, in s.

    Starting vLLM's process, which waits for further questions, is not part of that time.

    Parameters
    ----------
    inputs
        See `ReplicaInputs`; with the adapters' names.
    log_steps, keep_step_table
        See `twin.kernel.run_kernel`.
    progress
        Called with the simulated time in ns, about twice a second.

    Raises
    ------
    InputError
        When vLLM cannot express a setting.
    VllmError
        When vLLM is not installed, not compatible or fails.
    TwinError
        When a step schedules nothing although requests run or wait.
    """
    require_expressible(inputs)
    with _pool().process(vllm_python(), inputs.hash_seed) as process:
        return process.run(inputs, log_steps=log_steps, keep_step_table=keep_step_table, progress=progress)


def require_expressible(inputs: ReplicaInputs) -> None:
    """Raise InputError for settings that only other versions of vLLM, or none, have.

    `keep_last_token_free` is not among them: without speculative tokens it never binds.
    """
    if inputs.long_prefill_token_threshold > 0 and inputs.threshold_when_alone:
        raise InputError(
            "vLLM 0.32 applies `long_prefill_token_threshold` only while several requests run or wait. "
            f"It is {inputs.long_prefill_token_threshold}, with `long_prefill_threshold_when_alone` (0.8.5's rule).",
            field="long_prefill_threshold_when_alone",
            value=True,
            hint="set long_prefill_threshold_when_alone to false or the threshold to 0, or take the engine `fast`",
        )
    if inputs.long_prefill_token_threshold > inputs.max_model_len:
        raise InputError(
            f"vLLM wants `long_prefill_token_threshold` to be at most `max_model_len` ({inputs.max_model_len}). "
            f"It is {inputs.long_prefill_token_threshold}.",
            field="long_prefill_token_threshold",
            value=inputs.long_prefill_token_threshold,
            hint="set it to 0: a threshold that no sequence reaches limits nothing",
        )
    if inputs.evicts_adapters and not inputs.load_in_set_order:
        raise InputError(
            'vLLM loads a step\'s adapters in the order of a set. `lora_load_order` is "batch".',
            field="lora_load_order",
            value="batch",
            hint='set lora_load_order to "set", or take the engine `fast`',
        )
    if len(inputs.adapter_names) != len(inputs.adapter_hash):
        raise InputError(
            "vLLM needs the names of the adapters, whose hashes decide the load order. "
            f"There are {len(inputs.adapter_names)} names for {len(inputs.adapter_hash)} adapters.",
            field="adapter_names",
            value=inputs.adapter_names,
        )


def vllm_python() -> VllmPython:
    """Return the interpreter that has vLLM; it is asked once (VllmError when there is none, or vLLM is too old)."""
    return _ask(os.environ.get(PYTHON_VARIABLE) or sys.executable)


@cache
def _ask(executable: str) -> VllmPython:
    """Remember what `find_vllm_python` found for `executable`, which it gets from the same variable."""
    found = find_vllm_python()
    assert found.executable == executable
    require_supported(found)
    return found


@cache
def _pool() -> ProcessPool:
    """Return the processes of this process, which end with it."""
    pool = ProcessPool()
    atexit.register(pool.close)
    return pool
