"""What is odd about a table of runs: measured elsewhere than the profile, not measured at all, or replayed in part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from twin.profile import PerformanceProfile
from twin.validation.quantities import SCORED_QUANTITIES
from twin.validation.runs import VLLM_VERSION, MeasuredRun, RunTable

# Names of memory sizes, as in "A100-SXM4-80GB".
MEMORY_WORD = re.compile(r"\d+gi?b")


def origin_warnings(table: RunTable, gpus: Mapping[str, str]) -> tuple[str, ...]:
    """Return one sentence for rows of other models that were left out, other GPUs, and other versions of vLLM.

    Parameters
    ----------
    gpus
        By model of the runs, the GPU of its profile.
    """
    warnings = []
    if table.other_models:
        names = _counted(table.other_models)
        warnings.append(f"{len(table.other_models)} rows of {table.file} are of other models, and left out: {names}.")
    others = [run for run in table.runs if run.gpu and not names_gpu(run.gpu, gpus[run.model])]
    if others:
        warnings.append(
            f"`gpu` of {len(others)} runs of {table.file} is another than the profile's "
            f"({', '.join(sorted({gpus[run.model] for run in others}))}): {_counted([run.gpu for run in others])}."
        )
    versions = [run.vllm for run in table.runs if run.vllm and VLLM_VERSION not in run.vllm]
    if versions:
        warnings.append(
            f"`vllm` of {len(versions)} runs of {table.file} is another version than {VLLM_VERSION}, whose scheduler "
            f"replays them: {_counted(versions)}."
        )
    return tuple(warnings)


def replay_warnings(runs: Sequence[MeasuredRun], horizon_s: float | None) -> tuple[str, ...]:
    """Return one sentence for measured values that are missing, and for replays that are shorter than their runs."""
    served = [run for run in runs if run.status == "ok"]
    missing = {name: sum(run.measured.value(name) is None for run in served) for name in SCORED_QUANTITIES}
    missing |= {"starved": sum(run.is_starved is None for run in served)}
    warnings = []
    if any(missing.values()):
        words = ", ".join(f"`{name}` in {count}" for name, count in missing.items() if count)
        warnings.append(f"Of {len(served)} runs that served, some are not scored by what is empty: {words}.")
    longer = [run.total_time_s for run in runs if horizon_s is not None and run.total_time_s > horizon_s]
    if longer:
        warnings.append(
            f"{len(longer)} runs are longer (up to {max(longer):g} s) than the {horizon_s:g} s that are simulated: "
            "whole runs are compared with their start, in which queues are shorter."
        )
    return tuple(warnings)


def gpus_of(profiles: Mapping[str, PerformanceProfile]) -> dict[str, str]:
    """Return the GPU of each model's profile."""
    return {model: profile.gpu for model, profile in profiles.items()}


def names_gpu(text: str, gpu: str) -> bool:
    """Return whether free text may name a profile's GPU: its first word is there, and no other size of memory.

    "NVIDIA A100-SXM4-80GB" may be "a100-80gb", and is not "a100-40gb" or "h100-80gb".
    """
    words, wanted = ([*re.findall(r"[a-z0-9]+", name.lower())] for name in (text, gpu))
    sizes, wanted_sizes = ({word for word in some if MEMORY_WORD.fullmatch(word)} for some in (words, wanted))
    is_other_size = bool(sizes) and bool(wanted_sizes) and not sizes & wanted_sizes
    return all(word in words for word in wanted[:1]) and not is_other_size


def _counted(names: Sequence[str]) -> str:
    """Return each name once, with how often it stands there."""
    return ", ".join(f"{name!r} ({count})" for name, count in sorted(Counter(names).items()))
