"""The card that lies beside a surrogate: what it is, how far it is off, where it must not be used."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from predictors.errors import Table
from predictors.targets import NEAR_BORDER
from twin.profile import PerformanceProfile

_ROWS: tuple[tuple[str, str, str], ...] = (
    ("rows", "rows", "{:.0f}"),
    ("ratio_mae", "throughput ratio: mean absolute error", "{:.4f}"),
    ("ratio_mape", "the same, relative", "{:.2f} %"),
    ("starvation_f1", "starvation: F1", "{:.3f}"),
    ("brier", "starvation: Brier score", "{:.4f}"),
    ("false_accepts", "starved sets that planning would accept", "{:.1%}"),
    ("false_rejects", "healthy sets that planning would refuse", "{:.1%}"),
    ("itl_mape", "inter-token latency p95: MAPE, healthy sets", "{:.1f} %"),
    ("itl_median_error", "the same: median error", "{:.1f} %"),
    ("ttft_mape", "time to first token p95: MAPE, healthy sets", "{:.1f} %"),
    ("ttft_median_error", "the same: median error", "{:.1f} %"),
)
# Subsets of the rows of which errors are told, and what they are called.
SUBSETS = {"all": "all", "near_border": "near the border", "packed": "packed"}

# About the thresholds by risk.
_PACKED = (
    "Below which probability of starvation a GPU is accepted, so that of the GPUs that are packed to the brim against "
    "the surrogate the twin rejects at most a share, the risk; without a risk it is 0.5. It comes from {gpus} GPUs, "
    "each packed with adapters and settings that were drawn for it alone, with smaller and smaller thresholds, and "
    "simulated as those of plans are: {horizon_s:g} s, {warmup_s:g} s of them not counted."
)
_LEFT_OUT = (
    "Others say nothing: on {took_all} the surrogate accepts all adapters that were drawn, on {took_none} not one of "
    "them."
)
_NOTHING_FULL = "None is known: of {left_out} GPUs, the surrogate accepts all adapters that were drawn, or not one."
_SEEN = "Seen: what share of each tenth of the GPUs was rejected with the threshold that the others gave."

_TEMPLATE = """\
# Surrogate {name}

Predicts what one replica of {model} on {gpu} does with a set of adapters: throughput ratio, probability of
starvation (of the replica or any of its adapters), throughput, and the 95th percentiles of inter-token latency and time
to first token. It is a distillation of the digital twin under the performance profile of the same name, for planning;
every GPU of a plan is simulated by the twin before it is accepted.

## Training

{rows} rows of {scenarios} sets of adapters, each the mean of {seeds} simulations of {horizon_s} s ({warmup_s} s
of them not counted). What the sets are is in docs/dataset.md. {fitted_rows} rows were fitted to, {validation_rows}
chose settings and calibrated the probability, and {test_rows} rows of other sets gave the errors below.
{others}
| family | trials | score | ratio error | Brier score | F1 | KiB |
|---|---|---|---|---|---|---|
{families}

The score, by which `{family}` was chosen, is the error of the ratio plus the Brier score on validation rows near the
border, half of it from packed sets; ratio error and Brier score are those of test rows near the border, F1 of all.

## Errors

Near the border: within {near:.0%} of the load at which the replica begins to starve. Packed: those of them whose sets a
packer made.

| | all | near the border | packed |
|---|---|---|---|
{table}

The exported and the fitted model differ by more than 0.1 % on at most {parity:.2%} of these rows, for any output.

### Probability of starvation

| predicted | starved | rows |
|---|---|---|
{reliability}

### Risk

{risk}

## Limits

- The labels come from the twin: errors of the profile against a real GPU come on top.
- Packing seeks out optimistic errors, hence the threshold for a risk, and the twin.
- Outside of the domain in the file's metadata (`domain`) predictions are not to be trusted.
- It holds for this profile's numbers only; when the profile is refitted, sample and train again:

