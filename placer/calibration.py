"""Calibrate a performance profile, and report how good the fit is and what it does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from placer.calibration_document import CalibrationReport, ResidualPoint, build_report, residual_points
from placer.calibration_settings import SettingsReader
from placer.events import FitIterated, PhaseStarted, PlanObserver, announce_compilation, ignore
from placer.wording import counted
from twin.calibration.datasheets import DATASHEETS, datasheet_of
from twin.calibration.described_fit import CalibrationSources, ProfileFit
from twin.calibration.evidence import file_hash, read_evidence
from twin.calibration.guess import guess_profile
from twin.calibration.measured_folders import partial_warnings
from twin.calibration.plausibility import plausibility_warnings
from twin.calibration.prior import prior_profile
from twin.calibration.profile_fit import GPU_MEMORY_GIB, GPU_NAME, calibrate
from twin.calibration.step_fit import relative_design
from twin.calibration.step_table import no_steps
from twin.calibration.table_fit import calibrate_tables
from twin.calibration.tables import TABLE_MODELS
from twin.errors import InputError
from twin.hardware import ModelArchitecture, load_model
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.validation.doubts import origin_warnings
from twin.validation.runs import MODELS, read_runs

# The table by which a folder of the published micro-benchmarks is known.
PUBLISHED_TABLE = "calib_runs.csv"
AUTOMATIC_PRIOR = "auto"
# For machines without a datasheet.
GUESSED_PRIOR = "guess"
# Of one GPU; the largest that are sold have less than a tenth of the most.
LEAST_MEMORY_GIB, MOST_MEMORY_GIB = 1.0, 4096.0


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and from what.

    Attributes
    ----------
    data
        The folder of the published tables (``calib_*``); or folders and files of the user's own, each tables
        (twin/calibration/step_table.py), a table of steps, metrics of a server, or results of ``vllm bench serve``.
        None: nothing was measured, the prior is the answer.
    settings
        YAML file with what metrics and results do not say about the server; ``None``: beside them, or in them.
    model
        A shipped name, or the path of a config.json.
    gpu
        What was measured on; the name of a datasheet unless `prior` and `gpu_memory_gib` are given.
    gpu_memory_gib
        What an engine sees; ``None``: the datasheet's.
    name
        Of the profile; ``None``: MODEL-GPU.
    runs, split
        Table of measured serving runs, and the part of it to fit; ``None``: the whole table.
    has_front_end
        Whether the runs were measured behind an API server that is polled for metrics all the time, as the published
        ones were (twin/validation/front_end.py).
    host_profile
        Profile that gives the host terms: a shipped name or a file.
    prior
        ``auto``: made from the datasheet; else a shipped name or a profile file.
    workers
        Processes for simulating serving runs; ``None``: one per core.
    """

    data: tuple[Path, ...]
    model: str
    gpu: str = GPU_NAME
    gpu_memory_gib: float | None = None
    name: str | None = None
    runs: Path | None = None
    split: str | None = None
    has_front_end: bool = True
    host_profile: str | None = None
    prior: str = AUTOMATIC_PRIOR
    workers: int | None = None
    settings: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """The outcome: the profile, what is to be said about it, and the measured steps beside the fitted ones."""

    profile: PerformanceProfile
    report: CalibrationReport
    points: tuple[ResidualPoint, ...]


def calibrate_profile(request: CalibrationRequest, observer: PlanObserver = ignore) -> Calibration:
    """Make a profile from measurements, or from a datasheet where there are none.

    Raises
    ------
    InputError
        When a table, the model, the GPU or a combination of settings cannot be used.
    ProfileError
        When a profile is unreadable, or a library that fitting needs is not installed.
    """
    _require_possible_memory(request.gpu_memory_gib)
    model = load_model(MODELS.get(request.model, request.model))
    source = f"tables of {_named(request.data)}" if request.data else f"datasheet of {request.gpu}"
    observer(PhaseStarted("load", source))
    doubts: tuple[str, ...] = ()
    if not request.data:
        _refuse_without_data(request)
        fit = _unmeasured(request, model)
    elif any(_is_published(data) for data in request.data):
        _refuse_beside_published(request, model)
        sources, doubts = _sources(request, model, observer)
        fit = _calibrate_published(request.data[0], request, model, sources, observer)
    else:
        prior = _prior(request, model)
        sources, doubts = _sources(request, model, observer)
        fit, partial = _calibrate_own(request, model, sources, observer, prior=prior)
        doubts = (*partial, *doubts)
    if request.name is not None:
        fit = replace(fit, profile=fit.profile.model_copy(update={"name": request.name}))
    report = build_report(fit, (*doubts, *plausibility_warnings(fit, model)))
    return Calibration(fit.profile, report, residual_points(fit.profile, fit.observations))


