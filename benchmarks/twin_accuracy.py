"""How well the twin predicts measured serving runs: the tables of docs/twin-model.md.

``python -m benchmarks.twin_accuracy DATA [--update docs/twin-model.md] [--seeds 3] [--smoke]``

DATA is the folder with the measured runs (``runs/``) and micro-benchmarks (``calibration/``). The runs with
``split=valid`` judge two profiles: the shipped one, fitted to the micro-benchmarks and the runs with ``split=calib``,
and one fitted to the micro-benchmarks alone, which is what a new GPU gets. The published twin's outputs exist for the
calib runs and are scored there. `--update` replaces the tables between the markers of the document; without it they are
printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.document_tables import number, print_or_update, table
from placer.validation import Validation, validate_twin
from twin.calibration.profile_fit import calibrate
from twin.errors import InputError
from twin.profile import PerformanceProfile, StepTimeCoefficients, load_profile, save_profile, shipped_profiles
from twin.validation.quantities import SCORED_QUANTITIES
from twin.validation.scores import ErrorSummary, GroupScore

MODEL = "llama-3.1-8b"
SMOKE_HORIZON_S = 60.0


def terms_table(profiles: list[PerformanceProfile]) -> list[str]:
    """Return the coefficients of the profiles with their intervals."""
    rows = []
    for name, field in StepTimeCoefficients.model_fields.items():
        row = [f"`{name}`", str(field.description)]
        for profile in profiles:
            bounds = profile.provenance["step_time"]["intervals_95"].get(name)
            spread = f"[{bounds[0]:.3g}, {bounds[1]:.3g}]" if bounds else "given"
            row.append(f"{getattr(profile.step_time, name):.3g} {spread}")
        rows.append(row)
    return table(["term (ms)", "what it is per", *(profile.name for profile in profiles)], rows)


def fit_table(profile: PerformanceProfile) -> list[str]:
    """Return the errors on the micro-benchmarks: in the fit, and of fits that never saw the regime."""
    report = profile.provenance["step_time"]
    rows = [
        [kind, regime, str(error["rows"]), number(error["mape"]), number(error["bias"], sign=True)]
        for kind, key in (("in the fit", "in_sample_percent"), ("left out of it", "left_out_percent"))
        for regime, error in report[key].items()
    ]
    return table(["", "regime", "measurements", "MAPE %", "bias %"], rows)


def errors_table(columns: list[tuple[str, GroupScore]]) -> list[str]:
    """Return half-SMAPE (median, bias, spread between seeds) of each quantity for several judgements."""

    def cell(error: ErrorSummary) -> str:
        median, bias = number(error.median_percent), number(error.bias_percent, 1, sign=True)
        return f"**{number(error.half_smape_percent)}** ({median}; {bias}; {number(error.seed_spread_percent)})"

    rows = [[label, *(cell(group.errors[name]) for _, group in columns)] for name, label in SCORED_QUANTITIES.items()]
    rows.append(["starvation: agreement", *(number(group.starvation.agreement, 3) for _, group in columns)])
    rows.append(["starvation: F1", *(number(group.starvation.f1, 3) for _, group in columns)])
    rows.append(["the same, all runs that served", *(number(group.starvation_all.f1, 3) for _, group in columns)])
    rows.append(["mean goodput error", *(number(group.starvation.goodput_error, 4) for _, group in columns)])
    return table(["", *(f"{name}, {group.num_headline_rows} runs" for name, group in columns)], rows)


def slots_table(validation: Validation) -> list[str]:
    """Return errors and bias per range of slots."""
    rows = [
        [
            group.name,
            str(group.num_headline_rows),
            *(
                f"{number(error.half_smape_percent)} ({number(error.bias_percent, 1, sign=True)})"
                for error in (group.errors[name] for name in SCORED_QUANTITIES)
            ),
        ]
        for group in validation.groups
        if group.dimension == "slots" and group.num_headline_rows
    ]
    return table(["slots", "runs", *SCORED_QUANTITIES.values()], rows)


def published_table(fitted: Validation, alone: Validation) -> list[str]:
    """Return the errors of this twin, with both profiles, and of the published one on the runs that all have."""
    rows = []
    for with_runs, without in zip(fitted.published, alone.published, strict=True):
        scores = (
            ("this twin, micro-benchmarks alone", without.ours),
            ("this twin, shipped profile (fitted to these runs too)", with_runs.ours),
            ("the published twin", with_runs.published),
        )
        for label, score in scores:
            errors = [
                f"{number(error.half_smape_percent)} ({number(error.bias_percent, 1, sign=True)})"
                for error in (score.throughput, score.itl_mean)
            ]
            row = [f"{with_runs.num_rows} ({with_runs.rows})", label, *errors, number(score.starvation.f1, 3)]
            rows.append(row)
    return table(["runs", "", "throughput", "ITL mean", "starvation F1"], rows)


def everything(validation: Validation) -> GroupScore:
    """Return the score over all runs of a validation."""
    return next(group for group in validation.groups if group.dimension == "all")


def sections(data: Path, *, num_seeds: int, horizon_s: float | None) -> dict[str, list[str]]:
    """Measure and return every table of the document by its name."""
    runs = data / "runs" / "real_runs.csv"
    published = data / "runs" / "published_twin_outputs.csv"

    def judge(split: str, profile: str | None, published: Path | None = None) -> Validation:
        print(f"replaying the {split} runs with {profile or 'the shipped profile'}", file=sys.stderr)
        return validate_twin(
            runs,
            model=None,
            split=split,
            only_informative=False,
            profile=profile,
            published=published,
            num_seeds=num_seeds,
            horizon_s=horizon_s,
        ).validation

    profiles = [load_profile(name) for name in shipped_profiles()]
    micro = calibrate(data, model=MODEL).profile
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "micro-benchmarks-only.json"
        save_profile(micro, path)
        alone = judge("valid", str(path))
        alone_calib = judge("calib", str(path), published)
    valid = judge("valid", None)
    calib = judge("calib", None, published)
    judged = [
        ("valid, shipped profile", everything(valid)),
        ("valid, micro-benchmarks alone", everything(alone)),
        ("calib, shipped profile", everything(calib)),
    ]
    memory = valid.memory
    verdicts = (
        f"Memory verdicts on the valid runs: {memory.ok_predicted_ok} started as predicted, {memory.oom_predicted_oom} "
        f"lacked memory as predicted, {memory.ok_predicted_oom + memory.oom_predicted_ok} wrong. "
        f"Metastable by their seeds: {', '.join(valid.metastable) or 'none'}."
    )
    return {
        "terms": terms_table(profiles),
        **{f"fit {profile.name}": fit_table(profile) for profile in profiles},
        "errors": [*errors_table(judged), "", verdicts],
        "slots": slots_table(valid),
        "published": published_table(calib, alone_calib),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, then print the tables or put them into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with runs/ and calibration/")
    parser.add_argument("--update", type=Path, help="document whose tables are replaced")
    parser.add_argument("--seeds", type=int, default=3, help="simulations per run")
    parser.add_argument(
        "--smoke", action="store_true", help=f"simulate {SMOKE_HORIZON_S:g} s once, to see that it runs"
    )
    options = parser.parse_args(arguments)
    if options.smoke and options.update:
        parser.error("--smoke measures nothing that a document should say: leave out --update.")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1. Got {options.seeds}.")
    horizon_s = SMOKE_HORIZON_S if options.smoke else None
    found = sections(options.data, num_seeds=1 if options.smoke else options.seeds, horizon_s=horizon_s)
    try:
        print_or_update(found, options.update)
    except InputError as error:
        parser.error(error.message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