```bash
{commands}
```
"""


def model_card(profile: PerformanceProfile, training: dict[str, Any], parity: dict[str, float]) -> str:
    """Return the card in Markdown; `training` is the model's metadata of that name, `parity` the export check."""
    errors, data = training["errors"], training["datasets"]
    rows = [f"| {' | '.join(cells)} |" for cells in error_cells(errors)]
    families = [
        f"| {one['name']} | {one['trials']} | {one['score']:.4f} | {one['ratio_mae_near_border']:.4f} | "
        f"{one['brier_near_border']:.4f} | {one['starvation_f1']:.3f} | {one['size_bytes'] / 1024:.0f} |"
        for one in training["families"]
    ]
    bins = [f"| {one['predicted']:.3f} | {one['starved']:.3f} | {one['rows']:.0f} |" for one in training["reliability"]]
    return _TEMPLATE.format(
        name=profile.name,
        model=profile.model,
        gpu=profile.gpu,
        rows=training["rows"],
        scenarios=training["scenarios"],
        **{name: _values(data, name) for name in ("seeds", "horizon_s", "warmup_s")},
        others=_paragraph(sentences_on_other_rows(training)),
        fitted_rows=training["fitted_rows"],
        validation_rows=training["validation_rows"],
        test_rows=training["test_rows"],
        families="\n".join(families),
        family=training["family"],
        near=NEAR_BORDER,
        table="\n".join(rows),
        parity=max(parity.values()),
        reliability="\n".join(bins),
        risk=_risk_section(training["thresholds"]),
        commands=commands_to_repeat(profile.name, training),
    )


def sentences_on_other_rows(training: dict[str, Any]) -> list[str]:
    """Return what there is to say about all that was learned from beside the rows of the data sets."""
    return [*_kin_sentences(training), *_recorded_sentences(training), *_start_sentences(training)]


def _kin_sentences(training: dict[str, Any]) -> list[str]:
    """Return what there is to say about rows of other profiles and windows; nothing without them."""
    own = training["datasets"][0]["profile"]
    counts: dict[str, int] = {}
    for data in training["kin"]:
        kind = f"measured from {data['warmup_s']:g} to {data['horizon_s']:g} s"
        kind = kind if data["profile"] == own else f"that {data['profile']['name']} labelled, {kind}"
        counts[kind] = counts.get(kind, 0) + data["rows"]
    told = ", and ".join(f"{rows} rows {kind}" for kind, rows in counts.items())
    return [f"{told} were fitted to as well."] if told else []


def _start_sentences(training: dict[str, Any]) -> list[str]:
    """Return what there is to say about the surrogate that the fit went on from; nothing without one."""
    start = training.get("start")
    if start is None:
        return []
    made_of = start["training"]
    kin = sum(data["rows"] for data in made_of.get("kin", []))
    sentence = (
        f"The network began as that of `{start['file']}` (SHA-256 {start['sha256'][:16]}...), which was made of "
        f"{made_of['rows'] + kin} other rows; the commands below make that one first."
    )
    return [sentence]


def _recorded_sentences(training: dict[str, Any]) -> list[str]:
    """Return what there is to say about GPUs that were recorded while plans were made; nothing without them."""
    recorded = training["recorded"]
    if recorded is None:
        return []
    counts = (
        f"{recorded['rows']} of the rows are of {recorded['gpus']} GPUs that were planned (workloads: "
        f"{recorded['workloads']}): the twin rejected {recorded['rejected']} and accepted {recorded['accepted']} then."
    )
    sentences = [counts]
    for verdict in ("rejected", "accepted"):
        share = recorded[f"{verdict}_that_starve"]
        if share is not None:
            sentences.append(
                f"Under the labels, {share:.0%} of the {verdict} ones starve at the load that was planned."
            )
    if recorded["unlabelled"]:
        sentences.append(f"{recorded['unlabelled']} more could not be labelled.")
    return sentences


def error_cells(errors: Table) -> list[tuple[str, ...]]:
    """Return the lines of the table of errors: what it is, and its value on each of `SUBSETS`."""
    return [(label, *(form.format(errors[subset][key]) for subset in SUBSETS)) for key, label, form in _ROWS]


