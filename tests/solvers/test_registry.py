"""The registry: names, availability, and solvers of other distributions."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from solvers import registry
from solvers.greedy import GreedySolver
from solvers.interface import Capability
from solvers.packing import PackingSolver
from solvers.registry import SolverEntry, get_solver, solver_entries, solver_entry, solver_names
from twin.errors import SolverError


def with_entry_points(monkeypatch: pytest.MonkeyPatch, *values: tuple[str, str]) -> None:
    """Pretend that installed distributions have these entry points (name, value)."""
    points = EntryPoints(EntryPoint(name, value, registry.ENTRY_POINT_GROUP) for name, value in values)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points.select(group=group))


def test_the_built_in_solvers_are_there() -> None:
    """The names are what users type and plans record."""
    assert {"bfd", "ffd", "greedy", "greedy-intended"} <= set(solver_names())
    assert list(solver_names()) == sorted(solver_names())


@pytest.mark.parametrize("name", solver_names())
def test_a_solver_has_the_name_and_the_capabilities_of_its_entry(name: str) -> None:
    """The table is what `placer solvers` prints, so it must be true."""
    entry = next(entry for entry in solver_entries() if entry.name == name)
    solver = get_solver(name)
    assert (solver.name, solver.capabilities) == (name, entry.capabilities)
    assert entry.summary
    assert entry.availability().is_available


def test_both_paddings_can_be_asked_for() -> None:
    """The two greedy names differ in the padding."""
    published, intended = get_solver("greedy").inner.inner, get_solver("greedy-intended").inner.inner
    assert isinstance(published, GreedySolver)
    assert isinstance(intended, GreedySolver)
    assert (published.padding, intended.padding) == ("published", "intended")


def test_an_unknown_name_gets_the_closest_one() -> None:
    """Typos are common on a command line."""
    with pytest.raises(SolverError, match=r"`solver` must be one of .*bfd, .*ffd, .*greedy.*Got 'greddy'") as caught:
        get_solver("greddy")
    assert (caught.value.hint, caught.value.value) == ("did you mean 'greedy'?", "greddy")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is said before anything is imported."""
    entry = SolverEntry(
        name="exact",
        summary="needs a library that nobody has",
        capabilities=frozenset(),
        make=lambda: PackingSolver("bfd"),
        requires=("a_library_that_nobody_has",),
        extra="cpsat",
    )
    monkeypatch.setattr(registry, "_BUILT_IN", (entry,))
    availability = entry.availability()
    assert not availability.is_available
    assert (availability.reason, availability.extra) == ("not installed: a_library_that_nobody_has", "cpsat")
    with pytest.raises(SolverError, match="not installed: a_library_that_nobody_has") as caught:
        get_solver("exact")
    assert caught.value.hint == "pip install 'lora-placer[cpsat]'"


class ForeignSolver(PackingSolver):
    """A solver of another distribution."""

    def __init__(self) -> None:
        super().__init__("ffd")


def test_entry_points_add_solvers_but_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class and an instance may be registered; a built-in name keeps its meaning."""
    with_entry_points(
        monkeypatch,
        ("foreign", "tests.solvers.test_registry:ForeignSolver"),
        ("bfd", "tests.solvers.test_registry:ForeignSolver"),
    )
    assert "foreign" in solver_names()
    assert isinstance(get_solver("foreign").inner.inner, ForeignSolver)
    assert not isinstance(get_solver("bfd").inner.inner, ForeignSolver)
    entry = next(entry for entry in solver_entries() if entry.name == "foreign")
    assert entry.summary == "A solver of another distribution."
    assert Capability.ANYTIME in entry.capabilities


@pytest.mark.parametrize("value", ["no_such_module:Solver", "tests.solvers.test_registry:nothing", "builtins:int"])
def test_a_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The user must learn which distribution to repair."""
    with_entry_points(monkeypatch, ("broken", value))
    with pytest.raises(SolverError, match=r"the entry point 'broken' of placer.solvers must be a solver"):
        solver_names()


def test_a_solver_that_is_not_installed_is_named_by_module_and_object(tmp_path: Path) -> None:
    """Trying an idea must not need a distribution: a class in a module, or in a file, will do."""
    assert isinstance(get_solver("tests.solvers.test_registry:ForeignSolver").inner.inner, ForeignSolver)
    file = tmp_path / "own.py"
    file.write_text("from solvers.packing import PackingSolver\n\nmine = PackingSolver('bfd')\n", encoding="utf-8")
    entry = solver_entry(f"{file}:mine")
    assert (entry.name, entry.availability().is_available) == (f"{file}:mine", True)
    assert entry.capabilities == PackingSolver.capabilities


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("no_such_module:Solver", "ModuleNotFoundError"),
        ("no_such_file.py:Solver", "FileNotFoundError: no Python file"),
        ("tests.solvers.test_registry:nothing", "AttributeError"),
        ("builtins:int", "'int' object has no attribute 'name'"),
        ("tests.solvers.test_registry:NoCapability", "ValueError: 'fast' is not a valid Capability"),
    ],
)
def test_an_object_that_is_no_solver_is_refused(choice: str, reason: str) -> None:
    """The message says what the object lacks, before anything is solved."""
    with pytest.raises(SolverError, match=f"must be an object with .*{reason}") as caught:
        get_solver(choice)
    assert caught.value.value == choice


class NoCapability(PackingSolver):
    """A solver that declares what does not exist."""

    capabilities = frozenset({"fast"})  # type: ignore[arg-type]

    def __init__(self) -> None:
        super().__init__("ffd")
