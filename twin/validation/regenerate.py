"""Draw a workload that has a measured run's statistics: the tables hold rates and mean lengths, not the requests."""

from __future__ import annotations

import hashlib

import numpy as np

from twin.lengths import LengthDistribution
from twin.validation.runs import Traffic
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

PROMPT_STD_TOKENS = 247.0
OUTPUT_STD_TOKENS = 209.0
LEAST_PROMPT_TOKENS = 4
MOST_PROMPT_TOKENS = 1024
MOST_TOTAL_TOKENS = 2048
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
    The adapters, and their requests in order of arrival: Poisson per adapter, prompt lengths as `_prompt_lengths`,
    outputs as `_output_lengths` and cut so that a request has `MOST_TOTAL_TOKENS` at most.
    """
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
    prompt_tokens = prompts.sample(total, generator)
    output_tokens = np.minimum(outputs.sample(total, generator), MOST_TOTAL_TOKENS - prompt_tokens)
    owners = np.repeat(np.arange(len(adapters), dtype=np.int32), counts)
    return Workload(adapters), RequestTable(arrival_ns[order], owners[order], prompt_tokens, output_tokens)


def _prompt_lengths(traffic: Traffic) -> LengthDistribution:
    return LengthDistribution(
        mean=min(max(traffic.mean_prompt_tokens, LEAST_PROMPT_TOKENS), MOST_PROMPT_TOKENS),
        std=PROMPT_STD_TOKENS,
        min=LEAST_PROMPT_TOKENS,
        max=MOST_PROMPT_TOKENS,
    )


def _output_lengths(traffic: Traffic) -> LengthDistribution:
    most = MOST_TOTAL_TOKENS - LEAST_PROMPT_TOKENS
    mean = min(max(OUTPUT_MEAN_SCALE * traffic.mean_output_tokens, 1.0), most)
    return LengthDistribution(mean=mean, std=OUTPUT_STD_TOKENS, min=1, max=most)


def _generator(run_id: str, seed: int) -> np.random.Generator:
    digest = hashlib.blake2b(run_id.encode(), digest_size=8).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest, "little")]))
