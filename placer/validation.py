"""Validate the twin against measured runs: replay a table, score it, and keep what the numbers depend on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.events import PhaseStarted, PlanObserver, RunReplayed, announce_compilation, ignore
from placer.files import sha256_of
from placer.provenance import software_versions
from placer.unmeasured import unmeasured_warnings
from placer.wording import counted
from twin.parallel import available_cores
from twin.profile import PerformanceProfile
from twin.simulate import EngineName
from twin.validation.doubts import gpus_of, origin_warnings, replay_warnings
from twin.validation.predictions import STABLE_FACTORS, RunPrediction, predict_run
from twin.validation.published import PublishedComparison, PublishedOutput, compare_published, read_published
from twin.validation.quantities import Quantities
from twin.validation.regimes import REGIME_RULES, regime_of
from twin.validation.replay import DEFAULT_FRONT_END, ReplaySettings, choose_profiles, replay_runs
from twin.validation.runs import Status, read_runs
from twin.validation.scores import GroupScore, MemoryScore, WorstRuns, score_groups, score_memory, worst_runs

DEFAULT_NUM_SEEDS = 3


class _Document(BaseModel):
    """Part of a validation: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ValidatedFile(_Document):
    """A file or profile that the numbers depend on, by content."""

    role: Literal["runs", "published twin", "profile"]
    name: str
    sha256: str


class ValidatedRun(_Document):
    """One run: what it was, what was measured, and what the twin says.

    Attributes
    ----------
    is_headline
        Informative, and its client kept up: it counts in the errors.
    is_metastable
        The seeds disagree about it.
    seed_spread_percent
        Half-SMAPE between the seeds, by quantity.
    """

    run_id: str
    model: str
    split: str
    max_loras: int
    num_adapters: int
    max_lora_rank: int
    regime: str
    is_headline: bool
    is_metastable: bool
    measured_status: Status
    predicted_status: Status
    measured_starved: bool | None
    predicted_starved: bool | None
    measured: Quantities
    predicted: Quantities
    seed_spread_percent: dict[str, float | None]


class RunTiming(_Document):
    """What one simulation of a run took, the mean over the seeds."""

    run_id: str
    wall_s: float
    cpu_s: float


class ValidationTimings(_Document):
    """Wall and CPU times in seconds; the only part of a validation that differs between equal ones.

    Attributes
    ----------
    total_wall_s
        All simulations together, with starting the processes.
    wall_s_mean, cpu_s_mean, wall_s_max, cpu_s_max
        Per simulation.
    """

    num_simulations: int
    workers: int
    total_wall_s: float
    wall_s_mean: float
    cpu_s_mean: float
    wall_s_max: float
    cpu_s_max: float
    runs: tuple[RunTiming, ...]


class Validation(_Document):
    """How well the twin predicts measured runs.

    Attributes
    ----------
    num_replayed, num_failed
        Rows that were replayed, and rows left out because the machine or the launcher had failed.
    horizon_s
        ``None``: each run's own length.
    has_front_end
        Whether latencies are those of clients behind a polled API server (twin/validation/front_end.py).
    groups
        All rows first, then per split, model, slots, max rank and regime.
    published
        Empty without a table of another twin.
    metastable
        Names of the runs about which the seeds disagree.
    warnings
        Why the numbers may say less than they seem to.
    """

    schema_version: Literal[1] = 1
    inputs: tuple[ValidatedFile, ...]
    versions: dict[str, str]
    engine: str
    seeds: tuple[int, ...]
    horizon_s: float | None
    has_front_end: bool
    num_replayed: int
    num_failed: int
    regime_rules: dict[str, str]
    metastable_factors: dict[str, float]
    groups: tuple[GroupScore, ...]
    memory: MemoryScore
    published: tuple[PublishedComparison, ...]
    worst: tuple[WorstRuns, ...]
    metastable: tuple[str, ...]
    rows: tuple[ValidatedRun, ...]
    warnings: tuple[str, ...]
    timings: ValidationTimings


@dataclass(frozen=True)
class ValidatedTwin:
    """The outcome: the document, and the predictions that it was made from."""

    validation: Validation
    predictions: tuple[RunPrediction, ...]