def risk_cells(thresholds: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the table of thresholds: risk, threshold, and what was seen (where something was)."""
    seen = {f"{one['risk']:g}": one["seen"] for one in thresholds["curve"]}
    return [
        (f"{float(level):.0%}", f"{threshold:.3g}", "-" if seen[level] is None else f"{seen[level]:.1%}")
        for level, threshold in thresholds["by_risk"].items()
    ]


def risk_sentences(thresholds: dict[str, Any]) -> list[str]:
    """Return what was done for the thresholds, before the table of them."""
    left_out = thresholds["took_all"] + thresholds["took_none"]
    if not thresholds["gpus"]:
        return ["No GPU was packed to tell a risk." if not left_out else _NOTHING_FULL.format(left_out=left_out)]
    return [
        _PACKED.format(**thresholds),
        *([_LEFT_OUT.format(**thresholds)] if left_out else []),
        _SEEN if thresholds["by_risk"] else "They are too few, or too many of them are rejected, to tell a threshold.",
    ]


def _risk_section(thresholds: dict[str, Any]) -> str:
    text = textwrap.fill(" ".join(risk_sentences(thresholds)), 120)
    rows = [f"| {' | '.join(cells)} |" for cells in risk_cells(thresholds)]
    return "\n".join([text, "", "| risk | threshold | seen |", "|---|---|---|", *rows]) if rows else text


def _values(datasets: Sequence[dict[str, Any]], name: str) -> str:
    """Return the values that data sets have for a setting, as text."""
    return " or ".join(f"{value:g}" for value in sorted({float(data[name]) for data in datasets}))


def _paragraph(sentences: Sequence[str]) -> str:
    """Return a paragraph that begins below another one, and ends before an empty line; nothing without sentences."""
    return f"\n{textwrap.fill(' '.join(sentences), 120)}\n" if sentences else ""


def commands_to_repeat(name: str, training: dict[str, Any]) -> str:
    """Return how to make the model again."""
    gpus = sum(training["thresholds"][name] for name in ("gpus", "took_all", "took_none"))
    return "\n".join(_commands(name, training, output=f"{name}.onnx", risk_gpus=gpus, prefix=""))


def _commands(name: str, training: dict[str, Any], *, output: str, risk_gpus: int, prefix: str) -> list[str]:
    """Return the commands that make a model, after those that make what its fit went on from."""
    start = training.get("start")
    earlier = f"start-{prefix}"
    lines = (
        []
        if start is None
        else _commands(name, start["training"], output=f"{earlier}{name}.onnx", risk_gpus=0, prefix=earlier)
    )
    datasets = [*training["datasets"], *training["kin"]]
    folders = [f"{prefix}rows{number}" for number in range(1, len(datasets) + 1)]
    lines += [
        f"placer dataset --profile {data['profile']['name']} --output {folder} --rows {data['rows']} "
        f"--seed {data['seed']} \\\n"
        f"    --seeds {data['seeds']} --loads {' '.join(map(str, data['loads']))} "
        f"--horizon {data['horizon_s']:g} --warmup {data['warmup_s']:g}"
        for folder, data in zip(folders, datasets, strict=True)
    ]
    folders += [f"--kin {kin}" for kin in sorted({data["profile"]["name"] for data in training["kin"]} - {name})]
    if training["recorded"] is not None:
        folders.append(f"--from-rejections {prefix}recorded")
    if start is not None:
        folders.append(f"--start {earlier}{name}.onnx")
    families = " ".join(f"--family {family}" for family in sorted(one["name"] for one in training["families"]))
    trials = max(one["trials"] for one in training["families"])
    # Files of early versions do not tell the limit: their number of trials ended the search.
    limit = f" --time-limit {training['time_limit_s']:g}" if "time_limit_s" in training else ""
    lines.append(
        f"placer train {' '.join(folders)} --profile {name} --output {output} --seed {training['seed']} \\\n"
        f"    {families} --trials {trials}{limit} --risk-gpus {risk_gpus}"
    )
    return lines
