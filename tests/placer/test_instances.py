"""Families of instances: seeded, valid, and with the facts that they claim."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from placer.compare import compare
from placer.comparison_run import RunSettings, problem_and_surrogate
from placer.instances.catalog import InstanceEntry, catalog, family_names, select
from placer.instances.instance import Instance, Judges, safe_name
from placer.instances.planted import planted_instance
from placer.instances.recorded import missing_data
from placer.instances.synthetic import HIGH_RATES, LOW_RATES
from placer.searches import assign
from placer.surrogates import inflated
from placer.verify import TwinSettings, TwinVerifier
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from solvers.registry import get_solver
from tests.solvers.analytic import AnalyticSurrogate
from twin.errors import InputError

LARGEST_MADE = 1_600
MADE = [entry for entry in catalog() if not entry.needs_data and entry.num_adapters <= LARGEST_MADE]
RECORDED = [entry for entry in catalog() if entry.needs_data and entry.num_adapters <= 100]


def analytic(problem: Problem) -> tuple[Problem, Surrogate]:
    """Return the problem with a cheap surrogate that is at least as fast as the twin of the profile."""
    return problem, AnalyticSurrogate(speed=2.0)


ANALYTIC = Judges(analytic)


@cache
def made(name: str) -> Instance:
    """Make an instance once for all tests."""
    (entry,) = select(patterns=[name])
    return entry.make(ANALYTIC)


@pytest.mark.parametrize("entry", MADE, ids=lambda entry: entry.name)
def test_an_instance_is_what_its_entry_says(entry: InstanceEntry) -> None:
    """Name, family and size; names of adapters are unique, ranks and rates are usable."""
    instance = made(entry.name)
    problem = instance.problem
    assert (instance.name, instance.family) == (entry.name, entry.family)
    if entry.family != "planted":
        assert len(problem.adapters) == entry.num_adapters
    assert len({adapter.name for adapter in problem.adapters}) == len(problem.adapters)
    assert all(adapter.rate_rps > 0.0 for adapter in problem.adapters)
    assert safe_name(instance.name) == instance.name
    assert problem.replica(0, 1, int(problem.ranks.max()), 1).memory().starts


@pytest.mark.parametrize("family", ["papers", "sizes", "planted", "adversarial"])
def test_an_instance_is_the_same_whenever_it_is_made(family: str) -> None:
    """A name stands for one problem, so that results can be compared; other names stand for others."""
    entries = [entry for entry in MADE if entry.family == family]
    again = [entry.make(ANALYTIC).fingerprint() for entry in entries[:6]]
    assert again == [made(entry.name).fingerprint() for entry in entries[:6]]
    assert len({made(entry.name).fingerprint() for entry in entries}) == len(entries)


@pytest.mark.parametrize("name", ["planted-hot-g8", "planted-mixed-g12"])
def test_the_planted_gpus_are_feasible_and_full(name: str) -> None:
    """Every adapter is on one planted GPU, the surrogate accepts each, and refuses twice as much of it."""
    instance = made(name)
    problem = instance.problem
    placed = sorted(index for members in instance.planted for index in members)
    assert placed == list(range(len(problem.adapters)))
    assert len(instance.planted) == instance.planted_gpus
    model = FeasibilityModel(problem, analytic(problem)[1])
    rows = np.array([problem.aggregates[list(members)].sum(axis=0) for members in instance.planted])
    ranks = np.array([problem.ranks[list(members)].max() for members in instance.planted])
    assert model.best_choice(rows, ranks, 0).feasible.all()
    assert not model.best_choice(1.1 * rows, ranks, 0).feasible.any()


@cache
def planted_for(*seeds: int) -> Instance:
    """Return two GPUs that an optimist has filled, and the twin under the traffic of `seeds`, if there are any."""
    judges = Judges(optimistic, tuple(TwinSettings(horizon_s=400.0, warmup_s=100.0, seed=seed) for seed in seeds))
    return planted_instance("planted-two", judges, rates="mixed", num_gpus=2)


def optimistic(problem: Problem) -> tuple[Problem, Surrogate]:
    """Return the problem with the shipped surrogate, which believes a part of the rates: twice what a GPU serves."""
    seen, surrogate = problem_and_surrogate(problem, RunSettings())
    return seen, inflated(surrogate, 0.6)


def accepted_by_twin(instance: Instance, members: tuple[int, ...], seed: int) -> bool:
    """Return whether the twin accepts adapters on a GPU as the surrogate likes it best."""
    seen, surrogate = optimistic(instance.problem)
    gpu = assign(FeasibilityModel(seen, surrogate), 0, members)
    assert gpu is not None
    settings = TwinSettings(horizon_s=400.0, warmup_s=100.0, seed=seed)
    return TwinVerifier(instance.problem, settings).verify([gpu])[0].is_accepted


def test_a_gpu_that_the_surrogate_fills_is_too_full_for_the_twin() -> None:
    """Without the twin's word, nobody knows that the planted GPUs are enough for it."""
    instance = planted_for()
    assert not all(accepted_by_twin(instance, members, 0) for members in instance.planted)


