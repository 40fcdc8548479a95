"""From a data set to a surrogate: search every family, choose, export, and say how far it can be believed."""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from predictors.bound_row import BoundRow
from predictors.domain import Domain
from predictors.errors import Table, error_over_distance, error_table, reliability
from predictors.model_card import model_card
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.packed_verdicts import DEFAULT_NUM_GPUS, GpusPacked, judge_packed_gpus
from predictors.recorded_rows import GpusLabelled
from predictors.surrogate import OUTPUT_NAMES
from predictors.surrogate_file import INPUT_NAME
from predictors.targets import TrainingRows
from predictors.training_data import TrainingData, read_training_data
from twin.atomic_write import require_writable, write_atomically
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile

if TYPE_CHECKING:
    import onnx

    from predictors.selection import Searched

# Families that are searched unless others are asked for, and all.
FAMILY_NAMES = ("neural", "boosting", "forest", "tree")
ALL_FAMILY_NAMES = (*FAMILY_NAMES, "polyhedra")
# Those that can begin with a network that was fitted before.
CONTINUED_NAMES = ("neural", "polyhedra")
# Rows in the questions whose time is measured, and how often each is asked.
_QUESTIONS = {1: 2000, 100: 200, 10_000: 10}


@dataclass(frozen=True)
class TrainingSettings:
    """How a surrogate is trained.

    Attributes
    ----------
    families
        Of `ALL_FAMILY_NAMES`; all that are named are searched, and the best is exported.
    time_limit_s
        Wall time of the search of each family.
    max_trials
        Fits per family at most: what makes a search repeatable where the time does not.
    seed
        Of the split, the searches, the fits, and the GPUs that are packed for the risk.
    risk_gpus
        GPUs that are packed and simulated for the thresholds by risk; 0: the file gives none.
    """

    families: tuple[str, ...] = FAMILY_NAMES
    time_limit_s: float = 600.0
    max_trials: int = 8
    seed: int = 0
    risk_gpus: int = DEFAULT_NUM_GPUS


@dataclass(frozen=True)
class FamilyReport:
    """What came of a family.

    Attributes
    ----------
    settings, num_trials, fit_s
        Of its best model; fits tried; wall time of them.
    score
        `predictors.selection.score_of` on validation rows.
    errors
        On test rows (`predictors.errors.error_table`).
    parity
        Share of test rows on which ONNX Runtime and the fitted model differ, by output.
    size_bytes
        Of the ONNX file.
    latency_us
        Median time of a question in ONNX Runtime on one thread, by its rows.
    """

    name: str
    settings: dict[str, Any]
    num_trials: int
    fit_s: float
    score: float
    errors: Table
    parity: dict[str, float]
    size_bytes: int
    latency_us: dict[int, float]


@dataclass(frozen=True)
class TrainingReport:
    """What was written, and how well it does.

    Attributes
    ----------
    file, card
        The ONNX model and its Markdown card beside it.
    chosen
        Name of the family.
    families
        All that were searched, best score first.
    profile, domain
        What it was distilled from, and where it was fitted.
    facts
        The model's metadata under `training`.
    """

    file: Path
    card: Path
    chosen: str
    families: tuple[FamilyReport, ...]
    profile: PerformanceProfile
    domain: Domain
    facts: dict[str, Any] = field(repr=False)

    @property
    def best(self) -> FamilyReport:
        """The family that was exported."""
        return next(family for family in self.families if family.name == self.chosen)

    @property
    def errors(self) -> Table:
        """Errors of the chosen model on test rows."""
        return self.best.errors


@dataclass(frozen=True)
class TrialDone:
    """A fit has ended."""

    family: str
    number: int
    score: float
    seconds: float


Observer = Callable[[TrialDone | GpusLabelled | GpusPacked], None]


