"""What measurements do not say: kinds of steps without data, and coefficients that the data do not tell apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.calibration.observations import StepObservations, Steps
from twin.profile import StepTimeCoefficients
from twin.step_time import COEFFICIENT_NAMES, LARGE_BATCH_TOKENS, SMALL_BATCH_TOKENS

# Two columns of the design with a larger cosine cannot be told apart by data with a few percent of noise.
MOST_COSINE = 0.995
# A coefficient whose interval starts at 0 and ends at more than this many times its value is not identified.
WIDE_INTERVAL = 1.5
# An interval that starts at less than this share of the value touches 0.
TOUCHES_ZERO = 0.01
USUAL_RANKS = (8, 16, 32)
# Serving runs show a kind of step that has at least this share of their time per output token. The joint fit takes a
# run's mean as known to about 1 %, which is a fifth of that time.
LEAST_RUN_SHARE = 0.05


@dataclass(frozen=True)
class RunCoverage:
    """What the serving runs of a joint fit had in them, as the twin replays them.

    Attributes
    ----------
    time_shares
        By kind of step (see `step_kinds`): its share, 0 to 1, of the time per output token, in the run where it is
        largest.
    slots
        `max_loras` of the runs, each once, sorted; 0 without LoRA.
    max_ranks
        `max_lora_rank` of the runs with slots, each once, sorted.
    """

    time_shares: Mapping[str, float]
    slots: tuple[int, ...]
    max_ranks: tuple[int, ...]

    def as_report(self) -> dict[str, Any]:
        """Return plain values for a profile's provenance."""
        return {
            "time_shares": {name: round(share, 4) for name, share in self.time_shares.items()},
            "max_loras": list(self.slots),
            "max_lora_rank": list(self.max_ranks),
        }

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> RunCoverage:
        """Return what `as_report` gave."""
        return cls(report["time_shares"], tuple(report["max_loras"]), tuple(report["max_lora_rank"]))


@dataclass(frozen=True)
class _Kind:
    """A kind of step: its name after the word "steps", which steps are of it, and what is not known without any."""

    name: str
    occurs: Callable[[Steps], NDArray[np.bool_]]
    warning: str


_WITH_LORA = _Kind("with LoRA", lambda o: o.slots > 0, "No steps with LoRA: every LoRA cost is extrapolated.")
_BLOCKED = _Kind(
    "with a queue while adapters take all slots",
    lambda o: (o.slots > 0) & (o.waiting > 0) & (o.adapters == o.slots),
    "No steps with a queue while adapters take all slots.",
)
_KINDS = (
    _Kind(
        "without LoRA",
        lambda o: o.slots == 0,
        "No steps without LoRA: what LoRA adds is not told apart from the model's own time.",
    ),
    _WITH_LORA,
    _Kind(
        "with a prefill",
        lambda o: o.prefill > 0,
        "No steps with a prefill: large batches and mixed attention are extrapolated.",
    ),
    _Kind("without a prefill", lambda o: o.prefill == 0, "No steps without a prefill: decodes are extrapolated."),
    _Kind(
        "with a prefill beside decodes",
        lambda o: (o.prefill > 0) & (o.context_tokens > 0),
        "No mixed steps (a prefill beside decodes): `mixed_context_token_ms` is not seen.",
    ),
    _Kind(
        f"of more than {LARGE_BATCH_TOKENS} tokens",
        lambda o: o.tokens > LARGE_BATCH_TOKENS,
        f"No steps of more than {LARGE_BATCH_TOKENS} tokens: these run without CUDA graphs, and are extrapolated.",
    ),
)
# These are of interest only where some steps have LoRA.
_LORA_KINDS = (
    _Kind(
        "with an adapter in the batch",
        lambda o: (o.slots > 0) & (o.adapters > 0),
        "No steps with an adapter in the batch: adapter costs are extrapolated.",
    ),
    _Kind(
        "with slots but no adapter",
        lambda o: (o.slots > 0) & (o.adapters == 0),
        "No steps with slots but no adapter: the cost of an active and of an idle replica are not told apart.",
    ),
    _Kind(
        f"with LoRA below {SMALL_BATCH_TOKENS} tokens",
        lambda o: (o.slots > 0) & (o.tokens < SMALL_BATCH_TOKENS),
        f"No LoRA steps below {SMALL_BATCH_TOKENS} tokens, where the kernels split their sums further.",
    ),
    _Kind(
        f"with LoRA of {SMALL_BATCH_TOKENS} tokens or more",
        lambda o: (o.slots > 0) & (o.tokens >= SMALL_BATCH_TOKENS),
        f"No LoRA steps of {SMALL_BATCH_TOKENS} tokens or more.",
    ),
    _BLOCKED,
)