def _unmeasured(request: CalibrationRequest, model: ModelArchitecture) -> ProfileFit:
    observations = no_steps()
    return ProfileFit(_prior(request, model), observations, relative_design(observations))


def _require_possible_memory(memory_gib: float | None) -> None:
    if memory_gib is None or LEAST_MEMORY_GIB <= memory_gib <= MOST_MEMORY_GIB:
        return
    raise InputError(
        f"`--gpu-memory-gib` must be from {LEAST_MEMORY_GIB:g} to {MOST_MEMORY_GIB:g} GiB. Got {memory_gib:g}.",
        field="gpu-memory-gib",
        value=memory_gib,
        hint="give what `torch.cuda.get_device_properties(0).total_memory` says, in GiB, or leave it out",
    )


def _refuse_without_data(request: CalibrationRequest) -> None:
    given = {"--runs": request.runs, "--split": request.split, "--host-profile": request.host_profile}
    given |= {"--settings": request.settings}
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"`{option}` must come with measurements. Got {str(value)!r} and no tables.",
                field=option.removeprefix("--"),
                value=str(value),
                hint="give the folder with the tables, or leave the option out",
            )


def _is_published(data: Path) -> bool:
    return any((folder / PUBLISHED_TABLE).is_file() for folder in (data, data / "calibration"))


def _named(data: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in data)


def _refuse_beside_published(request: CalibrationRequest, model: ModelArchitecture) -> None:
    if len(request.data) > 1:
        raise InputError(
            f"the calib_* tables must be given alone: they are fitted as published. Got {_named(request.data)}.",
            field="data",
            value=_named(request.data),
            hint="give the folder with the calib_* tables, or the others",
        )
    if model.name not in TABLE_MODELS:
        raise InputError(
            f"the calib_* tables cover the models {', '.join(TABLE_MODELS)}. Got {request.model!r}.",
            field="model",
            value=request.model,
            hint="name one of them, or give tables of your own",
        )
    if request.gpu != GPU_NAME or request.gpu_memory_gib not in {None, GPU_MEMORY_GIB}:
        raise InputError(
            f"the calib_* tables were measured on {GPU_NAME} with {GPU_MEMORY_GIB:g} GiB. Got {request.gpu!r}.",
            field="gpu",
            value=request.gpu,
            hint="leave out --gpu and --gpu-memory-gib, or give tables of your own",
        )
    if request.settings is not None:
        raise InputError(
            f"`--settings` goes with metrics and bench results. Got {str(request.settings)!r}, and calib_* tables.",
            field="settings",
            value=str(request.settings),
            hint="leave out --settings",
        )
    if request.prior != AUTOMATIC_PRIOR:
        raise InputError(
            f"the calib_* tables are fitted without a prior. Got --prior {request.prior!r}.",
            field="prior",
            value=request.prior,
            hint="leave out --prior",
        )


def _calibrate_published(
    data: Path,
    request: CalibrationRequest,
    model: ModelArchitecture,
    sources: CalibrationSources,
    observer: PlanObserver,
) -> ProfileFit:
    observer(PhaseStarted("fit", f"{model.name} to {data}"))
    return calibrate(data, model=model.name, sources=sources, workers=request.workers, on_iteration=_reporter(observer))


