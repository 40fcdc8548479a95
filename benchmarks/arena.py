"""Every solver on every family of instances with equal budgets, and what that says about the published greedy.

``python -m benchmarks.arena [--output FOLDER] [--update docs/arena.md]``

All solvers of the registry run on the instances of ``placer compare --list-instances`` (those from public traces where
PLACER_DATA names their folder), with the shipped surrogate; the twin judges and repairs each placement as it does for
plans, and looks for a way without the GPUs that repair opened. A run is kept in the folder as soon as it is done, and
the same command goes on there. Options: ``--family`` and
``--solver`` (repeatable; default: all), ``--max-adapters``, ``--min-adapters`` (only larger instances, whose tables are
"large arena, ..." in the document), ``--budget 10`` seconds for each run, ``--seeds 1``,
``--subject`` (the solver that the statement is about; default: the one that plans are made with), ``--workers 1``,
``--short`` (a few small instances over short simulations: seconds).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.document_tables import number, print_or_update, table
from placer.compare import CompareProgress, compare
from placer.comparison_document import Comparison, RunRecord
from placer.comparison_report import write_comparison
from placer.comparison_run import RunSettings
from placer.comparison_summary import over_bound
from placer.comparison_tables import instances_table, markdown_lines, run_line, summary_table
from placer.instances.catalog import family_names, select
from placer.planning import DEFAULT_SOLVER
from placer.wording import counted
from solvers.budget import Budget

# The published algorithm with either of its paddings; the better of the two is what others have to beat.
PUBLISHED = ("greedy", "greedy-intended")
# Where fewer GPUs are promised: the papers' sets with high rates in them, from this many adapters on.
PROMISED_RATES = ("papers-high-", "papers-mixed-")
PROMISED_FROM = 96
SHORT_INSTANCES = ("papers-mixed-r8-16-32-n96", "sizes-discrete-n10", "adversarial-duplicates-n240")


@dataclass(frozen=True)
class Duel:
    """A solver against the published greedy over some instances and seeds.

    Attributes
    ----------
    fewer, equal, more
        Runs with fewer, as many, and more GPUs that the twin accepts; no placement is more than any.
    savings
        1 - GPUs / the greedy's GPUs of each run where both have a placement.
    worse
        Instances with more GPUs.
    """

    fewer: int
    equal: int
    more: int
    savings: tuple[float, ...]
    worse: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Return the number of runs."""
        return self.fewer + self.equal + self.more

    @property
    def mean_saving(self) -> float | None:
        """Return the mean saving; ``None`` where nothing can be compared."""
        return sum(self.savings) / len(self.savings) if self.savings else None


def duel(comparison: Comparison, solver: str, *, only_promised: bool) -> Duel:
    """Compare a solver with the better of the published greedy's paddings, run by run.

    Parameters
    ----------
    only_promised
        Only the instances on which fewer GPUs are promised.
    """
    sizes = {instance.name: instance.num_adapters for instance in comparison.instances}
    published = {
        (run.instance, run.seed): _fewest(
            other for other in comparison.runs if other.solver in PUBLISHED and _question(other) == _question(run)
        )
        for run in comparison.runs
        if run.solver == PUBLISHED[0]
    }
    outcomes = {"fewer": 0, "equal": 0, "more": 0}
    savings = []
    worse = []
    for run in comparison.runs:
        if run.solver != solver or _question(run) not in published:
            continue
        if only_promised and not (run.instance.startswith(PROMISED_RATES) and sizes[run.instance] >= PROMISED_FROM):
            continue
        mine, other = _fewest([run]), published[_question(run)]
        outcomes["fewer" if mine < other else "equal" if mine == other else "more"] += 1
        if mine > other:
            worse.append(run.instance)
        if max(mine, other) < float("inf"):
            savings.append(1.0 - mine / other)
    return Duel(**outcomes, savings=tuple(savings), worse=tuple(dict.fromkeys(worse)))


def statement(comparison: Comparison, subject: str) -> list[str]:
    """Return in sentences whether `subject` needs fewer GPUs than the published greedy wherever that is promised."""
    promised, everywhere = (duel(comparison, subject, only_promised=only) for only in (True, False))
    holds = promised.total > 0 and promised.fewer == promised.total and everywhere.more == 0
    saving = "nothing to compare" if everywhere.mean_saving is None else f"{100.0 * everywhere.mean_saving:.1f} %"
    where = (
        "nothing to compare"
        if promised.mean_saving is None
        else f"{100.0 * promised.mean_saving:.1f} % on those with high rates"
    )
    intro = (
        f"`{subject}` against the published greedy, the better of its two paddings, with the same surrogate; GPUs that "
        "the twin accepts:"
    )
    verdict = (
        f"Fewer GPUs on every mixed or high instance of at least {PROMISED_FROM} adapters and nowhere more: "
        f"**{'holds' if holds else 'does not hold'}**."
    )
    return [
        intro,
        "",
        _sentence(f"with mixed or high rates and at least {PROMISED_FROM} adapters", promised),
        _sentence("in all", everywhere),
        f"- mean saving {saving} ({where}).",
        "",
        verdict,
    ]


