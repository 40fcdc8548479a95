"""Doubts about what was measured: times in another unit, of another machine, or that no step time of this form gives.

A fit takes any numbers. What is compared here is known without them: how large step times, loads, starts and KV
capacities can be (the prior and its bands), and how well the form fits where it was measured with care.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from twin.calibration.datasheets import DATASHEETS, datasheet_of
from twin.calibration.described_fit import ProfileFit
from twin.calibration.prior import DEVIATIONS_PER_BAND, LOAD_BAND, coefficient_prior, step_time_band
from twin.calibration.step_fit import predicted_ms
from twin.hardware import ModelArchitecture
from twin.memory import GIB
from twin.profile import PerformanceProfile
from twin.step_time import COEFFICIENT_NAMES

# Both shipped profiles err by 1.8 % on all of their measurements, and by 6.6 % in the worst regime
# (docs/twin-model.md); single steps are off by about 3 %.
MOST_USUAL_ERROR_PERCENT = 10.0
# Of serving runs, measured / predicted by a fit to steps alone: for the shipped Llama profile's runs 1.09 in the mean
# (docs/twin-model.md), more than double of which is no noise.
RUNS_RANGE = (0.8, 1.25)
# A coefficient this many deviations above its prior is three times as far away as the end of its band.
FAR_DEVIATIONS = 3.0 * DEVIATIONS_PER_BAND
# Loads depend on the host's disk and memory more than on the GPU: only what is beyond the band of the band is named.
LOAD_RANGE = (1.0 / LOAD_BAND**2, LOAD_BAND**2)
# What shipped profiles leave unexplained is 1.1 to 1.3 GiB; half or twice the computed capacity is another unit, model
# or GPU.
CAPACITY_RANGE = (0.5, 2.0)
BLOCK_TOKENS = 16
# Of the datasheet's memory: an engine sees no more, and far less where a GPU is divided.
MEMORY_RANGE = (0.5, 1.05)
# Of the prior's start-up: a few slots, as most servers have.
USUAL_SLOTS = 16
# A unit is named where the ratio is its factor times or over this: the prior itself may be off by about as much.
UNIT_TOLERANCE = 5.0
# By how many times a number in another unit is too large.
MILLISECOND_FACTORS = {1e-3: "seconds", 1e3: "microseconds", 1e6: "nanoseconds"}
SECOND_FACTORS = {1 / 60: "minutes", 1e3: "milliseconds", 1e6: "microseconds"}


def plausibility_warnings(fit: ProfileFit, model: ModelArchitecture) -> tuple[str, ...]:
    """Return one sentence per doubt about the measurements behind a fit; without a prior, its errors alone are judged.

    Parameters
    ----------
    fit
        With the prior that it was drawn towards.
    model
        What was measured.
    """
    warnings = [
        *_memory_warnings(fit.profile),
        *_error_warnings(fit.profile.provenance.get("step_time", {})),
        *_run_warnings(fit),
    ]
    if fit.prior is None:
        return tuple(warnings)
    return (
        *_step_scale_warnings(fit, fit.prior),
        *warnings,
        *_coefficient_warnings(fit, fit.prior),
        *_load_warnings(fit.profile, fit.prior),
        *_startup_warnings(fit.profile, fit.prior),
        *_capacity_warnings(fit.profile, fit.prior, model),
    )


def scale_warnings(
    subject: str, ratio: float, *, usual: tuple[float, float], units: Mapping[float, str], column: str, otherwise: str
) -> list[str]:
    """Return a sentence if `ratio`, measured / expected, is out of its `usual` range.

    Parameters
    ----------
    subject
        What was measured, plural.
    units
        Units that the column may be in by mistake, by how many times larger its numbers then are.
    column
        Where the numbers stand.
    otherwise
        What to check where no unit explains the ratio.
    """
    if usual[0] <= ratio <= usual[1]:
        return []
    nearest = min(units, key=lambda factor: abs(np.log(ratio / factor)))
    is_unit = 1.0 / UNIT_TOLERANCE <= ratio / nearest <= UNIT_TOLERANCE
    question = f"is `{column}` in {units[nearest]}?" if is_unit else f"check {otherwise}."
    low, high = usual
    return [f"{subject} are {ratio:.2g} times what is expected ({low:.2g} to {high:.2g} is usual): {question}"]


def _memory_warnings(profile: PerformanceProfile) -> list[str]:
    if profile.gpu not in DATASHEETS:
        return []
    expected_gib = datasheet_of(profile.gpu).memory_gib
    low, high = (share * expected_gib for share in MEMORY_RANGE)
    if low <= profile.gpu_memory_gib <= high:
        return []
    given = (
        f"An engine on {profile.gpu} usually sees {expected_gib:g} GiB, and {profile.gpu_memory_gib:g} GiB were given"
    )
    return [f"{given}: is --gpu-memory-gib in GiB, and of this GPU?"]


def _step_scale_warnings(fit: ProfileFit, prior: PerformanceProfile) -> list[str]:
    if len(fit.observations.time_ms) == 0:
        return []
    expected_ms = predicted_ms(fit.observations, prior.step_time.model_dump())
    return scale_warnings(
        "Step times",
        float(np.median(fit.observations.time_ms / expected_ms)),
        usual=step_time_band(prior),
        units=MILLISECOND_FACTORS,
        column="time_ms",
        otherwise="--model and --gpu, and the units of all columns",
    )


def _error_warnings(steps: Mapping[str, Any]) -> list[str]:
    errors: dict[str, dict[str, float]] = steps.get("in_sample_percent", {})
    large = {name: row["mape"] for name, row in errors.items() if row["mape"] > MOST_USUAL_ERROR_PERCENT}
    if not large:
        return []
    words = ", ".join(f"{name} {mape:.0f} %" for name, mape in sorted(large.items(), key=lambda item: -item[1]))
    question = "Do all rows have the same units, and are they of one model on one GPU?"
    return [f"The fit errs by far more than the usual 2 to 7 %: {words}. {question}"]


def _run_warnings(fit: ProfileFit) -> list[str]:
    """Return what does not agree between the serving runs and the steps, or the runs and the joint fit."""
    steps: dict[str, Any] = fit.profile.provenance.get("step_time", {})
    if "serving_runs" not in steps:
        return []
    runs: dict[str, Any] = steps["serving_runs"]
    usual = RUNS_RANGE
    slots = fit.observations.steps.slots
    has_lora_runs = runs["coverage"]["max_loras"] != [0]
    if fit.prior is not None and not (slots > 0 if has_lora_runs else slots >= 0).any():
        # What the steps do not show is the prior's in a fit to them.
        usual = step_time_band(fit.prior)
    warnings = scale_warnings(
        "Times per output token of the serving runs",
        runs["steps_alone"]["measured_over_predicted"],
        usual=usual,
        units=MILLISECOND_FACTORS,
        column="tpot_mean_ms",
        otherwise="that steps and runs are of one server, and --gpu",
    )
    error = runs["tpot_median_percent"]
    if error > MOST_USUAL_ERROR_PERCENT:
        warnings.append(
            f"The fit errs by {error:.0f} % on the runs' time per output token (median; usual is 2 %): no coefficients "
            "give both the steps and the runs."
        )
    return warnings


def _coefficient_warnings(fit: ProfileFit, prior: PerformanceProfile) -> list[str]:
    steps: dict[str, Any] = fit.profile.provenance.get("step_time", {})
    believed = coefficient_prior(prior)
    far = []
    for name, value, deviation in zip(COEFFICIENT_NAMES, believed.values, believed.deviations, strict=True):
        if steps.get("origins", {}).get(name) not in {"fitted", "joint"}:
            continue
        fitted, low = getattr(fit.profile.step_time, name), steps["intervals_95"][name][0]
        most = value + DEVIATIONS_PER_BAND * deviation
        if fitted > value + FAR_DEVIATIONS * deviation and low > most:
            far.append(f"`{name}` {fitted:.3g} ms (at most {most:.3g})")
    if not far:
        return []
    advice = "Check the units of the columns, --model and --gpu."
    return [f"Far above what is expected of {prior.gpu}: {', '.join(far)}. {advice}"]


def _load_warnings(profile: PerformanceProfile, prior: PerformanceProfile) -> list[str]:
    estimated: dict[str, list[int]] = profile.provenance.get("load_times", {}).get("ranks_from_prior", {})
    warnings = []
    for index, (kind, ranks) in enumerate(estimated.items()):
        pairs = [
            ((entry.cpu_to_gpu_ms, entry.disk_to_cpu_ms)[index], prior.load_time_ms(entry.rank, slot)[index])
            for entry in profile.load_times
            for slot in (entry.max_lora_rank or entry.rank,)
            if entry.rank not in ranks
        ]
        ratios = [measured / expected for measured, expected in pairs if measured > 0 and expected > 0]
        if ratios:
            warnings += scale_warnings(
                f"Loads {kind.replace('_', ' ')}",
                float(np.median(ratios)),
                usual=LOAD_RANGE,
                units=MILLISECOND_FACTORS,
                column=f"{kind}_ms",
                otherwise="the unit, and what was timed",
            )
    return warnings


def _startup_warnings(profile: PerformanceProfile, prior: PerformanceProfile) -> list[str]:
    measured_s, expected_s = (one.startup.base_s + USUAL_SLOTS * one.startup.per_slot_s for one in (profile, prior))
    if measured_s <= 0 or expected_s <= 0:
        return []
    return scale_warnings(
        "Starts",
        measured_s / expected_s,
        usual=LOAD_RANGE,
        units=SECOND_FACTORS,
        column="seconds",
        otherwise="the unit, and what was timed",
    )


def _capacity_warnings(profile: PerformanceProfile, prior: PerformanceProfile, model: ModelArchitecture) -> list[str]:
    # What the prior's overhead would leave, and the measured one does not.
    missing_tokens = (profile.memory.overhead_gib - prior.memory.overhead_gib) * GIB / model.kv_bytes_per_token
    capacities = [entry.kv_tokens for entry in profile.memory.measured if entry.kv_tokens]
    ratios = [tokens / (tokens + missing_tokens) for tokens in capacities if tokens + missing_tokens > 0]
    if not ratios:
        return []
    return scale_warnings(
        "KV capacities",
        float(np.median(ratios)),
        usual=CAPACITY_RANGE,
        units={1 / BLOCK_TOKENS: "blocks", model.kv_bytes_per_token / GIB: "GiB"},
        column="kv_tokens",
        otherwise="--gpu-memory-gib, --model, and that `kv_tokens` counts tokens",
    )
