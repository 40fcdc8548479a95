"""Draw a workload that has a measured run's statistics: the tables hold rates and mean lengths, not the requests."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twin.lengths import LengthDistribution
from twin.validation.runs import (
    LEAST_OUTPUT_TOKENS,
    LEAST_PROMPT_TOKENS,
    MOST_OUTPUT_TOKENS,
    MOST_PROMPT_TOKENS,
    MOST_TOTAL_TOKENS,
    Traffic,
)
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

PROMPT_STD_TOKENS = 247.0
OUTPUT_STD_TOKENS = 209.0
# Of the normal scores of prompt and output: long prompts have short answers. A running request then holds about 362 KV
# tokens in the mean, as was measured (440 if they were independent).
LENGTH_CORRELATION = -0.365
# Of the requests that stop early, before the length that they were asked for.
OUTPUT_MEAN_SCALE = 0.993


def regenerate_traffic(traffic: Traffic, *, run_id: str, seed: int, horizon_s: float) -> tuple[Workload, RequestTable]:
    """Draw the adapters and requests of one run.

    Parameters
    ----------
    traffic
        Rates, ranks and mean lengths.
    run_id
        Runs draw independently of each other under one seed.
    seed
        Of arrivals, lengths and the order of the ranks; >= 0.
    horizon_s
        Requests arrive in ``[0, horizon_s)``.

    Returns
    -------
    The adapters, and their requests in order of arrival: Poisson per adapter and lengths as `draw_lengths` has
    them, or as the traffic's own lengths and gaps say.
    """
    if traffic.lengths is not None:
        return _draw_given(traffic, run_id=run_id, seed=seed, horizon_s=horizon_s)
    generator = _generator(run_id, seed)
    prompts, outputs = _prompt_lengths(traffic), _output_lengths(traffic)
    # Read from a table, the ranks are known to be vLLM's.
    ranks = generator.permutation(np.resize(np.array(traffic.ranks, dtype=np.int64), len(traffic.rates_rps)))
    adapters = tuple(
        Adapter.model_validate(
            {
                "name": f"{run_id}/{index}",
                "rank": int(rank),
                "rate_rps": rate_rps,
                "prompt_tokens": prompts,
                "output_tokens": outputs,
            }
        )
        for index, (rate_rps, rank) in enumerate(zip(traffic.rates_rps, ranks, strict=True))
    )
    # All adapters have the same lengths: drawing them together takes a fraction of the time.
    counts = generator.poisson(np.array(traffic.rates_rps) * horizon_s)
    total = int(counts.sum())
    arrival_ns = np.floor(generator.random(total) * horizon_s * NANOSECONDS).astype(np.int64)
    order = np.argsort(arrival_ns, kind="stable")
    prompt_tokens, output_tokens = draw_lengths(total, prompts, outputs, generator)
    owners = np.repeat(np.arange(len(adapters), dtype=np.int32), counts)
    return Workload(adapters), RequestTable(arrival_ns[order], owners[order], prompt_tokens, output_tokens)


def _draw_given(traffic: Traffic, *, run_id: str, seed: int, horizon_s: float) -> tuple[Workload, RequestTable]:
    """Draw traffic whose lengths and gaps are given: one stream of requests, each of an adapter by its rate."""
    assert traffic.lengths is not None
    prompts, outputs = traffic.lengths
    ranks = np.resize(np.array(traffic.ranks, dtype=np.int64), len(traffic.rates_rps)).tolist()
    common = {"prompt_tokens": prompts, "output_tokens": outputs, "gap_cv": traffic.gap_cv}
    stream = Adapter.model_validate(
        {"name": run_id, "rank": ranks[0], "rate_rps": traffic.offered_rps, **common},
    )
    requests = Workload((stream,)).requests(horizon_s=horizon_s, seed=seed)
    shares = np.array(traffic.rates_rps) / traffic.offered_rps
    owners = _generator(run_id, seed).choice(len(shares), len(requests), p=shares).astype(np.int32)
    adapters = tuple(
        Adapter.model_validate({"name": f"{run_id}/{index}", "rank": rank, "rate_rps": rate_rps, **common})
        for index, (rank, rate_rps) in enumerate(zip(ranks, traffic.rates_rps, strict=True))
    )
    return Workload(adapters), replace(requests, adapter=owners)


def _prompt_lengths(traffic: Traffic) -> LengthDistribution:
    return LengthDistribution(
        mean=min(max(traffic.mean_prompt_tokens, LEAST_PROMPT_TOKENS), MOST_PROMPT_TOKENS),
        std=PROMPT_STD_TOKENS,
        min=LEAST_PROMPT_TOKENS,
        max=MOST_PROMPT_TOKENS,
    )


def _output_lengths(traffic: Traffic) -> LengthDistribution:
    mean = min(max(OUTPUT_MEAN_SCALE * traffic.mean_output_tokens, LEAST_OUTPUT_TOKENS), MOST_OUTPUT_TOKENS)
    return LengthDistribution(mean=mean, std=OUTPUT_STD_TOKENS, min=LEAST_OUTPUT_TOKENS, max=MOST_OUTPUT_TOKENS)


def draw_lengths(
    num_requests: int, prompts: LengthDistribution, outputs: LengthDistribution, generator: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw prompt and output lengths with the distributions' mean, spread and limits.

    Both are beta distributed between their limits and joined by a Gaussian copula of `LENGTH_CORRELATION`.

    Returns
    -------
    int32 [num_requests] each; together at most `MOST_TOTAL_TOKENS`.
    """
    scores = generator.standard_normal((2, num_requests))
    scores[1] = LENGTH_CORRELATION * scores[0] + np.sqrt(1.0 - LENGTH_CORRELATION**2) * scores[1]
    lengths = []
    for law, score in ((prompts, scores[0]), (outputs, scores[1])):
        # The longest length goes to the highest score, and so on: marginals stay as drawn.
        drawn = np.empty(num_requests)
        drawn[np.argsort(score)] = np.sort(_draw_beta(num_requests, law, generator))
        lengths.append(np.rint(drawn).astype(np.int32))
    prompt_tokens, output_tokens = lengths
    return prompt_tokens, np.minimum(output_tokens, MOST_TOTAL_TOKENS - prompt_tokens)


def _draw_beta(count: int, law: LengthDistribution, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw float64 [count] of a beta distribution on the law's limits with its mean and standard deviation.

    A spread that no distribution between these limits has is reduced to what one can have.
    """
    assert law.mean is not None
    most = float(law.max) if law.max is not None else float(MOST_TOTAL_TOKENS)
    span = most - law.min
    mean = (law.mean - law.min) / span if span > 0.0 else 0.0
    if not 0.0 < mean < 1.0 or law.std == 0.0:
        return np.full(count, law.mean)
    variance = min((law.std / span) ** 2, 0.95 * mean * (1.0 - mean))
    weight = mean * (1.0 - mean) / variance - 1.0
    return law.min + span * generator.beta(mean * weight, (1.0 - mean) * weight, count)


def _generator(run_id: str, seed: int) -> np.random.Generator:
    digest = hashlib.blake2b(run_id.encode(), digest_size=8).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest, "little")]))
