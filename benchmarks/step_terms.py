"""What each term of the step time is worth: one after the other is left out, and all others are fitted again.

``python -m benchmarks.step_terms DATA [--update docs/twin-model.md] [--json] [--smoke]``

DATA is the folder with the micro-benchmarks (``calibration/``) and the measured runs (``runs/real_runs.csv``). For each
shipped profile the coefficients are fitted to the micro-benchmarks alone, as `placer calibrate` does: errors in the
fit, and on regimes that the fit did not see (`regimes_to_leave_out`). What was given to the profile (the scheduler's
log, another profile's host terms) is given here, too. For a profile that was fitted to serving runs, the joint fit with
the same runs is repeated: errors on the micro-benchmarks, and of the runs' time per output token. It simulates each run
under one seed and stops after `JOINT_ITERATIONS`, so that all of it takes minutes; the row of other workloads says how
far two such fits of the same terms are apart by chance.

`--update` replaces the tables of the document; without it, they are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.document_tables import number, print_or_update, table
from twin.calibration.observations import StepObservations
from twin.calibration.profile_fit import regimes_to_leave_out
from twin.calibration.serving_fit import fit_with_runs
from twin.calibration.step_fit import fit_step_time, intervals, leave_one_out
from twin.calibration.tables import step_observations
from twin.errors import InputError, PlacerError
from twin.parallel import available_cores
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.step_time import COEFFICIENT_NAMES
from twin.validation.front_end import FrontEnd
from twin.validation.runs import MeasuredRun, read_runs

JOINT_ITERATIONS = 3
JOINT_SEED, OTHER_SEED = 0, 1
# A regime that errs more by less than this without a term is not named.
LEAST_CHANGE_PERCENT = 0.05
NOTHING = "nothing"
OTHER_WORKLOADS = "nothing, other workloads"
SMOKE_HORIZON_S, SMOKE_RUNS, SMOKE_TERMS = 60.0, 2, ("slot_lookup_ms",)


@dataclass(frozen=True)
class AloneErrors:
    """A fit to the micro-benchmarks alone, in mean absolute percent.

    Attributes
    ----------
    in_fit_percent
        Over all measurements, in the fit.
    median_percent, worst_percent, worst_regime
        Over the regimes, each left out of a fit.
    hurt_regime, hurt_from_percent, hurt_to_percent
        The regime that errs most more without the term than with it, and its errors; ``None``: no regime does by
        `LEAST_CHANGE_PERCENT`.
    """

    in_fit_percent: float
    median_percent: float
    worst_percent: float
    worst_regime: str
    hurt_regime: str | None = None
    hurt_from_percent: float | None = None
    hurt_to_percent: float | None = None


@dataclass(frozen=True)
class JointErrors:
    """A fit to micro-benchmarks and serving runs, in mean absolute percent.

    Attributes
    ----------
    benchmarks_percent
        Over all measurements of the micro-benchmarks.
    tpot_mean_percent, tpot_median_percent
        Of the runs' time per output token.
    """

    benchmarks_percent: float
    tpot_mean_percent: float
    tpot_median_percent: float


@dataclass(frozen=True)
class TermWorth:
    """What is lost without one term of a profile.

    Attributes
    ----------
    left_out
        The term, `NOTHING`, or `OTHER_WORKLOADS`.
    shown_by
        What says that the term is not 0; empty without a term.
    alone_ms
        Its value and interval in the fit of all terms to the micro-benchmarks alone; ``None`` for a given one.
    alone, joint
        Errors without it; ``None`` where nothing was fitted so.
    """

    profile: str
    left_out: str
    shown_by: str = ""
    alone_ms: tuple[float, float, float] | None = None
    alone: AloneErrors | None = None
    joint: JointErrors | None = None


def given_terms(profile: PerformanceProfile) -> dict[str, float]:
    """Return the coefficients of a profile that were not fitted, by name."""
    return {name: getattr(profile.step_time, name) for name in profile.provenance["step_time"]["not_fitted"]}


def shown_by(profile: PerformanceProfile, term: str, alone: Mapping[str, tuple[float, float]]) -> str:
    """Return what says that a term is not 0.

    Parameters
    ----------
    alone
        Intervals of a fit to the micro-benchmarks alone, by name.
    """
    report = profile.provenance["step_time"]
    taken_over = report.get("taken_over")
    if taken_over and term in taken_over["terms"]:
        return f"given: {taken_over['profile']}"
    if term in report["not_fitted"]:
        return "given: scheduler's log"
    if alone[term][0] > 0.0:
        return "micro-benchmarks"
    if "serving_runs" in report and report["intervals_95"][term][0] > 0.0:
        return "serving runs only"
    return "nothing: 0 is possible"


def alone_errors(
    observations: StepObservations, given: Mapping[str, float], *, terms: Sequence[str] = COEFFICIENT_NAMES
) -> dict[str, AloneErrors]:
    """Return the errors of fits to the micro-benchmarks without each of `terms`, and without `NOTHING` (first)."""
    regimes = regimes_to_leave_out(observations)
    found: dict[str, AloneErrors] = {}
    complete: dict[str, float] = {}
    for term in (NOTHING, *terms):
        fixed = dict(given) if term == NOTHING else {**given, term: 0.0}
        left_out = {error.regime: error.mape_percent for error in leave_one_out(observations, regimes, fixed=fixed)}
        complete = complete or left_out
        worst = max(left_out, key=left_out.__getitem__)
        hurt = max(left_out, key=lambda regime: left_out[regime] - complete[regime])
        errors = AloneErrors(
            in_fit_percent=fit_step_time(observations, fixed=fixed).errors[-1].mape_percent,
            median_percent=float(np.median(list(left_out.values()))),
            worst_percent=left_out[worst],
            worst_regime=worst,
        )
        if left_out[hurt] - complete[hurt] >= LEAST_CHANGE_PERCENT:
            errors = replace(errors, hurt_regime=hurt, hurt_from_percent=complete[hurt], hurt_to_percent=left_out[hurt])
        found[term] = errors
    return found


def joint_errors(
    observations: StepObservations,
    runs: Sequence[MeasuredRun],
    profile: PerformanceProfile,
    *,
    fixed: Mapping[str, float],
    seed: int = JOINT_SEED,
    iterations: int = JOINT_ITERATIONS,
) -> JointErrors:
    """Return the errors of a fit to micro-benchmarks and serving runs."""
    joint = fit_with_runs(
        observations,
        runs,
        profile,
        FrontEnd(),
        fixed=fixed,
        seeds=(seed,),
        iterations=iterations,
        workers=available_cores(),
    )
    errors = np.abs(joint.tpot_error_percent)
    return JointErrors(joint.fit.errors[-1].mape_percent, float(errors.mean()), float(np.median(errors)))


def fitted_runs(profile: PerformanceProfile, data: Path) -> tuple[MeasuredRun, ...]:
    """Return the serving runs that a profile was fitted to, from the table in a folder; none for one that saw none.

    Raises
    ------
    InputError
        When the table lacks one of them or cannot be read.
    """
    fitted = profile.provenance["step_time"].get("serving_runs")
    if fitted is None:
        return ()
    path = data / "runs" / "real_runs.csv"
    found = {run.run_id: run for run in read_runs(path).runs}
    missing = [name for name in fitted["run_ids"] if name not in found]
    if missing:
        raise InputError(
            f"the table must have the runs that {profile.name} was fitted to. {path} lacks {', '.join(missing)}.",
            file=str(path),
            field="run_id",
            hint="give the folder that the profile was made from",
        )
    return tuple(found[name] for name in fitted["run_ids"])


def term_worths(profile: PerformanceProfile, data: Path, *, is_smoke: bool) -> list[TermWorth]:
    """Leave out every term of a profile in turn.

    Raises
    ------
    PlacerError
        When a table is missing or cannot be used.
    """
    folder = data / "calibration" if (data / "calibration").is_dir() else data
    observations = step_observations(folder, profile.model)
    given, runs = given_terms(profile), fitted_runs(profile, data)
    alone = alone_errors(observations, given)
    values = fit_step_time(observations, fixed=given).coefficients
    bounds = intervals(observations, fixed=given)
    rows = [TermWorth(profile.name, NOTHING, alone=alone[NOTHING])]
    rows += [
        TermWorth(
            profile.name,
            term,
            shown_by=shown_by(profile, term, bounds),
            alone_ms=None if term in given else (values[term], *bounds[term]),
            alone=alone[term],
        )
        for term in COEFFICIENT_NAMES
    ]
    if not runs:
        return rows
    iterations, terms = JOINT_ITERATIONS, COEFFICIENT_NAMES
    if is_smoke:
        runs = tuple(replace(run, total_time_s=SMOKE_HORIZON_S) for run in runs[:SMOKE_RUNS])
        iterations, terms = 1, SMOKE_TERMS

    def joint(name: str, fixed: Mapping[str, float], seed: int = JOINT_SEED) -> JointErrors:
        print(f"{profile.name}: fitting with serving runs, left out: {name}", file=sys.stderr)
        return joint_errors(observations, runs, profile, fixed=fixed, seed=seed, iterations=iterations)

    rows.insert(1, TermWorth(profile.name, OTHER_WORKLOADS, joint=joint(OTHER_WORKLOADS, given, OTHER_SEED)))
    fixed = {NOTHING: given} | {term: {**given, term: 0.0} for term in terms}
    return [
        replace(row, joint=joint(row.left_out, fixed[row.left_out])) if row.left_out in fixed else row for row in rows
    ]


def worth_table(rows: Sequence[TermWorth]) -> list[str]:
    """Return the errors of one profile without each term."""
    has_runs = any(row.joint for row in rows)
    header = [
        "left out",
        "shown by",
        "alone, ms",
        "in the fit",
        "left out: median",
        "worst",
        "hurt most: with → without",
    ]
    if has_runs:
        header += ["joint: benchmarks", "joint: TPOT, median (mean)"]
    return table(header, [_cells(row, has_runs=has_runs) for row in rows])


def _cells(row: TermWorth, *, has_runs: bool) -> list[str]:
    is_term = row.left_out in COEFFICIENT_NAMES
    cells = [f"`{row.left_out}`" if is_term else row.left_out, row.shown_by]
    cells.append(f"{row.alone_ms[0]:.3g} [{row.alone_ms[1]:.3g}, {row.alone_ms[2]:.3g}]" if row.alone_ms else "")
    if row.alone is None:
        cells += [""] * 4
    else:
        hurt = ""
        if row.alone.hurt_regime is not None:
            change = f"{number(row.alone.hurt_from_percent)} → {number(row.alone.hurt_to_percent)}"
            hurt = f"{row.alone.hurt_regime}: {change}"
        worst = f"{number(row.alone.worst_percent)} ({row.alone.worst_regime})"
        cells += [number(row.alone.in_fit_percent), number(row.alone.median_percent), worst, hurt]
    if has_runs:
        joint = row.joint
        cells.append(number(joint.benchmarks_percent) if joint else "")
        cells.append(f"{number(joint.tpot_median_percent)} ({number(joint.tpot_mean_percent)})" if joint else "")
    return cells


def main(arguments: list[str] | None = None) -> int:
    """Fit, then print the tables or JSON, or put the tables into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with calibration/ and runs/")
    parser.add_argument("--update", type=Path, help="document whose tables are replaced")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--smoke", action="store_true", help=f"one joint iteration over {SMOKE_HORIZON_S:g} s, to see that it runs"
    )
    options = parser.parse_args(arguments)
    if options.update and (options.smoke or options.json):
        parser.error("--update writes the measured tables into a document: leave out --smoke and --json.")
    try:
        profiles = [load_profile(name) for name in shipped_profiles()]
        worths = {profile.name: term_worths(profile, options.data, is_smoke=options.smoke) for profile in profiles}
        if options.json:
            print(json.dumps([asdict(row) for rows in worths.values() for row in rows], indent=2, sort_keys=True))
            return 0
        found = {f"terms left out {name}": worth_table(rows) for name, rows in worths.items()}
        print_or_update(found, options.update)
    except PlacerError as error:
        parser.error(error.message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
