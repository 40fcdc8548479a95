r"""How few GPUs can be enough whatever the placement: the work bound.

Model: mean rates. In the long run every replica completes at least the share ``1 - starvation_tolerance`` of each
adapter's offered tokens (this is what "no replica and no adapter starves" demands), with the adapters' mean lengths,
because the scheduler does not know how long an output will be. Chance in a finite window is not part of the model.

What a completed request of p prompt and o output tokens needs, wherever it is served (vLLM's scheduling rules,
twin/semantics.md):

- p + o - 1 scheduled tokens: its prompt, whose last step samples the first output token, then one token per decode;
- at least o request-steps: one for the prompt (more when it is chunked) and o - 1 decodes;
- in decode j = 1 .. o - 1 it has p + j - 1 computed tokens, which are read and which occupy KV cache:
  (o - 1) * p + (o - 1) * (o - 2) / 2 token-steps.

What a step takes at least (``twin.step_time``), with T tokens, n requests and ctx computed tokens in it:

    base + [T > 512] * (large + beyond * (T - 512)) + token * T + request * n + context * ctx

`base` has the terms that occur in every step, with one adapter. `token` has the LoRA cost per token and the slots'
tiles (at least T / 64 and T / 32 of them) at the fewest slots (one, or what the problem fixes) and at the adapter's own
rank, because no GPU that serves it has a smaller `max_lora_rank`. Every term that is left out is >= 0: padding, adapter
loads, preemptions, further adapters in a step, what a changed batch or a queue costs.

How many steps per second all GPUs together need at least: a step has at most B = `max_num_batched_tokens` tokens,
at most `max_num_seqs` requests, and at most the largest KV capacity of computed tokens. With t tokens/s, r
request-steps/s and c token-steps/s in total, the sum of base + [T > 512] * (large + beyond * (T - 512)) per second is
at least each of

    t * min(base / min(512, B), (base + large + beyond * max(0, B - 512)) / B),
    r * base / max_num_seqs,    c * base / kv_tokens

A GPU has one second per second, so with w the linear work

    num_gpus >= (1 - starvation_tolerance) * (w + the largest of the three)

The same holds for the adapters on the GPUs of one type with that type's coefficients, whichever of the three is taken.
With each adapter where its work costs least, no fleet costs less than the sum of that.

Where `max_num_seqs` may be chosen for each GPU, the second of the three has the largest value that may be chosen, and
the third the KV capacity under the smallest: no value that is chosen needs fewer steps.

For a fleet of several GPU types each coefficient is the smallest, and the KV capacity the largest, of all types; the
bound is then valid for every mixture. It does not ask where an adapter's requests are served, only that they are: it
holds for any number of replicas and any shares, too, and is computed of the adapters before they are divided. (What a
replica costs once, slots and memory, is no part of it.)

Rates are those of the quietest phase. Prompt and output lengths of a drawn workload are independent; those of a
replayed trace are taken request by request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.problem import Problem
from solvers.result import Bound
from solvers.slots import SlotTables
from twin.profile import PerformanceProfile
from twin.step_time import (
    EXPAND_TILE_TOKENS,
    LARGE_BATCH_TOKENS,
    LARGE_SPLIT_SHARE,
    SHRINK_TILE_RANKS,
    SHRINK_TILE_TOKENS,
)
from twin.workload import RequestTable, Workload

# Relative rounding error that the sum may have; subtracted before rounding up.
ROUNDING = 1e-9


@dataclass(frozen=True)
class UnavoidableCosts:
    """Smallest possible costs on one GPU type, in seconds; see the module's derivation.

    Attributes
    ----------
    base_s, large_s, beyond_s
        Per step; per step beyond 512 tokens; per token beyond 512.
    token_s, request_s
        float64 [A] (of the unmerged problem), per scheduled token and per request-step of each adapter.
    context_token_s
        Per KV token read.
    kv_tokens
        Largest KV capacity.
    """

    base_s: float
    large_s: float
    beyond_s: float
    token_s: NDArray[np.float64]
    request_s: NDArray[np.float64]
    context_token_s: float
    kv_tokens: int


# What a step has at most so many of: tokens (`max_num_batched_tokens`), requests (`max_num_seqs`), KV tokens.
StepLimit = Literal["tokens", "sequences", "kv cache"]


@dataclass(frozen=True)
class StepDemand:
    """Why steps are needed at all: what they must hold per second, and what one holds at most.

    Attributes
    ----------
    needed_ps
        Tokens, request-steps or KV token-steps of all adapters per second.
    per_step
        How many of them a step has at most.
    work
        GPU-seconds per second for the fixed costs of so many steps, by adapter, float64 [A].
    """

    limit: StepLimit
    needed_ps: float
    per_step: int
    work: NDArray[np.float64]


@dataclass(frozen=True)
class WorkTerms:
    """Where unavoidable work comes from: GPU-seconds per second of each adapter, float64 [A].

    Attributes
    ----------
    tokens, requests, context
        In proportion to the scheduled tokens, to the request-steps, and to the KV tokens read.
    steps
        What needs steps, with their fixed costs; only the largest counts.
    """

    tokens: NDArray[np.float64]
    requests: NDArray[np.float64]
    context: NDArray[np.float64]
    steps: tuple[StepDemand, ...]

    @property
    def binding(self) -> StepDemand:
        """What needs the most steps."""
        return max(self.steps, key=lambda step: float(step.work.sum()))

    @property
    def total(self) -> NDArray[np.float64]:
        """All of it by adapter, float64 [A]."""
        return self.tokens + self.requests + self.context + self.binding.work

    def scaled(self, share: float) -> WorkTerms:
        """Return this share of the work, and of what is needed for it."""
        steps = tuple(replace(step, needed_ps=step.needed_ps * share, work=step.work * share) for step in self.steps)
        return WorkTerms(self.tokens * share, self.requests * share, self.context * share, steps)


@dataclass(frozen=True)
class _Demand:
    """What each adapter asks of the fleet per second: float64 [A]."""

    tokens_ps: NDArray[np.float64]
    request_steps_ps: NDArray[np.float64]
    token_steps_ps: NDArray[np.float64]


def work_bound(problem: Problem) -> Bound:
    """Return the fewest GPUs, at least 1, and the least cost of the adapters' unavoidable work; see the module.

    Of the scenarios of a problem, that of the most demanding one under which every GPU must do.
    """
    problem = _most_demanding(problem.told)
    types = [unavoidable_costs(problem, index) for index in range(len(problem.gpu_types))]
    num_gpus = max(1, math.ceil(float(_least_work(problem, types).total.sum()) * (1.0 - ROUNDING)))
    prices = [gpu_type.cost_per_hour for gpu_type in problem.gpu_types]
    costs = [price * adapter_work(problem, own) for price, own in zip(prices, types, strict=True)]
    least = _needed_share(problem) * float(np.minimum.reduce(costs).sum()) * (1.0 - ROUNDING)
    return Bound(value=num_gpus, proof="work", model="twin", cost_per_hour=max(least, num_gpus * min(prices)))


def work_gpus(problem: Problem) -> float:
    """Return the bound before it is rounded up: GPU-seconds of unavoidable work per second."""
    return float(least_work(problem).total.sum())


def least_work(problem: Problem) -> WorkTerms:
    """Return what the work bound adds up: work that no mixture of the GPU types avoids."""
    problem = _most_demanding(problem.told)
    return _least_work(problem, [unavoidable_costs(problem, index) for index in range(len(problem.gpu_types))])


def _most_demanding(problem: Problem) -> Problem:
    """Return an unmerged problem with the rates of the scenario with the most work, of those that no GPU may miss.

    With no rates at all where there is no such scenario; itself where there are no scenarios.
    """
    if problem.scenarios is None:
        return problem
    binding = [problem.in_scenario(index) for index in problem.scenarios.binding]
    silent = [adapter.model_copy(update={"rate_rps": 0.0}) for adapter in problem.adapters]
    nothing = replace(problem, workload=Workload(tuple(silent)), scenarios=None)
    return max([nothing, *binding], key=work_gpus)


def _least_work(problem: Problem, types: list[UnavoidableCosts]) -> WorkTerms:
    return work_terms(problem, _cheapest(types)).scaled(_needed_share(problem))


def _needed_share(problem: Problem) -> float:
    """Return the share of the full rates that must be served in the quietest phase."""
    return (1.0 - problem.limits.starvation_tolerance) * _quietest_scale(problem)


def adapter_work(problem: Problem, costs: UnavoidableCosts) -> NDArray[np.float64]:
    """Return each adapter's GPU-seconds per second at its full rate, float64 [A]; the sum is that of the derivation.

    The shared cost of steps is split by what makes the steps necessary: tokens, request-steps, or KV token-steps. An
    adapter that stands for several has the sum of their work.
    """
    if problem.merging is not None:
        return problem.merging.sums(adapter_work(problem.merging.origin, costs))
    return work_terms(problem, costs).total


def work_terms(problem: Problem, costs: UnavoidableCosts) -> WorkTerms:
    """Return where the work of each adapter of the unmerged problem comes from, at its full rate."""
    problem = problem.unmerged
    demand = _demand(problem)
    budget = problem.engine.max_num_batched_tokens
    sequences = max(problem.max_num_seqs_options, default=problem.engine.max_num_seqs)
    largest_s = costs.base_s + costs.large_s + costs.beyond_s * max(0, budget - LARGE_BATCH_TOKENS)
    per_token_s = min(costs.base_s / min(LARGE_BATCH_TOKENS, budget), largest_s / budget)
    needs: tuple[tuple[StepLimit, NDArray[np.float64], int, float], ...] = (
        ("tokens", demand.tokens_ps, budget, per_token_s),
        ("sequences", demand.request_steps_ps, sequences, costs.base_s / sequences),
        ("kv cache", demand.token_steps_ps, costs.kv_tokens, costs.base_s / costs.kv_tokens),
    )
    return WorkTerms(
        tokens=demand.tokens_ps * costs.token_s,
        requests=demand.request_steps_ps * costs.request_s,
        context=demand.token_steps_ps * costs.context_token_s,
        steps=tuple(
            StepDemand(limit, float(needed.sum()), per_step, needed * each_s)
            for limit, needed, per_step, each_s in needs
        ),
    )


def unavoidable_costs(problem: Problem, gpu_type: int) -> UnavoidableCosts:
    """Return the smallest possible costs on a GPU type; of each adapter of the unmerged problem."""
    problem = problem.unmerged
    terms = problem.profiles[gpu_type].step_time
    grid_slots = (problem.fixed_max_loras or 1) + 1
    ranks = np.maximum(problem.ranks, problem.fixed_max_lora_rank or 0)
    rank_tiles = np.ceil(ranks / SHRINK_TILE_RANKS) * LARGE_SPLIT_SHARE
    base_ms = (
        terms.base_ms
        + terms.lora_base_ms
        + terms.lora_active_ms
        + terms.adapter_ms
        + terms.adapter_shrink_ms * float(rank_tiles.min())
        + terms.cached_adapter_ms
    )
    tile_ms = grid_slots * (
        terms.expand_tile_ms / EXPAND_TILE_TOKENS + terms.shrink_tile_ms * rank_tiles / SHRINK_TILE_TOKENS
    )
    token_ms = terms.token_ms + terms.lora_token_ms + tile_ms
    return UnavoidableCosts(
        base_s=base_ms / 1000.0,
        large_s=terms.large_batch_ms / 1000.0,
        beyond_s=terms.large_batch_token_ms / 1000.0,
        token_s=token_ms / 1000.0,
        request_s=np.full(len(ranks), (terms.request_ms + terms.adapter_request_ms) / 1000.0),
        context_token_s=terms.context_token_ms / 1000.0,
        kv_tokens=_largest_capacity(problem, gpu_type, problem.profiles[gpu_type]),
    )


def _largest_capacity(problem: Problem, gpu_type: int, profile: PerformanceProfile) -> int:
    """Return the largest KV capacity of any slots: by formula that of the fewest, unless a measured one is larger.

    Where `max_num_seqs` may be chosen, it is also that of the smallest, which the sampler needs least memory for.
    """
    if problem.max_num_seqs_options:
        problem = problem.with_max_num_seqs(problem.max_num_seqs_options[0])
    tables = SlotTables(problem)
    fewest = tables.kv_tokens(gpu_type, problem.fixed_max_loras or 1, tables.rank_of_slots(int(problem.ranks.min())))
    measured = [entry.kv_tokens or 0 for entry in profile.memory.measured]
    return max(fewest, *measured, 1)


def _cheapest(types: list[UnavoidableCosts]) -> UnavoidableCosts:
    """Return costs that no GPU type undercuts."""
    return UnavoidableCosts(
        base_s=min(costs.base_s for costs in types),
        large_s=min(costs.large_s for costs in types),
        beyond_s=min(costs.beyond_s for costs in types),
        token_s=np.minimum.reduce([costs.token_s for costs in types]),
        request_s=np.minimum.reduce([costs.request_s for costs in types]),
        context_token_s=min(costs.context_token_s for costs in types),
        kv_tokens=max(costs.kv_tokens for costs in types),
    )


def _quietest_scale(problem: Problem) -> float:
    """Return the smallest rate scale of any phase; 1 without phases, and at most 1 while no phase starts at 0."""
    phases = problem.workload.phases
    scales = [phase.rate_scale for phase in phases]
    if not phases or phases[0].start_s > 0:
        scales.append(1.0)
    return min(scales)


def _demand(problem: Problem) -> _Demand:
    def column(name: str) -> NDArray[np.float64]:
        return problem.aggregates[:, AGGREGATE_NAMES.index(name)]

    rate, prompt_tps, output_tps = column("sum_rate_rps"), column("sum_prompt_tps"), column("sum_output_tps")
    if problem.workload.trace is not None:
        token_steps = rate * _replayed_token_steps(problem.workload.trace, len(problem.adapters))
    else:
        # rate * (E[p] E[o] + E[o^2] / 2), from which (o - 1) * p + (o - 1) * (o - 2) / 2 follows.
        token_steps = column("sum_kv_token_steps") - prompt_tps - 1.5 * output_tps + rate
    return _Demand(
        tokens_ps=np.maximum(prompt_tps + output_tps - rate, 0.0),
        request_steps_ps=output_tps,
        token_steps_ps=np.maximum(token_steps, 0.0),
    )


def _replayed_token_steps(trace: RequestTable, num_adapters: int) -> NDArray[np.float64]:
    """Return the mean KV token-steps of each adapter's own requests, float64 [A]; 0 without requests."""
    mine = trace.adapter >= 0
    prompt = trace.prompt_tokens[mine].astype(np.float64)
    output = trace.output_tokens[mine].astype(np.float64)
    steps = (output - 1.0) * prompt + 0.5 * (output - 1.0) * (output - 2.0)
    counts = np.bincount(trace.adapter[mine], minlength=num_adapters)
    return np.bincount(trace.adapter[mine], weights=steps, minlength=num_adapters) / np.maximum(counts, 1)
