"""The card that lies beside a shipped surrogate: what it is, how far it is off, where it must not be used."""

from __future__ import annotations

from typing import Any

from twin.profile import PerformanceProfile

_ROWS: tuple[tuple[str, str, str], ...] = (
    ("rows", "held-out rows", "{:.0f}"),
    ("ratio_mape", "throughput ratio: MAPE", "{:.2f} %"),
    ("ratio_r2", "throughput ratio: R2", "{:.4f}"),
    ("starvation_f1", "starvation: F1", "{:.3f}"),
    ("false_accepts", "starved sets that planning would accept", "{:.1%}"),
    ("false_rejects", "healthy sets that planning would refuse", "{:.1%}"),
    ("itl_mape", "inter-token latency p95: MAPE, healthy sets", "{:.1f} %"),
    ("itl_median_error", "the same: median error", "{:.1f} %"),
    ("ttft_mape", "time to first token p95: MAPE, healthy sets", "{:.1f} %"),
    ("ttft_median_error", "the same: median error", "{:.1f} %"),
)

_TEMPLATE = """\
# Surrogate {name}

Predicts what one replica of {model} on {gpu} does with a set of adapters: throughput ratio, probability of
starvation (of the replica or any of its adapters), throughput, and the 95th percentiles of inter-token latency and time
to first token. It is a distillation of the digital twin under the performance profile of the same name, for planning;
every GPU of a plan is simulated by the twin before it is accepted.

## Training

{rows} labelled rows of {scenarios} random scenarios, each the mean of {seeds} twin simulations ({horizon_s:g} s each,
{warmup_s:g} s of them not counted; data set seed {dataset_seed}, fit seed {seed}). Sets have 1 to 1,000 adapters with
ranks 8 to 128, rates from discrete levels to Zipf, lengths from chat to summaries, and at times bursty arrivals; many
are packed as a planner packs them (docs/dataset.md). Loads were chosen by bisection on the verdict of the twin, so most
rows lie near the border of starvation. The model is gradient boosting on quantities derived from step times
inside the graph, with monotone constraints: scaling the load up never improves a prediction.

## Errors

On {held_out_rows} rows of adapter sets that were not used for the fit. Near the border: within 30 % of the load at
which the replica begins to starve. The shipped model was then fitted to all rows.

| | all | near the border |
|---|---|---|
{table}

ONNX Runtime and scikit-learn differ by more than 0.1 % on at most {parity:.2%} of these rows, for any output.

## Limits

- The labels come from the twin: errors of the profile against a real GPU come on top.
- Arrivals of different adapters were independent.
- A planner's search seeks out optimistic errors, hence the planning margin and the twin.
- Outside of the domain in the file's metadata (`domain`) predictions are not to be trusted.
- It holds for this profile's numbers only; when the profile is refitted, sample and train again:

```bash
placer dataset --profile {name} --output dataset --rows {rows} --seed {dataset_seed} --seeds {seeds} \\
    --horizon {horizon_s:g} --warmup {warmup_s:g}
python -m predictors.training dataset --profile {name} --output {name}.onnx --seed {seed}
```
"""


def model_card(profile: PerformanceProfile, training: dict[str, Any], parity: dict[str, float]) -> str:
    """Return the card in Markdown; `training` is the model's metadata of that name, `parity` the export check."""
    errors = training["errors"]
    rows = [
        f"| {label} | {form.format(errors['all'][key])} | {form.format(errors['near_border'][key])} |"
        for key, label, form in _ROWS
    ]
    return _TEMPLATE.format(
        name=profile.name,
        model=profile.model,
        gpu=profile.gpu,
        rows=training["rows"],
        scenarios=training["scenarios"],
        held_out_rows=training["held_out_rows"],
        seed=training["seed"],
        dataset_seed=training["dataset"]["seed"],
        seeds=training["dataset"]["seeds"],
        horizon_s=training["dataset"]["horizon_s"],
        warmup_s=training["dataset"]["warmup_s"],
        table="\n".join(rows),
        parity=max(parity.values()),
    )
