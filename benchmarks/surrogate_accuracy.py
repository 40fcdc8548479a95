"""How well surrogates predict measured serving runs, and the twin near the border: tables of docs/training.md.

``python -m benchmarks.surrogate_accuracy [DATA] [--held-out FOLDER ...] [--surrogate FILE ...] [--update
docs/training.md]``

DATA is the folder with the measured runs (``runs/``). A surrogate is asked about each run's adapters and settings, as a
solver would ask; the twin is not. Scored are the informative runs with ``split=valid``: of those whose client kept up
the errors, as for the twin itself (`benchmarks.twin_accuracy`), and of all the verdicts on starvation. The published
forest's errors stand beside them. FOLDER is of `benchmarks.held_out_rows`. Without ``--surrogate`` the shipped ones are
judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.document_tables import number, print_or_update, table
from predictors.catalog import shipped_surrogate
from predictors.dataset import load_dataset
from predictors.errors import PACKED, error_table, reliability, select_output
from predictors.features import AGGREGATE_NAMES, adapter_aggregates, build_features, engine_row, offered_tps
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import SurrogateOutput
from predictors.targets import TrainingRows, training_rows
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.validation.predictions import RunPrediction
from twin.validation.quantities import SCORED_QUANTITIES, Quantities
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import replica_of
from twin.validation.runs import MeasuredRun, read_runs
from twin.validation.scores import score_quantity, score_verdicts
from twin.workload import RequestTable

# Of the published random forest, half-SMAPE in per cent and F1 (arXiv 2602.24044).
PUBLISHED = {"tok_per_s": 4.39, "itl_mean_ms": 10.99, "starvation": 0.95}
TARGETS = {"tok_per_s": 2.0, "itl_mean_ms": 6.0, "starvation": 0.97}


def predicted_output(run: MeasuredRun, surrogate: OnnxSurrogate, profile: PerformanceProfile) -> SurrogateOutput:
    """Return what the surrogate says about the adapters and settings of a run, one row."""
    return surrogate.predict(_features(run, profile))


def _features(run: MeasuredRun, profile: PerformanceProfile) -> NDArray[np.float32]:
    assert run.traffic is not None
    replica = replica_of(run, profile)
    workload, requests = regenerate_traffic(run.traffic, run_id=run.run_id, seed=0, horizon_s=run.total_time_s)
    aggregate = adapter_aggregates(workload.adapters).sum(axis=0)
    _set_lengths(aggregate, requests)
    return build_features(aggregate, engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens))


def predict(run: MeasuredRun, surrogate: OnnxSurrogate, profile: PerformanceProfile) -> RunPrediction:
    """Return what the surrogate says about a run, which served."""
    features = _features(run, profile)
    said = surrogate.predict(features)
    mean_itl_s = surrogate.predict_itl_mean_s(features)
    quantities = Quantities(
        tok_per_s=float(said.throughput_tps[0]),
        itl_mean_ms=None if mean_itl_s is None else 1000.0 * float(mean_itl_s[0]),
        goodput_ratio=float(said.throughput_tps[0] / offered_tps(features)[0]),
    )
    return RunPrediction(
        run=run,
        status="ok" if replica_of(run, profile).memory().starts else "oom",
        quantities=quantities,
        seed_spread_percent=dict.fromkeys(SCORED_QUANTITIES),
        is_metastable=False,
        wall_s=0.0,
        cpu_s=0.0,
    )


def _set_lengths(aggregate: NDArray[np.float64], requests: RequestTable) -> None:
    """Replace what an aggregate has from laws of the lengths by the means over requests, in place.

    In the runs long prompts have short answers: a running request holds a fifth less KV than if they were independent.
    """
    prompts, outputs = (lengths.astype(np.float64) for lengths in (requests.prompt_tokens, requests.output_tokens))
    rate_rps = aggregate[AGGREGATE_NAMES.index("sum_rate_rps")]
    means = {
        "sum_prompt_tps": prompts.mean(),
        "sum_output_tps": outputs.mean(),
        "sum_kv_token_steps": (prompts * outputs + 0.5 * outputs**2).mean(),
        "sum_prompt_sq_tps": (prompts**2).mean(),
    }
    for name, mean in means.items():
        aggregate[AGGREGATE_NAMES.index(name)] = rate_rps * mean


def measured_rows(
    runs: Sequence[MeasuredRun], surrogates: Sequence[tuple[PerformanceProfile, OnnxSurrogate]]
) -> list[list[str]]:
    """Return a row per quantity: each surrogate's error, the target and the published one."""
    groups = [
        [predict(run, surrogate, profile) for run in runs if run.model == profile.model]
        for profile, surrogate in surrogates
    ]
    made = []
    for quantity in ("tok_per_s", "itl_mean_ms"):
        cells = []
        for group in groups:
            error = score_quantity([prediction for prediction in group if prediction.run.is_headline], quantity)
            cells.append(f"{number(error.half_smape_percent)} ({number(error.bias_percent, 1, sign=True)})")
        made.append([f"{SCORED_QUANTITIES[quantity]}, half-SMAPE % (bias)", *cells, *_references(quantity)])
    for name, only_headline in (("", False), (", client kept up", True)):
        cells = []
        for group in groups:
            score = score_verdicts([entry for entry in group if entry.run.is_headline or not only_headline])
            starved = score.true_positives + score.false_negatives
            cells.append(f"{number(score.f1, 3)} ({starved} of {score.num_rows} starve)")
        made.append([f"starvation{name}, F1", *cells, *_references("starvation")])
    return made