def test_where_the_twin_judges_it_accepts_every_planted_gpu() -> None:
    """Under the traffic of each seed, and so does the surrogate; every adapter is on one GPU and keeps its name."""
    instance = planted_for(0, 1)
    placed = sorted(index for members in instance.planted for index in members)
    assert placed == list(range(len(instance.problem.adapters)))
    assert len(instance.planted) == instance.planted_gpus == 2
    assert all(accepted_by_twin(instance, members, seed) for members in instance.planted for seed in (0, 1))
    problem, surrogate = optimistic(instance.problem)
    rows = np.array([problem.aggregates[list(members)].sum(axis=0) for members in instance.planted])
    ranks = np.array([problem.ranks[list(members)].max() for members in instance.planted])
    assert FeasibilityModel(problem, surrogate).best_choice(rows, ranks, 0).feasible.all()
    filled = {adapter.name: adapter for adapter in planted_for().problem.adapters}
    assert all(filled[adapter.name] == adapter for adapter in instance.problem.adapters)


def test_a_gpu_that_the_twin_filled_takes_no_more() -> None:
    """Beside its adapters, the smallest of those that were left out is too much."""
    instance, everything = planted_for(0), planted_for()
    names = [adapter.name for adapter in everything.problem.adapters]
    of_name = {name: index for index, name in enumerate(names)}
    for kept, offered in zip(instance.planted, everything.planted, strict=True):
        members = [of_name[instance.problem.adapters[index].name] for index in kept]
        left_out = set(offered) - set(members)
        smallest = min(left_out, key=lambda index: (everything.problem.adapters[index].rate_rps, index))
        assert not accepted_by_twin(everything, tuple(sorted((*members, smallest))), 0)


def test_planting_with_the_twin_repeats_exactly() -> None:
    """A name stands for one problem for those who judge: others make another of it."""
    again = planted_for.__wrapped__(0)
    assert again.fingerprint() == planted_for(0).fingerprint()
    assert len({planted_for().fingerprint(), planted_for(0).fingerprint(), planted_for(0, 1).fingerprint()}) == 3


def test_repair_needs_hardly_more_gpus_than_the_twin_filled() -> None:
    """Of what best fit packs too tightly, the twin in the end accepts at most 2 % more GPUs than were planted."""
    entries = select(patterns=("planted-mixed-g12",))
    made = compare(entries, solvers=("bfd",), seeds=(0,), settings=RunSettings(is_regaining=True), reference="bfd")
    (run,), (instance,) = made.runs, made.instances
    assert run.twin is not None
    assert run.twin.rejected_gpus > 0
    assert instance.planted_gpus is not None
    assert run.final_gpus is not None
    assert run.final_gpus <= 1.02 * instance.planted_gpus