def step_kinds(steps: Steps) -> dict[str, NDArray[np.bool_]]:
    """Return, by the name of each kind of step that a calibration should cover, which steps are of it, bool [K]."""
    return {kind.name: kind.occurs(steps) for kind in (*_KINDS, *_LORA_KINDS)}


def coverage_warnings(
    observations: StepObservations, *, fixed: Collection[str] = (), runs: RunCoverage | None = None
) -> tuple[str, ...]:
    """Return one sentence for each kind of step without data, and one about those that only serving runs have.

    Parameters
    ----------
    fixed
        Coefficients that were not fitted: without that of the queue, nothing is said about the queue.
    runs
        What serving runs add; ``None``: none, or not known.
    """
    steps = observations.steps
    if len(steps) == 0 and runs is None:
        return ("No step was measured: all step times are extrapolated.",)
    seen_in_runs = (
        () if runs is None else [name for name, share in runs.time_shares.items() if share >= LEAST_RUN_SHARE]
    )
    has_lora = steps.slots > 0
    is_lora_seen = has_lora.any() or _WITH_LORA.name in seen_in_runs
    kinds = [
        kind
        for kind in (*_KINDS, *(_LORA_KINDS if is_lora_seen else ()))
        if not (kind is _BLOCKED and "blocked_waiting_ms" in fixed)
    ]
    missing = [kind for kind in kinds if not kind.occurs(steps).any()]
    warnings = [kind.warning for kind in missing if kind.name not in seen_in_runs]
    if len(steps) == 0:
        warnings.insert(0, "No step was measured: step times rest on the mean times per token of serving runs.")
    means = [kind.name for kind in missing if kind.name in seen_in_runs]
    if means:
        warnings.append(f"Only serving runs, by their mean time per token, show steps {'; '.join(means)}.")
    if is_lora_seen:
        slots, ranks = set(steps.slots[has_lora].tolist()), set(steps.max_rank[has_lora].tolist())
        if runs is not None:
            slots, ranks = slots | ({*runs.slots} - {0}), ranks | {*runs.max_ranks}
        warnings += _lora_range_warnings(sorted(slots), sorted(ranks))
    return tuple(warnings)


def identification_warnings(
    rows: NDArray[np.float64],
    coefficients: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
) -> tuple[str, ...]:
    """Return one sentence per finding about fitted coefficients (those in `bounds`) that the data do not identify.

    Parameters
    ----------
    rows
        float64 [rows, len(COEFFICIENT_NAMES)], what was fitted: `twin.calibration.step_fit.relative_design` of steps,
        or the rows of a joint fit.
    bounds
        95 % intervals by coefficient, in ms.
    """
    if len(rows) == 0:
        return ()
    column = {name: rows[:, index] for index, name in enumerate(COEFFICIENT_NAMES) if name in bounds}
    unseen = [name for name, values in column.items() if not values.any()]
    warnings = [f"No step has what these coefficients stand for: {', '.join(unseen)}."] if unseen else []
    seen = {name: values / np.linalg.norm(values) for name, values in column.items() if name not in unseen}
    names = list(seen)
    warnings += [
        f"The data hardly tell `{one}` and `{other}` apart (cosine {cosine:.3f}): believe their sum, not each."
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        for cosine in (float(seen[one] @ seen[other]),)
        if cosine > MOST_COSINE
    ]
    for name in column:
        low, high = bounds[name]
        value = coefficients[name]
        if name not in unseen and low <= TOUCHES_ZERO * value and high > WIDE_INTERVAL * value and high > 0:
            meaning = str(StepTimeCoefficients.model_fields[name].description).partition(":")[0]
            interval = f"its 95 % interval is {low:.3g} to {high:.3g} ms"
            warnings.append(f"`{name}` ({meaning}) may as well be 0: {interval}.")
    return tuple(warnings)


def _lora_range_warnings(slots: list[int], ranks: list[int]) -> list[str]:
    warnings = []
    if len(slots) == 1:
        warnings.append(f"One number of slots only ({slots[0]}): how the cost grows with slots is extrapolated.")
    missing = [rank for rank in USUAL_RANKS if rank not in ranks]
    if missing:
        measured, words = (", ".join(str(rank) for rank in some) for some in (ranks, missing))
        warnings.append(f"Slots of rank {words} are extrapolated from those of rank {measured}.")
    return warnings