def held_out_tables(held_out: TrainingRows, label_error: float, output: SurrogateOutput) -> tuple[list[str], list[str]]:
    """Return the errors on rows near their border, by kind of scenario; and the shares that starved by probability.

    Parameters
    ----------
    label_error
        Mean error of the rows' throughput ratios as means over their seeds.
    """
    is_packed = held_out.family == PACKED
    kinds = {"all": np.ones(len(held_out), dtype=np.bool_), "packed sets": is_packed, "others": ~is_packed}
    errors = []
    for name, mask in kinds.items():
        figures = error_table(held_out.select(mask), select_output(output, mask))["near_border"]
        columns = [f"{figures['ratio_mae']:.4f}", f"{figures['brier']:.4f}", f"{figures['starvation_f1']:.3f}"]
        latencies = [f"{figures[f'{latency}_median_error']:.1f}" for latency in ("itl", "ttft")]
        errors.append([name, f"{int(figures['rows']):,}", *columns, *latencies])
    header = [
        "scenarios",
        "rows",
        f"throughput ratio, mean error (of the labels: {label_error:.4f})",
        "starvation, Brier score",
        "F1",
        "ITL p95, median error %",
        "TTFT p95, median error %",
    ]
    bins = [
        [f"{entry['predicted']:.3f}", f"{entry['starved']:.3f}", f"{int(entry['rows']):,}"]
        for entry in reliability(held_out, output)
    ]
    return table(header, errors), table(["predicted probability", "share that starved", "rows"], bins)


def judge_held_out(folder: Path, surrogates: Sequence[OnnxSurrogate]) -> dict[str, list[str]]:
    """Return the tables of a folder of held-out rows, for the surrogate of its profile."""
    frame, manifest = load_dataset(folder)
    profile = manifest.settings.profile["name"]
    (surrogate,) = [surrogate for surrogate in surrogates if surrogate.profile_name == profile]
    # A row's mean is as far from the truth as the spread of its seeds over the root of their number, for a normal law.
    spread = frame["throughput_ratio_std"].to_numpy(np.float64) / np.sqrt(frame["num_seeds"].to_numpy(np.float64))
    held_out = training_rows(frame)
    errors, bins = held_out_tables(
        held_out, float(np.sqrt(2.0 / np.pi) * np.nanmean(spread)), surrogate.predict(held_out.features)
    )
    return {f"held out, {profile}": errors, f"reliability, {profile}": bins}


def measured_table(data: Path, loaded: Sequence[OnnxSurrogate]) -> dict[str, list[str]]:
    """Return the table of the measured runs."""
    surrogates = [(load_profile(surrogate.profile_name), surrogate) for surrogate in loaded]
    table_of_runs = read_runs(data / "runs" / "real_runs.csv", split="valid")
    runs = [run for run in table_of_runs.runs if run.is_informative and run.traffic is not None]
    counts = [sum(run.model == profile.model and run.is_headline for run in runs) for profile, _ in surrogates]
    judged = [position for position, count in enumerate(counts) if count]
    surrogates = [surrogates[position] for position in judged]
    names = [
        f"{profile.model}, {counts[position]} runs" for position, (profile, _) in zip(judged, surrogates, strict=True)
    ]
    header = ["", *names, "target", "published forest"]
    return {"surrogates on measured runs": table(header, measured_rows(runs, surrogates))}


def _references(quantity: str) -> tuple[str, str]:
    return f"{TARGETS[quantity]:g}", f"{PUBLISHED[quantity]:g}"


def main(arguments: list[str] | None = None) -> int:
    """Judge, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with runs/")
    parser.add_argument("--held-out", action="append", type=Path, default=[], help="folder of rows; repeatable")
    parser.add_argument("--surrogate", action="append", type=Path, help="ONNX file of a shipped profile; repeatable")
    parser.add_argument("--update", type=Path, help="document whose tables are replaced")
    options = parser.parse_args(arguments)
    files = options.surrogate or [shipped_surrogate(name) for name in shipped_profiles()]
    loaded = [OnnxSurrogate.load(file) for file in files]
    tables = {} if options.data is None else measured_table(options.data, loaded)
    for folder in options.held_out:
        tables |= judge_held_out(folder, loaded)
    print_or_update(tables, options.update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