def train_surrogate(
    datasets: Sequence[str | Path],
    profile: PerformanceProfile,
    *,
    output: str | Path,
    kin: Sequence[PerformanceProfile] = (),
    rejections: Sequence[str | Path] = (),
    start: str | Path | None = None,
    settings: TrainingSettings = TrainingSettings(),
    workers: int | None = None,
    observer: Observer = lambda event: None,  # noqa: ARG005 - nobody watches
) -> TrainingReport:
    """Fit surrogates to data sets and write the best one, with its card, to `output` (``*.onnx``).

    Scenarios are split in three: most are fitted to, a tenth judges settings and calibrates the probability, a tenth is
    touched by nothing but the errors that are reported. The thresholds by risk come from GPUs that are packed against
    the exported model and simulated as plans are.

    Parameters
    ----------
    datasets
        Folders of `predictors.dataset.sample_dataset`, at least one.
    profile
        That labelled them, and that the surrogate is for.
    kin
        Profiles that labelled other data sets. All families see what a load means under the profile that labelled
        it, and so learn from those rows as well; errors, calibration and thresholds are of the surrogate's own profile.
    rejections
        Folders of GPUs that the twin was asked about while plans were made (`predictors.recorded_gpus`), rejected and
        accepted ones: their rows, labelled as the first data set is, count as packed ones. All GPUs of a workload are
        on one side of the split, and the data sets are split as they are without them.
    start
        A surrogate of the same profile that this function wrote: its network is fitted further, and what it learned
        from other rows is kept; `polyhedra` learn from it as it is. No other family takes it.
    workers
        Processes that label recorded GPUs, and threads that pack GPUs; ``None``: one per core. Fits use one.

    Raises
    ------
    SurrogateError
        When the extra `train` (for networks, `neural`) is not installed, or an exported model disagrees with the
        fitted one.
    InputError
        When there is no such data set, it was labelled with another profile, it has too few scenarios, recorded GPUs
        cannot be used, or `output` cannot be written.
    """
    families, selection = _load("predictors.families"), _load("predictors.selection")
    _require_families(settings.families, of_start=start is not None)
    begun = None if start is None else _load("predictors.neural_file").read_start(start, profile)
    file = Path(output)
    card = file.with_suffix(".md")
    # Before minutes of work.
    for path in (file, card):
        require_writable(path, option="output")
    data = read_training_data(datasets, profile, kin=kin, recorded=rejections, workers=workers, observer=observer)
    rows = data.rows
    fitted, validation, test = _split(data, seed=settings.seed)
    own = [rows, *(part.rows for part in data.kin if part.profile is profile)]
    domain = Domain.from_rows(np.concatenate([part.features for part in own]))
    domain = domain if begun is None else domain.joined(begun.domain)
    outcomes: list[tuple[Searched, FamilyReport]] = []
    for name in settings.families:
        searched = selection.search_family(
            families.FAMILIES[name] if begun is None else families.continued_family(name, begun.network),
            fitted,
            validation,
            profile,
            kin=data.kin,
            seed=settings.seed,
            time_limit_s=settings.time_limit_s,
            max_trials=settings.max_trials,
            on_trial=_numbered(observer),
        )
        outcomes.append((searched, _report(searched, _export(searched, profile, domain, {}), test)))
    outcomes.sort(key=lambda outcome: outcome[1].score)
    best, chosen = outcomes[0]
    predicted = _predict(best, test.features)
    facts = {
        "rows": len(rows),
        "scenarios": data.num_sets,
        "fitted_rows": len(fitted),
        "validation_rows": len(validation),
        "test_rows": len(test),
        "seed": settings.seed,
        "time_limit_s": settings.time_limit_s,
        "datasets": data.datasets,
        "kin": data.kin_datasets,
        "recorded": data.recorded,
        "start": None if begun is None else begun.facts,
        "family": chosen.name,
        "settings": chosen.settings,
        "errors": chosen.errors,
        "families": [_family_facts(report) for _, report in outcomes],
        "reliability": reliability(test, predicted),
        "distance": error_over_distance(test, predicted),
    }
    facts["thresholds"] = _thresholds(_export(best, profile, domain, facts), profile, settings, workers, observer)
    write_atomically(file, _export(best, profile, domain, facts).SerializeToString())
    write_atomically(card, model_card(profile, facts, chosen.parity))
    return TrainingReport(file, card, chosen.name, tuple(report for _, report in outcomes), profile, domain, facts)


def _require_families(names: Sequence[str], *, of_start: bool) -> None:
    """Raise InputError about families that there are not, or that cannot go on from a network."""
    known = CONTINUED_NAMES if of_start else ALL_FAMILY_NAMES
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(
            f"families must be of {', '.join(known)}{' where a fit goes on from a network' if of_start else ''}. "
            f"Got {', '.join(unknown) or 'none'}.",
            field="family",
            value=unknown,
        )


def _split(data: TrainingData, *, seed: int) -> list[TrainingRows]:
    """Return the rows to fit to, to validate with and to test on: the same ones of data sets, whatever was recorded."""
    selection = _load("predictors.selection")
    masks = np.zeros((3, len(data.rows)), dtype=np.bool_)
    for group in (~data.is_recorded, data.is_recorded):
        masks[:, group] = selection.split_scenarios(data.rows.scenario[group], seed=seed)
    return [data.rows.select(mask) for mask in masks]


