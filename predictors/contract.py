"""What every surrogate must satisfy, as one call: the shipped ones are tested with it, and others can test theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictors.answer_checks import COMPARED, Questions, answer_checks
from predictors.check_report import Check, SurrogateCheck
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA
from predictors.file_checks import FILE_CHECKS, can_be_asked, file_checks, open_file
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.probes import probe_features, rows_in_box, rows_inside, rows_outside
from predictors.surrogate import HasDomain, Surrogate, SurrogateOutput, empty_output
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile, load_profile

__all__ = ["Check", "SurrogateCheck", "check_surrogate", "probe_features"]

NUM_INSIDE = 40
NUM_OUTSIDE = 24
LARGEST_BATCH = 1000
_ANSWERS = ("answers", *COMPARED)

Rows = NDArray[np.float32]
Clock = Callable[[], float]


def check_surrogate(
    surrogate: str | Path | Surrogate,
    *,
    profile: str | PerformanceProfile | None = None,
    features: Rows | None = None,
    raise_on_failure: bool = True,
    clock: Clock = time.perf_counter,
) -> SurrogateCheck:
    """Check that a surrogate keeps its interface, and that its answers make sense.

    Parameters
    ----------
    surrogate
        Path of an ONNX file, or any implementation of the protocol `predictors.surrogate.Surrogate`. A loaded
        `OnnxSurrogate` is checked by its file, as the model answers before rows are refused and values cut.
    profile
        The performance profile that it is to be used with: a shipped name, a path, or the profile. The file must have
        been distilled from it, by name and by the numbers.
    features
        Rows to ask about, float32 [N, F] with N >= 1, instead of sets of all sizes and loads and a batch of a thousand
        rows: for an implementation that takes long per row. Each is also asked at other loads.
    raise_on_failure
        Whether a failed check raises; warnings never do.
    clock
        Returns seconds, for the latency that is reported.

    Returns
    -------
    SurrogateCheck
        Every check by name, with its outcome and a sentence.

    Raises
    ------
    SurrogateError
        With all failures in one message, if any check fails; when ONNX Runtime is not installed, or `features` are no
        such rows.
    ProfileError
        When there is no such profile.
    """
    _check_features(features)
    loaded = load_profile(profile) if isinstance(profile, str) else profile
    if isinstance(surrogate, OnnxSurrogate):
        surrogate = surrogate.file
    report = (
        _check_file(surrogate, loaded, features, clock)
        if isinstance(surrogate, str | Path)
        else _check_object(surrogate, features, clock)
    )
    if raise_on_failure:
        report.raise_for_failures()
    return report


def _check_features(features: Rows | None) -> None:
    num_features = len(FEATURE_SCHEMA.names)
    if features is not None and (features.ndim != 2 or not len(features) or features.shape[1] != num_features):
        raise SurrogateError(
            f"`features` must be float32 [N, {num_features}] with N >= 1. Got the shape {list(features.shape)}.",
            field="features",
            value=list(features.shape),
        )


def _check_file(
    path: str | Path, profile: PerformanceProfile | None, features: Rows | None, clock: Clock
) -> SurrogateCheck:
    file, opened = open_file(path)
    if file is None:
        skipped = _skipped((*FILE_CHECKS[1:], *_ANSWERS), "`file` failed.")
        return SurrogateCheck(str(path), (opened, *skipped), None)
    checks, domain = file_checks(file, profile=profile)
    if not can_be_asked(checks):
        skipped = _skipped(_ANSWERS, "`input` or `outputs` failed.")
        return SurrogateCheck(str(path), (opened, *checks, *skipped), None)

    def ask(rows: Rows) -> SurrogateOutput:
        # As when it is used: a model is never asked for nothing.
        return SurrogateOutput(*file.run(rows)) if len(rows) else empty_output()

    answers, row_latency_s = answer_checks(ask, _questions(domain, features), clock=clock)
    return SurrogateCheck(str(path), (opened, *checks, *answers), row_latency_s)


def _check_object(surrogate: Surrogate, features: Rows | None, clock: Clock) -> SurrogateCheck:
    rows = probe_features(NUM_INSIDE) if features is None else features
    has_schema = getattr(surrogate, "schema", None) == FEATURE_SCHEMA
    said = "`schema` is `predictors.features.FEATURE_SCHEMA`."
    schema = Check("schema", "passed", said) if has_schema else Check("schema", "failed", said.replace("is", "must be"))
    domain, is_outside = _ask_for_domain(surrogate, rows)
    largest = LARGEST_BATCH if features is None else len(features)
    questions = Questions(rows[~is_outside], rows[is_outside], largest, "failed", is_sweep=features is None)
    answers, row_latency_s = answer_checks(surrogate.predict, questions, clock=clock)
    skipped = _skipped(FILE_CHECKS, "a Python object has no file and no metadata.")
    return SurrogateCheck(type(surrogate).__name__, (*skipped, schema, domain, *answers), row_latency_s)


def _ask_for_domain(surrogate: Surrogate, rows: Rows) -> tuple[Check, NDArray[np.bool_]]:
    """Return the check of `outside_domain`, and what it says about `rows`; all inside where it says nothing."""
    name, nowhere = "outside_domain", np.zeros(len(rows), dtype=np.bool_)
    if not isinstance(surrogate, HasDomain):
        return Check(name, "skipped", "it has none: it is taken at its word everywhere."), nowhere
    rule = f"`outside_domain` must return bool [{len(rows)}] for as many rows"
    try:
        mask: object = surrogate.outside_domain(rows.copy())
    except Exception as error:  # noqa: BLE001 - whatever somebody else's implementation raises is the finding
        return Check(name, "failed", f"{rule}, and raises {type(error).__name__}: {error}."), nowhere
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != nowhere.shape:
        given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
        return Check(name, "failed", f"{rule}, and returns {given}."), nowhere
    return Check(name, "passed", f"it says that {int(mask.sum())} of {len(rows)} sets are outside."), mask


def _questions(domain: Domain | None, features: Rows | None) -> Questions:
    """Return what a file is asked; without a domain, everything counts as inside."""
    if features is not None:
        is_outside = np.zeros(len(features), dtype=np.bool_)
        if domain is not None:
            is_outside = domain.outside(features, FEATURE_SCHEMA.names)
        return Questions(features[~is_outside], features[is_outside], len(features), "warning", is_sweep=False)
    if domain is None:
        return Questions(probe_features(NUM_INSIDE), probe_features(0), LARGEST_BATCH, "warning", is_sweep=True)
    inside = rows_inside(domain, NUM_INSIDE)
    if not len(inside):
        inside = rows_in_box(domain, NUM_INSIDE)
    return Questions(inside, rows_outside(domain, NUM_OUTSIDE), LARGEST_BATCH, "warning", is_sweep=True)


def _skipped(names: tuple[str, ...], reason: str) -> list[Check]:
    return [Check(name, "skipped", reason) for name in names]
