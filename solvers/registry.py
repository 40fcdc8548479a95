"""Which solvers exist, what they can do, and whether they can run here.

Solvers of other distributions register under the entry point group ``placer.solvers``: name = a class (called without
arguments) or an instance that implements `solvers.interface.Solver`. One that is not installed is named as
``module:object``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from solvers.baselines.catalog import BASELINES
from solvers.baselines.least_fleet import BaselineSolver
from solvers.capacity_model import CapacityModelSolver
from solvers.cpsat import CpSatSolver
from solvers.exhaustive import ExhaustiveSolver
from solvers.greedy import GreedySolver
from solvers.greedy_repaired import RepairedGreedySolver
from solvers.interface import Capability, Solver
from solvers.local_search.solver import LocalSearchSolver
from solvers.lowest_latency import AnyObjectiveSolver
from solvers.milp import MilpSolver
from solvers.named_object import load_named_object, names_object
from solvers.packing import PackingSolver
from solvers.portfolio import PortfolioSolver
from solvers.secondary.solver import SecondaryObjectivesSolver
from twin.errors import SolverError

ENTRY_POINT_GROUP = "placer.solvers"


@dataclass(frozen=True)
class Availability:
    """Whether a solver can run on this machine; if not, why, and which extra to install."""

    is_available: bool
    reason: str = ""
    extra: str | None = None


@dataclass(frozen=True)
class SolverEntry:
    """One solver of the registry.

    Attributes
    ----------
    name, summary
        What it is called, and one line about it.
    capabilities
        As the solver declares them.
    make
        Returns the solver.
    requires
        Top-level modules that must be installed.
    extra
        Extra of this distribution that brings them.
    """

    name: str
    summary: str
    capabilities: frozenset[Capability]
    make: Callable[[], Solver]
    requires: tuple[str, ...] = ()
    extra: str | None = None

    def availability(self) -> Availability:
        """Say whether the solver can run here, without importing any native library."""
        missing = [module for module in self.requires if find_spec(module) is None]
        if not missing:
            return Availability(is_available=True)
        reason = f"not installed: {', '.join(missing)}"
        return Availability(is_available=False, reason=reason, extra=self.extra)


def _make_patterns() -> Solver:
    from solvers.patterns.solver import PatternsSolver  # noqa: PLC0415 - loads HiGHS, for this solver only

    return PatternsSolver()


_BUILT_IN: tuple[SolverEntry, ...] = (
    SolverEntry(
        name="bfd",
        summary="rank-grouped best-fit decreasing, then a pass that empties GPUs",
        capabilities=PackingSolver.capabilities,
        make=lambda: PackingSolver("bfd"),
    ),
    SolverEntry(
        name="cpsat",
        summary="OR-Tools CP-SAT on counts of adapters, with cuts from what the surrogate refuses; proves optima",
        capabilities=CpSatSolver.capabilities,
        make=CpSatSolver,
        requires=("ortools",),
        extra="cpsat",
    ),
    SolverEntry(
        name="exact",
        summary="every set of adapters is asked about: the proven optimum of tiny problems",
        capabilities=ExhaustiveSolver.capabilities,
        make=ExhaustiveSolver,
    ),
    SolverEntry(
        name="ffd",
        summary="rank-grouped first-fit decreasing, then a pass that empties GPUs",
        capabilities=PackingSolver.capabilities,
        make=lambda: PackingSolver("ffd"),
    ),
    SolverEntry(
        name="greedy",
        summary="the published greedy (arXiv 2602.24044), with its padding as published",
        capabilities=GreedySolver.capabilities,
        make=lambda: GreedySolver("greedy", padding="published"),
    ),
    SolverEntry(
        name="greedy-intended",
        summary="the published greedy, with its padding as intended",
        capabilities=GreedySolver.capabilities,
        make=lambda: GreedySolver("greedy-intended", padding="intended"),
    ),
    SolverEntry(
        name="local_search",
        summary="best fit, then GPUs are emptied and filled again, and adapters exchanged, while the budget lasts",
        capabilities=LocalSearchSolver.capabilities,
        make=LocalSearchSolver,
    ),
    SolverEntry(
        name="patterns",
        summary="column generation over patterns of adapter types, seeded by best fit, with dives",
        capabilities=frozenset(
            {
                Capability.ANYTIME,
                Capability.BOUND,
                Capability.CONSTRAINTS,
                Capability.MIXED_GPU_TYPES,
                Capability.RANDOMISED,
                Capability.WARM_START,
            }
        ),
        make=_make_patterns,
        requires=("highspy",),
        extra="milp",
    ),
    SolverEntry(
        name="milp",
        summary="the pattern master by HiGHS; proves optima where all sets of adapters can be listed",
        capabilities=MilpSolver.capabilities,
        make=lambda: MilpSolver("milp"),
        requires=("pulp", "highspy"),
        extra="milp",
    ),
    SolverEntry(
        name="milp-capacity",
        summary="adapters on GPUs of a piecewise-linear capacity by HiGHS, for small problems",
        capabilities=CapacityModelSolver.capabilities,
        make=CapacityModelSolver,
        requires=("pulp", "highspy"),
        extra="milp",
    ),
    SolverEntry(
        name="milp-cbc",
        summary="the pattern master by CBC",
        capabilities=MilpSolver.capabilities,
        make=lambda: MilpSolver("milp-cbc"),
        requires=("pulp", "highspy"),
        extra="milp",
    ),
    SolverEntry(
        name="portfolio",
        summary="best fit, then patterns where they can run, then local search: the default",
        capabilities=PortfolioSolver.capabilities,
        make=PortfolioSolver,
    ),
    SolverEntry(
        name="greedy-repaired",
        summary="the published greedy with its known weaknesses mended; never worse than it",
        capabilities=RepairedGreedySolver.capabilities,
        make=RepairedGreedySolver,
    ),
    *(
        SolverEntry(
            name=baseline.name,
            summary=baseline.summary,
            capabilities=baseline.capabilities,
            make=partial(BaselineSolver, baseline),
            requires=baseline.requires,
            extra=baseline.extra,
        )
        for baseline in BASELINES
    ),
)


def solver_entries() -> tuple[SolverEntry, ...]:
    """Return every solver, the built-in ones and those of installed entry points, sorted by name.

    An entry point cannot replace a built-in solver.

    Raises
    ------
    SolverError
        When an entry point cannot be loaded.
    """
    entries = {entry.name: entry for entry in _BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        entries.setdefault(point.name, _entry_of(point))
    return tuple(entries[name] for name in sorted(entries))


def solver_names() -> tuple[str, ...]:
    """Return the names of all solvers, sorted."""
    return tuple(entry.name for entry in solver_entries())


def solver_entry(name: str) -> SolverEntry:
    """Return the entry of the solver called `name`, which may also be ``module:object``: a solver of the user's own.

    Raises
    ------
    SolverError
        When there is none (with the closest name), or the object cannot be loaded or is no solver.
    """
    if names_object(name):
        return _entry_of_object(name)
    entries = {entry.name: entry for entry in solver_entries()}
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        raise SolverError(
            f"`solver` must be one of {', '.join(entries)}, or module:object. Got {name!r}.",
            field="solver",
            value=name,
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    return entries[name]


def get_solver(name: str) -> SecondaryObjectivesSolver:
    """Return the solver called `name`, for every objective and the secondary ones.

    Raises
    ------
    SolverError
        When there is none (`solver_entry`), or what it needs is not installed (with the extra to install).
    """
    entry = solver_entry(name)
    availability = entry.availability()
    if not availability.is_available:
        extra = availability.extra
        raise SolverError(
            f"the solver {name!r} must be installed with what it needs. {availability.reason}.",
            field="solver",
            value=name,
            hint=f"pip install 'lora-placer[{extra}]'" if extra else None,
        )
    return SecondaryObjectivesSolver(AnyObjectiveSolver(entry.make()))


def _entry_of_object(choice: str) -> SolverEntry:
    try:
        solver: Solver = load_named_object(choice)
        _ = solver.name, solver.solve
        capabilities = frozenset(Capability(capability) for capability in solver.capabilities)
    except Exception as error:
        raise SolverError(
            f"the solver {choice!r} must be an object with `name`, `capabilities` and `solve`. "
            f"{type(error).__name__}: {error}.",
            field="solver",
            value=choice,
            hint="name a class without arguments or an object, such as mymodule:Solver or own.py:Solver "
            "(solvers.interface.Solver says what it needs)",
        ) from error
    summary = (solver.__doc__ or choice).strip().splitlines()[0]
    return SolverEntry(name=choice, summary=summary, capabilities=capabilities, make=lambda: solver)


def _entry_of(point: EntryPoint) -> SolverEntry:
    try:
        loaded = point.load()
        solver: Solver = loaded() if isinstance(loaded, type) else loaded
        capabilities = solver.capabilities
    except (ImportError, AttributeError, TypeError) as error:
        raise SolverError(
            f"the entry point {point.name!r} of {ENTRY_POINT_GROUP} must be a solver. {point.value}: {error}.",
            field="solver",
            value=point.name,
            hint="repair or uninstall the distribution that brings it",
        ) from error
    summary = (solver.__doc__ or point.value).strip().splitlines()[0]
    return SolverEntry(name=point.name, summary=summary, capabilities=capabilities, make=lambda: solver)
