"""Which adapter or constraint costs a GPU: the problem planned anew without each, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placer.files import ProblemFromFile
from placer.whatif.document import Cell, SavingRecord
from placer.whatif.relaxing import relaxations
from placer.whatif.scenario import Scenario
from placer.wording import counted
from solvers.bounds import adapter_work, unavoidable_costs


def sensitivity_scenarios(problem: ProblemFromFile, num_candidates: int) -> list[Scenario]:
    """Return scenarios without single adapters, without all of a rank, and without each limit and constraint.

    The single adapters are those with the most work: the share of a GPU that each takes whatever else is on it (the
    shares of the work bound), on the GPU type on which that is least.

    Parameters
    ----------
    num_candidates
        Most single adapters, >= 0.
    """
    adapters = problem.adapters
    types = range(len(problem.gpu_types))
    work = np.array([adapter_work(problem, unavoidable_costs(problem, index)) for index in types]).min(axis=0)
    scenarios = []
    if len(adapters) > 1:
        for index in np.argsort(-work, kind="stable")[:num_candidates]:
            adapter = adapters[int(index)]
            scenarios.append(
                Scenario(name=f"without {adapter.name} (work {work[index]:.2f})", drop_adapters=(adapter.name,))
            )
    ranks = sorted({adapter.rank for adapter in adapters})
    for rank in ranks if len(ranks) > 1 else ():
        names = tuple(adapter.name for adapter in adapters if adapter.rank == rank)
        share = float(work[[adapter.rank == rank for adapter in adapters]].sum())
        label = f"without rank {rank} ({counted(len(names), 'adapter')}, work {share:.2f})"
        scenarios.append(Scenario(name=label, drop_adapters=names))
    scenarios += [Scenario(name=f"without {name}", relax=name) for name in relaxations(problem)]
    return [
        scenario.model_copy(update={"name": "starvation_tolerance doubled"})
        if scenario.relax == "limits.starvation_tolerance"
        else scenario
        for scenario in scenarios
    ]


def savings(cells: Sequence[Cell]) -> tuple[SavingRecord, ...]:
    """Return what each scenario saves against the first cell, the most first; those without a plan are left out."""
    base = cells[0]
    if not base.has_plan or base.num_gpus is None or base.cost_per_hour is None:
        return ()
    records = [
        SavingRecord(
            label=cell.label,
            gpus=base.num_gpus - cell.num_gpus,
            cost_per_hour=base.cost_per_hour - cell.cost_per_hour,
            is_within_bound=base.lower_bound is None or cell.num_gpus >= base.lower_bound,
        )
        for cell in cells[1:]
        if cell.has_plan and cell.num_gpus is not None and cell.cost_per_hour is not None
    ]
    return tuple(sorted(records, key=lambda record: (-record.gpus, -record.cost_per_hour)))
