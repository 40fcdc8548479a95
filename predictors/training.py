"""From a data set to a surrogate: fit, export, check the export, measure the errors on scenarios that were held out.

Run ``python -m predictors.training DATASET --profile NAME --output FILE.onnx``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from predictors.dataset import load_dataset
from predictors.dataset_folder import Manifest
from predictors.domain import Domain
from predictors.errors import error_table
from predictors.features import FEATURE_SCHEMA
from predictors.model_card import model_card
from predictors.provenance import profile_fingerprint
from twin.errors import InputError, PlacerError, SurrogateError
from twin.profile import PerformanceProfile, load_profile

if TYPE_CHECKING:
    from types import ModuleType

LOGGER = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class TrainingReport:
    """What was written, and how well it does.

    Attributes
    ----------
    file, card
        The ONNX model and its Markdown card beside it.
    errors
        Error table by subset of the held-out rows (`predictors.errors.error_table`).
    parity
        Share of held-out rows on which ONNX Runtime and scikit-learn differ, by output.
    """

    file: Path
    card: Path
    errors: dict[str, dict[str, float]]
    parity: dict[str, float]


def train_surrogate(
    dataset: str | Path, profile: PerformanceProfile, *, output: str | Path, seed: int = 0
) -> TrainingReport:
    """Fit a surrogate to a data set and write it, with its card, to `output` (``*.onnx``).

    Errors and calibration come from scenarios that the fit has not seen; the model that is written is then fitted to
    all rows.

    Raises
    ------
    SurrogateError
        When the extra `train` is not installed, or the exported model disagrees with the fitted one.
    InputError
        When there is no such data set, it was labelled with another profile, or it has fewer than ten scenarios.
    """
    fitting = _load_fitting()
    table, manifest = load_dataset(dataset)
    _check_profile(manifest, profile, str(dataset))
    features = table[list(FEATURE_SCHEMA.names)].to_numpy(dtype=np.float32)
    derived = fitting.derive(features, profile)
    held_out = split_scenarios(table["scenario"].to_numpy(), seed=seed)
    trial = fitting.fit_models(table[~held_out], derived[~held_out], seed=seed)
    offered = table["sum_prompt_tps"].to_numpy(np.float64) + table["sum_output_tps"].to_numpy(np.float64)
    errors = error_table(table[held_out], trial.predict(derived[held_out], offered[held_out]))
    training = {
        "rows": len(table),
        "scenarios": int(table["scenario"].nunique()),
        "held_out_rows": int(held_out.sum()),
        "seed": seed,
        "dataset": {key: getattr(manifest.settings, key) for key in ("seed", "seeds", "horizon_s", "warmup_s")},
        "errors": errors,
    }
    models = fitting.fit_models(table, derived, seed=seed)
    model = fitting.export_model(models, profile=profile, domain=Domain.from_rows(features), training=training)
    parity = fitting.check_parity(models, model, features[held_out], profile)
    file = Path(output)
    card = file.with_suffix(".md")
    _write(file, model.SerializeToString())
    _write(card, model_card(profile, training, parity).encode())
    return TrainingReport(file, card, errors, parity)


def split_scenarios(
    scenarios: np.ndarray[Any, np.dtype[np.int32]], *, seed: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows are held out, bool [N]: whole scenarios, a fifth of them, because their rows are alike."""
    distinct = np.unique(scenarios)
    if len(distinct) < 10:
        raise InputError(
            f"a data set must have at least 10 scenarios to be trained on. Got {len(distinct)}.",
            field="rows",
            value=len(distinct),
            hint="sample more rows with `placer dataset`",
        )
    chosen = np.random.default_rng(seed).permutation(distinct)[: round(HELD_OUT_SHARE * len(distinct))]
    return np.isin(scenarios, chosen)


def _load_fitting() -> ModuleType:
    try:
        # By name, so that asking for help or reading this module needs none of the libraries of the extra.
        return importlib.import_module("predictors.fitting")
    except ImportError as error:
        raise SurrogateError(
            f"training needs the extra `train`. {error}.", hint="pip install 'lora-placer[train]'"
        ) from error


def _check_profile(manifest: Manifest, profile: PerformanceProfile, dataset: str) -> None:
    expected = {"name": profile.name, "fingerprint": profile_fingerprint(profile)}
    given = manifest.settings.profile
    if given != expected:
        raise InputError(
            f"a data set must have been labelled with the profile it is used for, {expected}. "
            f"{dataset} was labelled with {given}.",
            file=dataset,
            field="profile",
            value=given,
            hint="sample a new data set: the profile is another one, or has been refitted since",
        )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"`output` must be a path that can be written. {path}: {error.strerror}.", field="output", value=str(path)
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Train a surrogate from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m predictors.training", description=__doc__)
    parser.add_argument("dataset", type=Path, help="folder written by `placer dataset`")
    parser.add_argument("--profile", required=True, help="the profile that labelled it")
    parser.add_argument("--output", required=True, type=Path, help="ONNX file; the card is written beside it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = train_surrogate(
            options.dataset, load_profile(options.profile), output=options.output, seed=options.seed
        )
    except SurrogateError as error:
        LOGGER.error("error: %s", error.message)  # noqa: TRY400 - the message is meant for users
        if error.hint:
            LOGGER.error("hint: %s", error.hint)  # noqa: TRY400 - the same
        return 6
    except PlacerError as error:
        LOGGER.error("error: %s", error.message)  # noqa: TRY400 - the message is meant for users
        return 2
    sys.stdout.write(json.dumps({"errors": report.errors, "parity": report.parity}, indent=2, sort_keys=True) + "\n")
    LOGGER.info("wrote %s and %s", report.file, report.card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