def _calibrate_own(
    request: CalibrationRequest,
    model: ModelArchitecture,
    sources: CalibrationSources,
    observer: PlanObserver,
    *,
    prior: PerformanceProfile,
) -> tuple[ProfileFit, tuple[str, ...]]:
    """Return the fit, and what is to be said about the measurements."""
    settings_of = SettingsReader(request.settings)
    evidence = read_evidence(*request.data, model=MODELS.get(request.model, request.model), settings_of=settings_of)
    if request.settings is not None and not evidence.summaries:
        raise InputError(
            f"`--settings` goes with metrics and bench results. Got {str(request.settings)!r}, and tables only.",
            field="settings",
            value=str(request.settings),
            hint="leave out --settings: the tables have the columns `max_loras` and `max_lora_rank`",
        )
    if evidence.runs and not sources.runs:
        announce_compilation(observer)
    observer(PhaseStarted("fit", f"{model.name} to {_named(request.data)}"))
    fit = calibrate_tables(
        evidence,
        model=model,
        prior=prior,
        gpu=request.gpu,
        gpu_memory_gib=_memory_gib(request),
        name=request.name or f"{model.name}-{request.gpu}",
        sources=sources,
        workers=request.workers,
        on_iteration=_reporter(observer),
    )
    return fit, tuple(partial_warnings(evidence.folders))


def _prior(request: CalibrationRequest, model: ModelArchitecture) -> PerformanceProfile:
    if request.prior == AUTOMATIC_PRIOR:
        return prior_profile(model, request.gpu, gpu_memory_gib=request.gpu_memory_gib)
    if not request.data:
        raise InputError(
            f"`--prior` must come with measurements. Got {request.prior!r} and no tables.",
            field="prior",
            value=request.prior,
            hint="leave out --prior: without measurements the prior is made from the datasheet",
        )
    if request.prior == GUESSED_PRIOR:
        return guess_profile(model, request.gpu, gpu_memory_gib=_memory_gib(request))
    shipped = shipped_profiles()
    if request.prior not in shipped and not Path(request.prior).exists():
        raise InputError(
            f"`--prior` must be {AUTOMATIC_PRIOR}, {GUESSED_PRIOR}, a shipped profile ({', '.join(shipped)}) or a "
            f"profile file. Got {request.prior!r}.",
            field="prior",
            value=request.prior,
            hint=f"leave it out for {AUTOMATIC_PRIOR}, the datasheet's; {GUESSED_PRIOR} is for machines without one",
        )
    return load_profile(request.prior)


def _memory_gib(request: CalibrationRequest) -> float:
    if request.gpu_memory_gib is not None:
        return request.gpu_memory_gib
    if request.gpu not in DATASHEETS:
        raise InputError(
            f"the memory of a GPU without a datasheet must be given. Got {request.gpu!r} and no --gpu-memory-gib.",
            field="gpu-memory-gib",
            hint="give what `torch.cuda.get_device_properties(0).total_memory` says, in GiB",
        )
    return datasheet_of(request.gpu).memory_gib


def _sources(
    request: CalibrationRequest, model: ModelArchitecture, observer: PlanObserver
) -> tuple[CalibrationSources, tuple[str, ...]]:
    """Return what else is fitted, and what is odd about the table of runs."""
    sources = CalibrationSources()
    doubts: tuple[str, ...] = ()
    if request.host_profile is not None:
        sources = replace(sources, host_profile=load_profile(request.host_profile))
    if request.runs is not None:
        table = read_runs(request.runs, model=model.name, split=request.split)
        # What a saturated client measured is not the engine's.
        kept = tuple(
            replace(run, is_polled=request.has_front_end) for run in table.runs if not run.has_client_collapsed
        )
        if not any(run.traffic is not None and run.measured.tpot_mean_ms for run in kept):
            raise InputError(
                "at least one run must be of use: it served, its client kept up, and `tpot_mean_ms` is given. "
                f"None of the {counted(len(table.runs), 'run')} asked for in {request.runs} is.",
                file=str(request.runs),
                field="runs",
                value=str(request.runs),
                hint="give runs with a time per output token, choose others with --split, or leave out --runs",
            )
        sources = replace(sources, runs=kept, hashes={request.runs.name: file_hash(request.runs)})
        doubts = origin_warnings(table, {model.name: request.gpu})
        announce_compilation(observer)
    elif request.split is not None:
        raise InputError(
            f"`--split` must come with --runs. Got {request.split!r} alone.",
            field="split",
            value=request.split,
            hint="give the table of runs with --runs",
        )
    return sources, doubts


def _reporter(observer: PlanObserver) -> Callable[[int, float], None]:
    return lambda number, error_percent: observer(FitIterated(number, error_percent))
