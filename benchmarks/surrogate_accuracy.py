"""How well surrogates predict measured serving runs: the table of docs/training.md.

``python -m benchmarks.surrogate_accuracy DATA [--surrogate FILE ...] [--update docs/training.md]``

DATA is the folder with the measured runs (``runs/``). A surrogate is asked about each run's adapters and settings, as a
solver would ask; the twin is not. Scored are the informative runs with ``split=valid``, as for the twin itself
(`benchmarks.twin_accuracy`). Without ``--surrogate`` the shipped ones are judged. The published forest's errors stand
beside them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.document_tables import number, print_or_update, table
from predictors.catalog import shipped_surrogate
from predictors.features import adapter_aggregates, build_features, engine_row, offered_tps
from predictors.onnx_surrogate import OnnxSurrogate
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.validation.predictions import RunPrediction
from twin.validation.quantities import SCORED_QUANTITIES, Quantities
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import replica_of
from twin.validation.runs import MeasuredRun, read_runs
from twin.validation.scores import score_quantity, score_verdicts

# Of the published random forest, half-SMAPE in per cent and F1 (arXiv 2602.24044).
PUBLISHED = {"tok_per_s": 4.39, "itl_mean_ms": 10.99, "starvation": 0.95}
TARGETS = {"tok_per_s": 2.0, "itl_mean_ms": 6.0, "starvation": 0.97}


def predict(run: MeasuredRun, surrogate: OnnxSurrogate, profile: PerformanceProfile) -> RunPrediction:
    """Return what the surrogate says about a run, which served."""
    assert run.traffic is not None
    replica = replica_of(run, profile)
    workload, _ = regenerate_traffic(run.traffic, run_id=run.run_id, seed=0, horizon_s=1.0)
    aggregate = adapter_aggregates(workload.adapters).sum(axis=0)
    features = build_features(aggregate, engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens))
    said = surrogate.predict(features)
    mean_itl_s = surrogate.predict_itl_mean_s(features)
    quantities = Quantities(
        tok_per_s=float(said.throughput_tps[0]),
        itl_mean_ms=None if mean_itl_s is None else 1000.0 * float(mean_itl_s[0]),
        goodput_ratio=float(said.throughput_tps[0] / offered_tps(features)[0]),
    )
    return RunPrediction(
        run=run,
        status="ok" if replica.memory().starts else "oom",
        quantities=quantities,
        seed_spread_percent=dict.fromkeys(SCORED_QUANTITIES),
        is_metastable=False,
        wall_s=0.0,
        cpu_s=0.0,
    )


def rows(
    runs: Sequence[MeasuredRun], surrogates: Sequence[tuple[PerformanceProfile, OnnxSurrogate]]
) -> list[list[str]]:
    """Return a row per quantity: each surrogate's error, that of all together, the target and the published one."""
    groups = [
        [predict(run, surrogate, profile) for run in runs if run.model == profile.model]
        for profile, surrogate in surrogates
    ]
    groups.append([prediction for group in groups for prediction in group])
    made = []
    for quantity in ("tok_per_s", "itl_mean_ms"):
        cells = []
        for group in groups:
            error = score_quantity(group, quantity)
            cells.append(f"{number(error.half_smape_percent)} ({number(error.bias_percent, 1, sign=True)})")
        made.append([f"{SCORED_QUANTITIES[quantity]}, half-SMAPE % (bias)", *cells, *_references(quantity)])
    made.append(
        ["starvation, F1", *(number(score_verdicts(group).f1, 3) for group in groups), *_references("starvation")]
    )
    return made


def _references(quantity: str) -> tuple[str, str]:
    return f"{TARGETS[quantity]:g}", f"{PUBLISHED[quantity]:g}"


def main(arguments: list[str] | None = None) -> int:
    """Judge, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with runs/")
    parser.add_argument("--surrogate", action="append", type=Path, help="ONNX file of a shipped profile; repeatable")
    parser.add_argument("--update", type=Path, help="document whose table is replaced")
    options = parser.parse_args(arguments)
    files = options.surrogate or [shipped_surrogate(name) for name in shipped_profiles()]
    loaded = [OnnxSurrogate.load(file) for file in files]
    surrogates = [(load_profile(surrogate.profile_name), surrogate) for surrogate in loaded]
    runs = [
        run
        for run in read_runs(options.data / "runs" / "real_runs.csv", split="valid", only_informative=True).runs
        if run.traffic is not None
    ]
    counts = [sum(run.model == profile.model for run in runs) for profile, _ in surrogates]
    names = [f"{profile.model}, {count} runs" for (profile, _), count in zip(surrogates, counts, strict=True)]
    header = ["", *names, f"all, {sum(counts)} runs", "target", "published forest"]
    print_or_update({"surrogates on measured runs": table(header, rows(runs, surrogates))}, options.update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