def _numbered(observer: Observer) -> Callable[[Any], None]:
    numbers: dict[str, int] = {}

    def on_trial(trial: Any) -> None:
        numbers[trial.family] = numbers.get(trial.family, 0) + 1
        observer(TrialDone(trial.family, numbers[trial.family], trial.score, trial.seconds))

    return on_trial


def _predict(searched: Searched, features: NDArray[np.float32]) -> Any:
    return _load("predictors.export").predict(searched.model, searched.calibration, features)


def _export(searched: Searched, profile: PerformanceProfile, domain: Domain, facts: dict[str, Any]) -> onnx.ModelProto:
    exported: onnx.ModelProto = _load("predictors.export").export_model(
        searched.model, searched.calibration, profile=profile, domain=domain, training=facts, producer=_versions()
    )
    return exported


def _report(searched: Searched, exported: onnx.ModelProto, test: TrainingRows) -> FamilyReport:
    content = exported.SerializeToString()
    expected = _predict(searched, test.features)
    return FamilyReport(
        name=searched.family.name,
        settings=dict(searched.best.settings),
        num_trials=len(searched.trials),
        fit_s=round(sum(trial.seconds for trial in searched.trials), 3),
        score=round(searched.best.score, 6),
        errors=error_table(test, expected),
        parity=_load("predictors.export").check_parity(exported, expected, test.features),
        size_bytes=len(content),
        latency_us=_latency_us(content, test.features),
    )


def _latency_us(content: bytes, features: NDArray[np.float32]) -> dict[int, float]:
    runtime = _load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    # As `OnnxSurrogate` asks: one row through memory that the session is bound to.
    bound = BoundRow(session, OUTPUT_NAMES)
    medians = {}
    for num_rows, times in _QUESTIONS.items():
        rows = np.ascontiguousarray(np.resize(features, (num_rows, features.shape[1])), dtype=np.float32)
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            if num_rows == 1:
                bound.ask(rows)
            else:
                session.run(list(OUTPUT_NAMES), {INPUT_NAME: rows})
            seconds.append(time.perf_counter() - started)
        medians[num_rows] = round(1e6 * float(np.median(seconds)), 1)
    return medians


def _thresholds(
    exported: onnx.ModelProto,
    profile: PerformanceProfile,
    settings: TrainingSettings,
    workers: int | None,
    observer: Observer,
) -> dict[str, Any]:
    """Return what is known about the thresholds of a model, asked as plans will ask it: as a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "surrogate.onnx"
        file.write_bytes(exported.SerializeToString())
        verdicts = judge_packed_gpus(
            OnnxSurrogate.load(file),
            profile,
            num_gpus=settings.risk_gpus,
            seed=settings.seed,
            workers=workers,
            observer=observer,
        )
    facts: dict[str, Any] = _load("predictors.risk").threshold_facts(verdicts)
    return facts


def _family_facts(report: FamilyReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "settings": report.settings,
        "trials": report.num_trials,
        "score": report.score,
        "ratio_mae_near_border": report.errors["near_border"]["ratio_mae"],
        "brier_near_border": report.errors["near_border"]["brier"],
        "starvation_f1": report.errors["all"]["starvation_f1"],
        "size_bytes": report.size_bytes,
    }


def _versions() -> dict[str, str]:
    names = {"numpy": "numpy", "onnx": "onnx", "scikit-learn": "sklearn", "skl2onnx": "skl2onnx"}
    return {name: str(importlib.import_module(module).__version__) for name, module in names.items()}


def _load(module: str) -> Any:
    try:
        # By name, so that asking for help or reading this module needs none of the libraries of the extra.
        return importlib.import_module(module)
    except ImportError as error:
        raise SurrogateError(
            f"training needs the extra `train`. {error}.", hint="pip install 'lora-placer[train]'"
        ) from error


def facts_to_json(report: TrainingReport) -> str:
    """Return what `placer train --json` prints: sorted keys, ending in a newline."""
    content = {
        "file": str(report.file),
        "card": str(report.card),
        "family": report.chosen,
        "training": report.facts,
        "families": [
            {**_family_facts(family), "errors": family.errors, "latency_us": family.latency_us, "fit_s": family.fit_s}
            for family in report.families
        ],
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