@pytest.mark.parametrize("name", ["planted-hot-g8", "planted-hot-g40", "planted-mixed-g40", "planted-cold-g8"])
def test_best_fit_needs_hardly_more_gpus_than_were_filled(name: str) -> None:
    """With the shipped surrogate alone, at most 2 % more; patterns and the portfolio are never worse than that."""
    (entry,) = select(patterns=(name,))
    settings = RunSettings()
    instance = entry.make(Judges(lambda problem: problem_and_surrogate(problem, settings)))
    problem, surrogate = problem_and_surrogate(instance.problem, settings)
    placement = get_solver("bfd").solve(problem, surrogate, budget=Budget()).placement
    assert placement is not None
    assert placement.num_gpus <= 1.02 * (instance.planted_gpus or 0)


def test_the_papers_rates_are_dealt_in_equal_numbers() -> None:
    """The synthetic sets of arXiv 2602.24044: halving rates from 2.4 to 0.15 and from 0.075 to 0.0047."""
    assert HIGH_RATES == (2.4, 1.2, 0.6, 0.3, 0.15)
    assert LOW_RATES[0] == pytest.approx(0.075)
    assert LOW_RATES[-1] == pytest.approx(0.0047, abs=5e-5)
    instance = made("papers-mixed-r8-16-32-n96")
    rates, counts = np.unique([adapter.rate_rps for adapter in instance.problem.adapters], return_counts=True)
    assert rates.tolist() == sorted(HIGH_RATES + LOW_RATES)
    assert counts.max() - counts.min() <= 1
    _, of_ranks = np.unique(instance.problem.ranks, return_counts=True)
    assert of_ranks.tolist() == [32, 32, 32]


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: entry.name)
def test_traces_are_planned_from_one_part_and_replayed_from_the_next(entry: InstanceEntry, data_dir: Path) -> None:
    """The same adapters; the replayed requests are others than those that the rates were taken from."""
    assert (data_dir / "workloads").is_dir()
    instance = entry.make(ANALYTIC)
    assert instance.replay is not None
    assert [adapter.name for adapter in instance.replay.adapters] == [
        adapter.name for adapter in instance.problem.adapters
    ]
    trace = instance.replay.workload.trace
    assert trace is not None
    assert instance.problem.workload.trace is None
    longest_s = instance.replay.workload.longest_horizon_s
    replayed_rps = np.bincount(trace.adapter, minlength=len(instance.problem.adapters)) / longest_s
    planned_rps = np.array([adapter.rate_rps for adapter in instance.problem.adapters])
    assert not np.allclose(replayed_rps, planned_rps)
    assert replayed_rps.sum() == pytest.approx(planned_rps.sum(), rel=0.5)
    assert entry.make(ANALYTIC).fingerprint() == instance.fingerprint()


def test_without_the_traces_an_entry_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are not part of the package: no variable, or a folder without them."""
    monkeypatch.delenv("PLACER_DATA", raising=False)
    assert "PLACER_DATA is not set" in missing_data()
    monkeypatch.setenv("PLACER_DATA", str(tmp_path))
    assert "must name a folder" in missing_data()
    assert all(bool(entry.unavailable()) == entry.needs_data for entry in catalog())


def test_entries_are_chosen_by_family_pattern_and_size() -> None:
    """What both name is there once; the size leaves out what is larger."""
    chosen = select(families=["sizes"], patterns=["sizes-zipf-*", "papers-low-r8-n64"], max_adapters=100)
    assert [entry.name for entry in chosen] == [
        "papers-low-r8-n64",
        "sizes-discrete-n10",
        "sizes-zipf-n10",
        "sizes-discrete-n100",
        "sizes-zipf-n100",
    ]
    assert set(family_names()) == {"papers", "sizes", "planted", "adversarial", "azure", "servegen"}


@pytest.mark.parametrize(
    ("choice", "fragment"), [({"families": ["paper"]}, "papers"), ({"patterns": ["x*"]}, "'x\\*'")]
)
def test_an_unknown_choice_is_refused(choice: dict[str, list[str]], fragment: str) -> None:
    """With what there is, or how to list it."""
    with pytest.raises(InputError, match=fragment):
        select(**choice)  # type: ignore[arg-type]  # one of the two
