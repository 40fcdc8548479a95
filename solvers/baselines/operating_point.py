"""How many tokens per second a GPU serves at most, without adapters and with adapters of one rank.

Measured and published for two profiles (arXiv 2602.24044): see `PUBLISHED_BACKBONE_TPS` and `PUBLISHED_RANK_TPS`. They
are for ShareGPT lengths (mean 222.9 prompt and 196.6 output tokens) and are taken whatever the lengths, as their users
take them.

For other profiles the profile's step time says it. In a saturated replica B requests run, of which each gets a token
per step, and whose prompts are processed as fast as requests end: with p prompt and o output tokens on average, a step
has B * (p + o - 1) / o tokens, reads B * (p + o / 2) KV tokens, and serves B * (p + o) / o tokens. B is the largest
that `max_num_seqs`, the KV cache and `max_num_batched_tokens` allow. With adapters there are `NUM_SLOTS` slots (fewer
where memory allows no more), as many adapters in each batch, all of that rank. The published measurements are 0.86
(Llama-3.1-8B) and 0.78 (Qwen2.5-7B) of this formula at the same lengths without adapters, and the same to 0.02 with
them, because real batches are not always full: `MEASURED_SHARE` is the mean. Ranks that were not measured on a
published profile have the published throughput of the largest measured one times the formula's ratio of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.features import AGGREGATE_NAMES
from solvers.problem import Problem
from solvers.slots import SlotTables
from twin.engine import EngineConfig
from twin.memory import check_memory
from twin.step_time import step_time_ms

PUBLISHED_BACKBONE_TPS = {"llama-3.1-8b-h100-64gb": 17_814.0, "qwen2.5-7b-h100-64gb": 17_940.0}
PUBLISHED_RANK_TPS = {
    "llama-3.1-8b-h100-64gb": {8: 15_064.0, 16: 14_732.0, 32: 14_496.0},
    "qwen2.5-7b-h100-64gb": {8: 15_633.0, 16: 15_537.0, 32: 15_536.0},
}
MEASURED_SHARE = 0.82
NUM_SLOTS = 8
SHAREGPT_PROMPT_TOKENS, SHAREGPT_OUTPUT_TOKENS = 222.9, 196.6


@dataclass(frozen=True)
class SaturatedStep:
    """A step of a replica that has as many requests as it can run.

    Attributes
    ----------
    num_requests
        Requests in it.
    duration_s
        How long it takes, in seconds.
    served_tps
        Prompt + output tokens per second of the requests that end, by the formula.
    """

    num_requests: float
    duration_s: float
    served_tps: float


def backbone_tps(problem: Problem, gpu_type: int) -> float:
    """Return the tokens/s that a GPU of a type serves without adapters: published, or by the formula."""
    published = PUBLISHED_BACKBONE_TPS.get(problem.profiles[gpu_type].name)
    return published or MEASURED_SHARE * saturated_step(problem, gpu_type, None).served_tps


def rank_tps(problem: Problem, gpu_type: int, rank: int) -> float:
    """Return the tokens/s that a GPU of a type serves with adapters of one rank only: published, or by the formula."""
    published = PUBLISHED_RANK_TPS.get(problem.profiles[gpu_type].name, {})
    if rank in published:
        return published[rank]
    derived = saturated_step(problem, gpu_type, rank).served_tps
    if not published:
        return MEASURED_SHARE * derived
    largest = max(published)
    return published[largest] * derived / saturated_step(problem, gpu_type, largest).served_tps


def saturated_step(problem: Problem, gpu_type: int, rank: int | None) -> SaturatedStep:
    """Return a step of a saturated replica by the formula of the module; `rank` None: without adapters."""
    prompt, output = _mean_lengths(problem)
    slots = 0
    engine: EngineConfig = problem.engine.model_copy(update={"enable_lora": False})
    if rank is not None:
        slots = max(min(NUM_SLOTS, SlotTables(problem).limit(gpu_type, rank)), 1)
        engine = problem.engine.with_slots(slots, max_lora_rank=rank, num_adapters=slots)
    profile = problem.profiles[gpu_type]
    kv_tokens = check_memory(problem.model, problem.gpu_types[gpu_type], engine, profile).kv_tokens
    tokens_per_request = max(prompt + output - 1.0, 1.0) / output
    num_requests = max(
        min(
            engine.max_num_seqs,
            kv_tokens / (prompt + output / 2.0),
            engine.max_num_batched_tokens / tokens_per_request,
        ),
        1.0,
    )
    duration_s = (
        step_time_ms(
            profile.step_time.as_array(),
            num_tokens=max(round(num_requests * tokens_per_request), 1),
            num_requests=round(num_requests),
            context_tokens=round(num_requests * (prompt + output / 2.0)),
            num_adapters=min(slots, round(num_requests)),
            has_prefill=True,
            is_batch_changed=True,
            num_waiting=0,
            num_slots=slots,
            max_lora_rank=rank or 0,
            num_cached_adapters=slots,
        )
        / 1000.0
    )
    return SaturatedStep(num_requests, duration_s, num_requests * (prompt + output) / output / duration_s)


def _mean_lengths(problem: Problem) -> tuple[float, float]:
    """Return the mean prompt and output tokens of a request, at least one output token; ShareGPT's without traffic."""
    sums = problem.aggregates[:, : len(AGGREGATE_NAMES)].sum(axis=0)
    total = dict(zip(AGGREGATE_NAMES, sums.tolist(), strict=True))
    rate = total["sum_rate_rps"]
    if rate <= 0.0:
        return SHAREGPT_PROMPT_TOKENS, SHAREGPT_OUTPUT_TOKENS
    return total["sum_prompt_tps"] / rate, max(total["sum_output_tps"] / rate, 1.0)
