"""A study: which scenarios it has, the cells that are missing, each kept as soon as it is done, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from placer.files import ProblemFromFile
from placer.planning import check_arguments
from placer.record_folder import RecordFolder, RecordKind
from placer.whatif.break_even import break_even
from placer.whatif.cell import CellTask, PlanSettings, alone, do_cell
from placer.whatif.document import Cell, StudyName, WhatIf, cell_name
from placer.whatif.risk import RiskSettings
from placer.whatif.scenario import Scenario, with_base
from placer.whatif.sensitivity import savings, sensitivity_scenarios
from predictors.cluster import each_on_cluster
from solvers.registry import get_solver
from twin.errors import InputError
from twin.parallel import each_in_parallel

CELL_KIND = RecordKind(Cell, cell_name, whole="what-if study", part="cell")
DEFAULT_PROBABILITIES = (0.8, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is; `latest` is the cell that just ended, ``None`` at the start."""

    finished: int
    total: int
    latest: Cell | None


Observer = Callable[[StudyProgress], None]


@dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes
    ----------
    name
        ``sweep``: the scenarios; ``risk``: each planned for several probabilities, and judged by Monte Carlo;
        ``break-even``: each with every GPU type alone; ``sensitivity``: each without single adapters and constraints.
    scenarios
        Without the problem as it is, which always comes first.
    risk, probabilities
        Of a study of the risk.
    num_candidates
        Single adapters that a study of the sensitivity drops, >= 0.
    """

    name: StudyName = "sweep"
    scenarios: tuple[Scenario, ...] = ()
    risk: RiskSettings = field(default_factory=RiskSettings)
    probabilities: tuple[float, ...] = DEFAULT_PROBABILITIES
    num_candidates: int = 10

    def expanded(self, problem: ProblemFromFile) -> list[Scenario]:
        """Return all scenarios of the study, the problem as it is first.

        Raises
        ------
        InputError
            When there is nothing to compare.
        """
        given = list(self.scenarios)
        if self.name == "sweep":
            if not given:
                raise InputError(
                    "a sweep must have scenarios. None was given.",
                    field="scenarios",
                    hint="for example --scale-rates 0.5:3:0.25, or --scenarios FILE",
                )
            return with_base(given)
        bases = given or [Scenario()]
        if self.name == "risk":
            return [made for base in bases for made in (base, *self._sure(base))]
        if self.name == "break-even":
            types = [gpu_type.name for gpu_type in problem.gpu_types]
            if len(types) < 2 or any(base.gpu_type is not None for base in bases):
                raise InputError(
                    f"a break-even must be between GPU types of the problem, two at least. It has {', '.join(types)}.",
                    field="gpu_types",
                    value=types,
                    hint="list them in the problem file, and leave --gpu-type out",
                )
            return [_named(base, gpu_type=name) for base in bases for name in types]
        if given:
            raise InputError("a sensitivity must be of the problem as it is. Scenarios were given.", field="scenarios")
        return [Scenario(), *sensitivity_scenarios(problem, self.num_candidates)]

    def _sure(self, base: Scenario) -> list[Scenario]:
        prefix = f"{base.label}, " if base.changes or base.name else ""
        return [
            base.model_copy(
                update={
                    "name": f"{prefix}probability {probability:g}",
                    "rate_cv": self.risk.rate_cv,
                    "common_cv": self.risk.common_cv,
                    "probability": probability,
                }
            )
            for probability in self.probabilities
        ]


def run_study(
    problem: ProblemFromFile,
    study: Study,
    *,
    settings: PlanSettings | None = None,
    folder: Path = Path(),
    output: str | Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    observer: Observer | None = None,
) -> WhatIf:
    """Plan every scenario of a study.

    Parameters
    ----------
    problem, study
        What is changed, and how.
    settings
        How each scenario is planned.
    folder
        That relative paths of models and profiles in scenarios start from.
    output
        Folder that keeps the finished cells and is continued where it exists; ``None``: nothing is kept.
    workers
        Cells at a time.
    cluster
        Address of a Dask scheduler on whose workers the cells are done instead.
    observer
        Told about progress, after each cell was kept.

    Raises
    ------
    InputError, SolverError
        When the study or the settings do not hold, or the folder holds another study. What is wrong with a scenario is
        the reason of its cell.
    ClusterError
        When the cluster cannot be used.
    KeyboardInterrupt
        On Ctrl-C; what was finished is kept.
    """
    settings = settings or PlanSettings()
    if workers < 1:
        raise InputError(f"`workers` must be at least 1. Got {workers}.", field="workers", value=workers)
    check_arguments(settings.margin, settings.risk, settings.repair_rounds)
    settings.twin()
    get_solver(settings.solver)
    scenarios = study.expanded(problem)
    configuration = _configuration(problem, study, scenarios, settings)
    kept = None if output is None else RecordFolder(Path(output), configuration, CELL_KIND)
    cells = {} if kept is None else {cell.index: cell for cell in kept.finished()}
    risk = study.risk if study.name == "risk" else None
    tasks = [
        CellTask(index, scenario, problem, settings, folder, risk)
        for index, scenario in enumerate(scenarios)
        if index not in cells
    ]
    if workers > 1 or cluster is not None:
        tasks = [alone(task) for task in tasks]
    tell = observer or _ignore
    tell(StudyProgress(len(cells), len(scenarios), None))
    if tasks:
        with closing(_results(tasks, workers=workers, cluster=cluster)) as results:
            for _, cell in results:
                cells[cell.index] = cell
                if kept is not None and not cell.is_transient:
                    kept.keep(cell)
                tell(StudyProgress(len(cells), len(scenarios), cell))
    return _whatif(study, configuration, tuple(cells[index] for index in range(len(scenarios))))


def _results(
    tasks: Sequence[CellTask], *, workers: int, cluster: str | None
) -> Generator[tuple[int, Cell], None, None]:
    if cluster is not None:
        return each_on_cluster(do_cell, tasks, address=cluster)
    return each_in_parallel(do_cell, tasks, workers=workers, backend="loky")


def _configuration(
    problem: ProblemFromFile, study: Study, scenarios: Sequence[Scenario], settings: PlanSettings
) -> dict[str, Any]:
    """Return everything that decides the cells, as plain values."""
    return {
        "schema_version": 1,
        "study": study.name,
        "problem": {entry.name: entry.sha256 for entry in problem.inputs},
        "profiles": [profile.name for profile in problem.profiles],
        "settings": settings.as_configuration(),
        "risk": asdict(study.risk) if study.name == "risk" else None,
        "scenarios": [{"label": scenario.label, "changes": scenario.changes} for scenario in scenarios],
    }


def _whatif(study: Study, configuration: dict[str, Any], cells: tuple[Cell, ...]) -> WhatIf:
    return WhatIf(
        study=study.name,
        configuration=configuration,
        cells=cells,
        break_even=break_even(cells) if study.name == "break-even" else (),
        savings=savings(cells) if study.name == "sensitivity" else (),
        warnings=tuple(_warnings(cells)),
    )


def _warnings(cells: Sequence[Cell]) -> list[str]:
    failed = [cell for cell in cells if cell.status == "failed"]
    metastable = [cell for cell in cells if cell.has_plan and cell.num_metastable]
    warnings = [f"{cell.label}: {cell.reason}" for cell in failed]
    if metastable:
        share = np.mean([cell.num_metastable or 0 for cell in metastable])
        warnings.append(
            f"{len(metastable)} of {len(cells)} plans have metastable GPUs ({share:.1f} in the mean): whether they "
            "starve is a matter of chance. --risk 0.05 or --margin 0.1 keeps further away from the limits."
        )
    return warnings


def _named(base: Scenario, **changes: Any) -> Scenario:
    """Return a scenario with more changes; a name is kept in front of them."""
    made = base.model_copy(update=changes)
    if base.name is None:
        return made
    return made.model_copy(update={"name": f"{base.name}, {Scenario(**changes).label}"})


def _ignore(_: StudyProgress) -> None:
    """Do nothing with progress that nobody asked for."""