def validate_twin(
    runs: Path,
    *,
    model: str | None = None,
    split: str | None = None,
    only_informative: bool = False,
    profile: str | None = None,
    published: Path | None = None,
    num_seeds: int = DEFAULT_NUM_SEEDS,
    horizon_s: float | None = None,
    engine: EngineName = "fast",
    workers: int | None = None,
    with_front_end: bool = True,
    observer: PlanObserver = ignore,
) -> ValidatedTwin:
    """Replay measured runs and score the twin's predictions.

    Parameters
    ----------
    runs, model, split, only_informative
        Which rows of which table; see `twin.validation.runs.read_runs`.
    profile
        A shipped name or a file; ``None``: the shipped one of each run's model.
    published
        Table of what another twin said about the same runs.
    num_seeds
        Simulations per run, with seeds 0, 1, ...; >= 1.
    horizon_s, engine, workers
        See `twin.validation.replay.ReplaySettings`; `workers` ``None``: one per core that this process may use.
    with_front_end
        Whether latencies are those of clients behind an API server that is polled for metrics, as in the published
        runs, or those of the engine.
    observer
        Told about progress.

    Raises
    ------
    InputError
        When a table cannot be used; see `read_runs` and `read_published`.
    ProfileError
        When a profile is unreadable or of another model.
    """
    observer(PhaseStarted("load", f"runs of {runs}"))
    table = read_runs(runs, model=model, split=split, only_informative=only_informative)
    others = {} if published is None else read_published(published)
    profiles = choose_profiles(table.runs, profile)
    settings = ReplaySettings(
        seeds=tuple(range(num_seeds)),
        horizon_s=horizon_s,
        engine=engine,
        workers=workers or available_cores(),
        front_end=DEFAULT_FRONT_END if with_front_end else None,
    )
    if engine == "fast":
        announce_compilation(observer, (run.engine for run in table.runs))
    observer(PhaseStarted("verify", f"{counted(len(table.runs), 'run')} with {counted(num_seeds, 'seed')}"))
    started_s = time.perf_counter()
    replays = replay_runs(
        table.runs, profiles, settings, on_replay=lambda done, total: observer(RunReplayed(done, total))
    )
    total_wall_s = time.perf_counter() - started_s
    predictions = tuple(predict_run(run, samples) for run, samples in zip(table.runs, replays, strict=True))
    inputs = _inputs(runs, published, list(profiles.values()))
    comparisons = compare_published(predictions, others)
    timings = _timings(predictions, settings, total_wall_s)
    return ValidatedTwin(
        Validation(
            inputs=inputs,
            versions=software_versions(),
            engine=engine,
            has_front_end=with_front_end,
            seeds=settings.seeds,
            horizon_s=horizon_s,
            num_replayed=len(table.runs),
            num_failed=table.num_failed,
            regime_rules={str(name): rule for name, rule in REGIME_RULES.items()},
            metastable_factors=STABLE_FACTORS,
            groups=score_groups(predictions),
            memory=score_memory(predictions),
            published=comparisons,
            worst=worst_runs(predictions),
            metastable=tuple(entry.run.run_id for entry in predictions if entry.is_metastable),
            rows=tuple(_row(prediction) for prediction in predictions),
            warnings=(
                *unmeasured_warnings(profiles.values()),
                *origin_warnings(table, gpus_of(profiles)),
                *replay_warnings(table.runs, horizon_s),
                *_published_warnings(published, others, comparisons),
            ),
            timings=timings,
        ),
        predictions,
    )


def validation_to_json(validation: Validation) -> str:
    """Return a validation as JSON: sorted keys, ending in a newline."""
    return json.dumps(validation.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def validation_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `validation_to_json` writes."""
    return Validation.model_json_schema(mode="serialization")


def _published_warnings(
    published: Path | None, others: Mapping[str, PublishedOutput], comparisons: Sequence[PublishedComparison]
) -> tuple[str, ...]:
    if published is None or comparisons:
        return ()
    return (f"None of the {len(others)} rows of {published} is of a replayed run that served: check its `run_id`s.",)


def _row(prediction: RunPrediction) -> ValidatedRun:
    run = prediction.run
    return ValidatedRun(
        run_id=run.run_id,
        model=run.model,
        split=run.split,
        max_loras=run.engine.max_loras,
        num_adapters=run.num_adapters,
        max_lora_rank=run.engine.max_lora_rank,
        regime=regime_of(run),
        is_headline=run.is_headline,
        is_metastable=prediction.is_metastable,
        measured_status=run.status,
        predicted_status=prediction.status,
        measured_starved=run.is_starved,
        predicted_starved=prediction.is_starved,
        measured=run.measured,
        predicted=prediction.quantities,
        seed_spread_percent=prediction.seed_spread_percent,
    )


def _inputs(runs: Path, published: Path | None, profiles: Sequence[PerformanceProfile]) -> tuple[ValidatedFile, ...]:
    files = [ValidatedFile(role="runs", name=runs.name, sha256=sha256_of(runs.read_bytes()))]
    if published is not None:
        content = published.read_bytes()
        files.append(ValidatedFile(role="published twin", name=published.name, sha256=sha256_of(content)))
    for profile in profiles:
        text = json.dumps(profile.model_dump(mode="json"), sort_keys=True)
        files.append(ValidatedFile(role="profile", name=profile.name, sha256=sha256_of(text.encode())))
    return tuple(files)


def _timings(predictions: Sequence[RunPrediction], settings: ReplaySettings, total_wall_s: float) -> ValidationTimings:
    simulated = [entry for entry in predictions if entry.quantities.tok_per_s is not None]
    walls, cpus = [entry.wall_s for entry in simulated], [entry.cpu_s for entry in simulated]
    return ValidationTimings(
        num_simulations=len(simulated) * len(settings.seeds),
        workers=settings.workers or 1,
        total_wall_s=total_wall_s,
        wall_s_mean=sum(walls) / max(len(walls), 1),
        cpu_s_mean=sum(cpus) / max(len(cpus), 1),
        wall_s_max=max(walls, default=0.0),
        cpu_s_max=max(cpus, default=0.0),
        runs=tuple(RunTiming(run_id=entry.run.run_id, wall_s=entry.wall_s, cpu_s=entry.cpu_s) for entry in simulated),
    )
