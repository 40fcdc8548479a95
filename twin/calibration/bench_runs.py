"""Turn benchmarks' results of an open loop into serving runs, as a joint fit replays them in the twin."""

from __future__ import annotations

import math
import statistics

from twin.calibration.bench_files import BenchResult
from twin.calibration.serving_settings import ServingSettings
from twin.lengths import LengthDistribution
from twin.validation.quantities import Quantities
from twin.validation.runs import MeasuredRun, Traffic

# A run that took longer than this many times its arrivals is mostly its end: the load fell while it drained.
LONGEST_DRAIN = 1.3
# Of an adapter (twin/workload.py).
MOST_GAP_CV = 20.0

EVEN_ADAPTERS = "Requests of a benchmark choose among its adapters by the shares given, whatever their length."
CONSTANT_LENGTHS = "All prompts and all answers of a benchmark are as long as their mean: each length is not known."
SLOT_RANKS = "Adapters have the rank of the slots: their own ranks are not given."
DRAIN = "A benchmark's time per output token is that of its load while requests arrive."


def serving_run(
    result: BenchResult, settings: ServingSettings, *, run_id: str, model: str
) -> tuple[MeasuredRun, tuple[str, ...]] | str:
    """Return a run with what it assumes, or why the result gives none.

    Parameters
    ----------
    settings
        With `max_num_seqs` and `max_num_batched_tokens`, and with LoRA with slots and adapters.
    model
        As `twin.hardware.load_model` takes it.
    """
    if not math.isfinite(result.request_rate):
        return "all requests sent at once: how many ran together is not known without --save-detailed"
    if result.ramp_up_strategy is not None:
        return "a rate that changes (--ramp-up-strategy): not known without --save-detailed"
    if not result.mean_tpot_ms:
        return "no time per output token"
    arrivals_s = (result.completed + result.failed) / result.request_rate
    if result.duration > LONGEST_DRAIN * arrivals_s:
        return f"it ran more than {LONGEST_DRAIN:g} times as long as requests arrived, with another load in the end"
    lengths, assumed = _lengths(result)
    shares = settings.shares or (1.0,)
    ranks = settings.ranks
    if not ranks:
        ranks = (settings.engine.max_lora_rank,)
        if settings.engine.num_slots:
            assumed.append(SLOT_RANKS)
    tokens = result.total_input_tokens + result.total_output_tokens
    run = MeasuredRun(
        run_id=run_id,
        model=model,
        status="ok",
        engine=settings.engine,
        num_adapters=len(shares),
        traffic=Traffic(
            rates_rps=tuple(share * result.request_rate for share in shares),
            ranks=ranks,
            mean_prompt_tokens=result.total_input_tokens / result.completed,
            mean_output_tokens=result.total_output_tokens / result.completed,
            lengths=lengths,
            gap_cv=min(1.0 / math.sqrt(result.burstiness), MOST_GAP_CV),
        ),
        total_time_s=arrivals_s,
        split="",
        is_informative=False,
        has_client_collapsed=False,
        measured=Quantities(tpot_mean_ms=result.mean_tpot_ms, tok_per_s=tokens / result.duration),
        is_starved=None,
        offered_tps=None,
        is_polled=False,
    )
    return run, (*assumed, EVEN_ADAPTERS, DRAIN)


def _lengths(result: BenchResult) -> tuple[tuple[LengthDistribution, LengthDistribution], list[str]]:
    """Return the distributions of prompts and answers of the requests that completed."""
    answered = [
        (prompt, output) for prompt, output in zip(result.input_lens, result.output_lens, strict=False) if output > 0
    ]
    if answered:
        prompts, outputs = zip(*answered, strict=True)
        return (_distribution(prompts), _distribution(outputs)), []
    means = (result.total_input_tokens / result.completed, result.total_output_tokens / result.completed)
    prompt, output = (LengthDistribution(mean=max(mean, 1.0)) for mean in means)
    return (prompt, output), [CONSTANT_LENGTHS]


def _distribution(lengths: tuple[int, ...]) -> LengthDistribution:
    if min(lengths) == max(lengths):
        return LengthDistribution(mean=max(statistics.fmean(lengths), 1.0))
    return LengthDistribution.from_samples([max(length, 1) for length in lengths])
