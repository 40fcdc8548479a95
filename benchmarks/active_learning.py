"""Rejected GPUs as training data: how many of a surrogate's proposals the twin rejects, round by round.

``python -m benchmarks.active_learning ROWS [ROWS ...] [--profile NAME] [--rounds 4] [--update docs/training.md]``

A surrogate is trained on ROWS, folders of ``placer dataset``. In each round it packs new problems of the families of
`benchmarks.packed_sets`; every GPU that the twin is asked about on the way, rejected or accepted, is recorded; and the
next round's surrogate is trained on ROWS and all records so far. What counts is the first proposal: the share of its
GPUs that the twin rejects before anything is repaired. Each round also packs problems that are held out: the same ones
in every round, never recorded. Because a surrogate that is only more timid is rejected less, too, the table has the
GPUs that are left after repair. With ``--control ROWS2`` (a folder of another seed), another surrogate is trained in
each round with as many of its rows in place of the records, and packs the held-out problems.

Options: ``--problems 2`` of each family and round, ``--held-out 4`` of each family, ``--gpus 6`` of load in each,
``--margin 0`` or ``--risk 0.05`` (the threshold that each surrogate's own file gives), ``--family boosting``
(repeatable) and ``--trials 1`` of the training, ``--seed 0``, ``--output FOLDER`` for models and records (continued if
it exists), ``--smoke``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from benchmarks.document_tables import print_or_update, table
from benchmarks.packed_sets import DEFAULT_PROFILE, FAMILIES, make_problem
from placer.events import FleetChanged, PlanEvent
from placer.planning import plan
from predictors.dataset import ROWS_PER_SHARD, load_dataset, sample_dataset
from predictors.dataset_folder import Manifest, shard_name
from predictors.recorded_gpus import read_recorded
from predictors.training import TrainingReport, TrainingSettings, train_surrogate
from solvers.problem import Problem
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile, load_profile

# Seeds of problems: rounds count from the first, held-out problems from the second.
ROUND_SEEDS, HELD_OUT_SEEDS = 1_000, 900_000


@dataclass(frozen=True)
class Settings:
    """What is asked for; see the module.

    Attributes
    ----------
    horizon_s, warmup_s
        Of the twin when it judges plans.
    """

    rows: tuple[Path, ...]
    control_rows: Path | None
    profile: str = DEFAULT_PROFILE
    num_rounds: int = 4
    num_problems: int = 2
    num_held_out: int = 4
    load_gpus: float = 6.0
    margin: float = 0.0
    risk: float | None = None
    families: tuple[str, ...] = ("boosting",)
    trials: int = 1
    seed: int = 0
    horizon_s: float = 1800.0
    warmup_s: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """What the twin said about the plan for a problem, or about several.

    Attributes
    ----------
    proposed, rejected
        GPUs of the first proposal, and those of them that the twin rejected.
    repaired
        GPUs after repair.
    failed
        Plans that the twin rejects after repair.
    twin_calls
        GPUs that the twin was asked about.
    """

    proposed: int = 0
    rejected: int = 0
    repaired: int = 0
    failed: int = 0
    twin_calls: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        """Return the outcome of both."""
        return Outcome(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def rejected_share(self) -> str:
        """Rejected share of the first proposals, as text."""
        return f"{100.0 * self.rejected / max(self.proposed, 1):.0f} % ({self.rejected} of {self.proposed})"


# By problem; none where the surrogate refuses an adapter that is alone on a GPU, and so has no plan.
Outcomes = tuple[Outcome | None, ...]


@dataclass(frozen=True)
class Round:
    """A round: what its surrogate was trained with, and what the twin said about its plans.

    Attributes
    ----------
    recorded
        GPUs that had been recorded when it was trained.
    new, held_out, control
        Outcomes on problems of its own, on those held out, and of the control (if any) on those.
    """

    number: int
    recorded: int
    report: TrainingReport
    new: Outcomes
    held_out: Outcomes
    control: Outcomes | None


@dataclass
class _FirstProposal:
    """Observes planning, and remembers how many GPUs the first placement had."""

    num_gpus: int | None = field(default=None)

    def __call__(self, event: PlanEvent) -> None:
        if isinstance(event, FleetChanged) and self.num_gpus is None:
            self.num_gpus = event.num_gpus


def problems_of(
    profile: PerformanceProfile, *, first_seed: int, count: int, load_gpus: float
) -> list[tuple[int, Problem]]:
    """Return `count` problems of each family with their seeds, which start at `first_seed`."""
    seeds = range(first_seed, first_seed + count)
    return [
        (seed, make_problem(family, profile, load_gpus=load_gpus, seed=seed)) for family in FAMILIES for seed in seeds
    ]


def plan_all(
    problems: Sequence[tuple[int, Problem]], surrogate: Path, settings: Settings, *, record: Path | None
) -> Outcomes:
    """Plan problems with a surrogate, repair included, and return what the twin said about each plan."""
    return tuple(_plan_one(seed, problem, surrogate, settings, record=record) for seed, problem in problems)


def _plan_one(
    seed: int, problem: Problem, surrogate: Path, settings: Settings, *, record: Path | None
) -> Outcome | None:
    first = _FirstProposal()
    try:
        made = plan(
            problem,
            solver="bfd",
            surrogate=surrogate.resolve(),
            budget=None,
            seed=seed,
            margin=settings.margin,
            risk=settings.risk,
            improve=False,
            horizon_s=settings.horizon_s,
            warmup_s=settings.warmup_s,
            record_rejections=record,
            observer=first,
        )
    except SurrogateError as error:
        print(f"no plan: {error.message}", file=sys.stderr)
        return None
    assert first.num_gpus is not None
    return Outcome(
        proposed=first.num_gpus,
        rejected=made.repair.rejected_at_first,
        repaired=made.num_gpus,
        failed=int(made.verdict != "accepted"),
        twin_calls=made.repair.twin_calls,
    )


def total(outcomes: Outcomes, problems: Collection[int] | None = None) -> Outcome:
    """Return the sum of outcomes where there is a plan, of all problems or of those at some positions."""
    chosen = [outcome for index, outcome in enumerate(outcomes) if problems is None or index in problems]
    return sum((outcome for outcome in chosen if outcome is not None), start=Outcome())


def run(settings: Settings, folder: Path, *, say: Callable[[str], None]) -> list[Round]:
    """Return the rounds; models and records are kept in `folder`."""
    profile = load_profile(settings.profile)
    held_out = problems_of(
        profile,
        first_seed=HELD_OUT_SEEDS + settings.seed,
        count=settings.num_held_out,
        load_gpus=settings.load_gpus,
    )
    rounds: list[Round] = []
    recorded: list[Path] = []
    for number in range(settings.num_rounds):
        say(f"round {number}: training")
        report = _train(settings, profile, folder / f"round-{number}.onnx", rows=settings.rows, recorded=recorded)
        first_seed = settings.seed + ROUND_SEEDS * (number + 1)
        own = problems_of(profile, first_seed=first_seed, count=settings.num_problems, load_gpus=settings.load_gpus)
        say(f"round {number}: planning {len(own)} new problems")
        record = folder / f"recorded-{number}"
        num_recorded = sum(len(read_recorded(path)) for path in recorded)
        new = plan_all(own, report.file, settings, record=record)
        say(f"round {number}: {total(new).rejected_share} rejected; planning {len(held_out)} problems held out")
        unseen = plan_all(held_out, report.file, settings, record=None)
        say(f"round {number}: {total(unseen).rejected_share} rejected")
        control = _control(settings, profile, folder, report, held_out, number=number)
        if control is not None:
            say(f"round {number}: {total(control).rejected_share} rejected with other rows in place of the records")
        rounds.append(Round(number, num_recorded, report, new, unseen, control))
        recorded.append(record)
    return rounds


def _control(
    settings: Settings,
    profile: PerformanceProfile,
    folder: Path,
    report: TrainingReport,
    held_out: Sequence[tuple[int, Problem]],
    *,
    number: int,
) -> Outcomes | None:
    """Return what comes of as many rows of sampled sets as there are rows of records; None without either."""
    if settings.control_rows is None or report.facts["recorded"] is None:
        return None
    part = first_rows(settings.control_rows, folder / f"control-{number}", report.facts["recorded"]["rows"])
    trained = _train(settings, profile, folder / f"control-{number}.onnx", rows=(*settings.rows, part), recorded=())
    return plan_all(held_out, trained.file, settings, record=None)


def _train(
    settings: Settings,
    profile: PerformanceProfile,
    output: Path,
    *,
    rows: Sequence[Path],
    recorded: Sequence[Path],
) -> TrainingReport:
    training = TrainingSettings(settings.families, max_trials=settings.trials, seed=settings.seed)
    if settings.risk is None:
        # Nobody asks for the thresholds of its file.
        training = replace(training, risk_gpus=0)
    return train_surrogate(rows, profile, output=output, rejections=recorded, settings=training)


def first_rows(source: Path, target: Path, num_rows: int) -> Path:
    """Make `target` a data set of the first shards of `source` that have at least `num_rows` rows together."""
    _, manifest = load_dataset(source)
    shards, found = [], 0
    for entry in manifest.shards:
        if found >= num_rows:
            break
        shards.append(entry)
        found += entry.rows - entry.unstartable_rows
    if found < num_rows:
        print(f"the control has {found} rows only, for {num_rows} of recorded GPUs", file=sys.stderr)
    target.mkdir(exist_ok=True)
    for entry in shards:
        shutil.copyfile(source / shard_name(entry.shard), target / shard_name(entry.shard))
    part: Manifest = manifest.model_copy(update={"shards": tuple(shards), "num_shards": len(shards)})
    part.write(target)
    return target


def tables(rounds: Sequence[Round], settings: Settings) -> Mapping[str, list[str]]:
    """Return the table of the rounds under its name, with the command below it."""
    header = [
        "round",
        "recorded GPUs",
        "their rows",
        "rejected, new problems",
        "rejected, held out",
        "GPUs after repair",
    ]
    header += ["twin calls"]
    series = [one.held_out for one in rounds] + [one.control for one in rounds if one.control is not None]
    planned = {index for index in range(len(series[0])) if all(outcomes[index] is not None for outcomes in series)}
    has_control = any(one.control is not None for one in rounds)
    if has_control:
        header += ["rejected, control", "GPUs, control"]
    rows = []
    for one in rounds:
        recorded = one.report.facts["recorded"]
        unseen = total(one.held_out, planned)
        cells = [
            str(one.number),
            str(one.recorded),
            str(recorded["rows"] if recorded is not None else 0),
            total(one.new).rejected_share,
            unseen.rejected_share,
            _gpus(unseen),
            str(unseen.twin_calls),
        ]
        if has_control and one.control is None:
            cells += ["-", "-"]
        elif one.control is not None:
            other = total(one.control, planned)
            cells += [other.rejected_share, _gpus(other)]
        rows.append(cells)
    command = (
        f"`python -m benchmarks.active_learning {' '.join(path.name for path in settings.rows)}"
        f"{f' --control {settings.control_rows.name}' if settings.control_rows else ''} --profile {settings.profile} "
        f"--rounds {settings.num_rounds} --problems {settings.num_problems} --held-out {settings.num_held_out} "
        f"--gpus {settings.load_gpus:g} "
        f"{f'--margin {settings.margin:g}' if settings.risk is None else f'--risk {settings.risk:g}'} "
        f"--seed {settings.seed} --trials {settings.trials} "
        f"{' '.join(f'--family {name}' for name in settings.families)}`"
    )
    base = rounds[0].report.facts
    labels = base["datasets"][0]
    note = (
        f"{command}, on {base['rows']:,} rows of {base['scenarios']:,} sets, labelled with {labels['seeds']} "
        f"{'simulation' if labels['seeds'] == 1 else 'simulations'} of {labels['horizon_s']:g} s each."
    )
    if len(planned) < len(series[0]):
        note += f" Held out: {len(planned)} of {len(series[0])} problems, those of which every surrogate made a plan."
    return {f"active learning, {settings.profile}": [*table(header, rows), "", note]}


def _gpus(outcome: Outcome) -> str:
    return str(outcome.repaired) + (f" ({outcome.failed} plans rejected)" if outcome.failed else "")


def _smoke(settings: Settings, folder: Path) -> Settings:
    """Return settings that end within a minute or two, on rows of very short simulations made here."""
    rows = folder / "rows"
    profile = load_profile(settings.profile)
    sample_dataset(profile, rows=4 * ROWS_PER_SHARD, output=rows, seeds=1, horizon_s=40.0, warmup_s=10.0)
    return replace(
        settings,
        rows=(rows,),
        num_rounds=2,
        num_problems=1,
        num_held_out=1,
        load_gpus=2.0,
        families=("tree",),
        horizon_s=120.0,
        warmup_s=20.0,
    )


def main(arguments: Sequence[str]) -> None:
    """Train, plan, record, train again; print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=Path, help="folders of `placer dataset`")
    parser.add_argument("--control", type=Path, help="folder of other rows, to be learned from in place of records")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="shipped profile or JSON file")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--problems", type=int, default=2, help="of each family and round")
    parser.add_argument("--held-out", type=int, default=4, help="problems of each family that are never recorded")
    parser.add_argument("--gpus", type=float, default=6.0, help="load of each problem, in GPUs")
    parser.add_argument("--margin", type=float, default=0.0, help="share by which rates are raised for the surrogate")
    parser.add_argument("--risk", type=float, help="take each surrogate's own threshold for this risk instead")
    parser.add_argument("--family", action="append", help="of models; repeatable")
    parser.add_argument("--trials", type=int, default=1, help="fits of each family of models")
    parser.add_argument("--seed", type=int, default=0, help="of problems, simulations and fits")
    parser.add_argument("--output", type=Path, help="folder for models and records; a temporary one by default")
    parser.add_argument("--smoke", action="store_true", help="two small rounds on rows that are made here")
    parser.add_argument("--update", type=Path, help="document to put the table into")
    options = parser.parse_args(arguments)
    if not options.rows and not options.smoke:
        parser.error("give a folder of `placer dataset`, or --smoke")
    settings = Settings(
        rows=tuple(options.rows),
        control_rows=options.control,
        profile=options.profile,
        num_rounds=options.rounds,
        num_problems=options.problems,
        num_held_out=options.held_out,
        load_gpus=options.gpus,
        margin=options.margin,
        risk=options.risk,
        families=tuple(options.family or ("boosting",)),
        trials=options.trials,
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.smoke:
            settings = _smoke(settings, folder)
        rounds = run(settings, folder, say=lambda text: print(text, file=sys.stderr, flush=True))
        print_or_update(tables(rounds, settings), options.update)


if __name__ == "__main__":
    main(sys.argv[1:])