def _sentence(which: str, result: Duel) -> str:
    text = (
        f"- {counted(result.total, 'run')} {which}: fewer GPUs on {result.fewer}, as many on {result.equal}, more on "
        f"{result.more}"
    )
    return f"{text} ({', '.join(result.worse)});" if result.worse else f"{text};"


def tables(comparison: Comparison, subject: str, command: str, *, part: str = "arena") -> Mapping[str, list[str]]:
    """Return the tables of the document under their names, which begin with `part`."""
    return {
        f"{part}, statement": statement(comparison, subject),
        f"{part}, duels": _duels(comparison),
        f"{part}, solvers": [*markdown_lines(summary_table(comparison)), "", f"`{command}`."],
        f"{part}, families": _families(comparison),
        f"{part}, instances": markdown_lines(instances_table(comparison)),
    }


def _duels(comparison: Comparison) -> list[str]:
    header = ("solver", "fewer", "as many", "more", "mean saving", "fewer, promised", "mean saving, promised")
    rows = []
    for summary in comparison.solvers:
        if summary.solver in PUBLISHED:
            continue
        everywhere = duel(comparison, summary.solver, only_promised=False)
        promised = duel(comparison, summary.solver, only_promised=True)
        rows.append(
            (
                summary.solver,
                str(everywhere.fewer),
                str(everywhere.equal),
                str(everywhere.more),
                _percent(everywhere.mean_saving),
                f"{promised.fewer} of {promised.total}",
                _percent(promised.mean_saving),
            )
        )
    return table(header, rows)


def _families(comparison: Comparison) -> list[str]:
    """Return for each family the mean of GPUs / bound - 1 of each solver; a dash where some run has no placement."""
    names = [summary.solver for summary in comparison.solvers]
    instances = {instance.name: instance for instance in comparison.instances}
    rows = []
    for family in dict.fromkeys(instance.family for instance in comparison.instances):
        members = [instance for instance in comparison.instances if instance.family == family]
        cells = []
        for name in names:
            runs = [run for run in comparison.runs if run.solver == name and instances[run.instance].family == family]
            shares = [over_bound(run, instances[run.instance]) for run in runs]
            known = [share for share in shares if share is not None]
            cells.append(_percent(sum(known) / len(known)) if known and len(known) == len(runs) else "-")
        rows.append((family, str(len(members)), *cells))
    return table(("GPUs over the bound", "instances", *names), rows)


def _fewest(runs: Iterable[RunRecord]) -> float:
    """Return the fewest GPUs to deploy of some runs of one question; infinite: none has a placement."""
    counts = [run.final_gpus for run in runs]
    return float(min((count for count in counts if count is not None), default=float("inf")))


def _question(run: RunRecord) -> tuple[str, int]:
    return run.instance, run.seed


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{number(100.0 * value, 1)} %"


def _say(progress: CompareProgress) -> None:
    text = "" if progress.latest is None else f": {run_line(progress.latest)}"
    print(f"{progress.finished} of {progress.total}{text}", file=sys.stderr, flush=True)


def command_of(options: argparse.Namespace) -> str:
    """Return the command with what decides the tables: not where they, and the runs, are written."""
    words = ["python -m benchmarks.arena"]
    for name in ("family", "solver", "max_adapters", "min_adapters", "budget", "seeds", "subject", "short"):
        value = getattr(options, name)
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value:
            words += [f"{option} {entry}" for entry in (value if isinstance(value, list) else [value])]
    return " ".join(words)


def main() -> None:
    """Run the arena, and print its tables or put them into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", action="append", help="only this family; repeatable")
    parser.add_argument("--solver", action="append", help="only this solver; repeatable (the greedy ones are added)")
    parser.add_argument("--max-adapters", type=int, help="leave larger instances out")
    parser.add_argument("--min-adapters", type=int, help="leave smaller instances out; fills the tables of large ones")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each run")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each run")
    parser.add_argument("--subject", default=DEFAULT_SOLVER, help="solver that the statement is about")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, help="folder to keep runs in")
    parser.add_argument("--short", action="store_true", help="a few small instances over short simulations")
    parser.add_argument("--update", type=Path, help="document to put the tables into")
    options = parser.parse_args()
    settings = RunSettings(budget=Budget(options.budget), is_regaining=True)
    entries = select(families=options.family or family_names(), max_adapters=options.max_adapters)
    if options.min_adapters is not None:
        entries = tuple(entry for entry in entries if entry.num_adapters >= options.min_adapters)
    if options.short:
        settings = replace(settings, budget=Budget(0.5), horizon_s=400.0, warmup_s=100.0)
        entries = select(patterns=SHORT_INSTANCES)
    solvers = (*PUBLISHED, *(name for name in options.solver if name not in PUBLISHED)) if options.solver else ()
    comparison = compare(
        entries,
        solvers=solvers,
        seeds=range(options.seeds),
        settings=settings,
        output=options.output,
        workers=options.workers,
        observer=_say,
    )
    if options.output is not None:
        write_comparison(comparison, options.output)
    for warning in comparison.warnings:
        print(warning, file=sys.stderr)
    part = "arena" if options.min_adapters is None else "large arena"
    print_or_update(tables(comparison, options.subject, command_of(options), part=part), options.update)


if __name__ == "__main__":
    main()
