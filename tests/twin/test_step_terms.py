"""The command that leaves every term of the step time out: what it measures, and what it says of each term."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.step_terms import (
    NOTHING,
    OTHER_WORKLOADS,
    alone_errors,
    fitted_runs,
    given_terms,
    main,
    shown_by,
    term_worths,
    worth_table,
)
from tests.twin.calibration_tables import write_tables
from tests.twin.random_steps import EVERY_COEFFICIENT, observed, random_steps
from tests.twin.run_tables import RUN, write_runs
from twin.calibration.observations import StepObservations
from twin.calibration.profile_fit import regimes_to_leave_out
from twin.calibration.step_fit import fit_step_time, leave_one_out
from twin.calibration.tables import step_observations
from twin.errors import InputError
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.step_time import COEFFICIENT_NAMES

LLAMA, QWEN = "llama-3.1-8b-h100-64gb", "qwen2.5-7b-h100-64gb"


def _observations(**true: float) -> StepObservations:
    """Return exact measurements of all regimes; in every fifth, no adapter is in the batch."""
    steps = random_steps(300, seed=3)
    steps = replace(steps, adapters=np.where(np.arange(300) % 5 == 0, 0.0, steps.adapters))
    return observed(steps, EVERY_COEFFICIENT.model_copy(update=true))


def test_every_term_that_made_the_measurements_is_missed() -> None:
    """The complete fit is exact: without any one of the terms, the others cannot stand in for it."""
    errors = alone_errors(_observations(), {})
    assert [NOTHING, *COEFFICIENT_NAMES] == list(errors)
    assert errors[NOTHING].in_fit_percent < 1e-6
    assert errors[NOTHING].hurt_regime is None
    assert all(errors[name].in_fit_percent > 1e-3 for name in COEFFICIENT_NAMES)


def test_a_term_that_is_not_there_is_not_missed() -> None:
    """Without it, no regime errs more; what is given as 0 stays 0."""
    errors = alone_errors(_observations(slot_lookup_ms=0.0), {"blocked_waiting_ms": 0.0}, terms=("slot_lookup_ms",))
    assert errors["slot_lookup_ms"].in_fit_percent == pytest.approx(errors[NOTHING].in_fit_percent)
    assert errors["slot_lookup_ms"].hurt_regime is None


def test_regimes_are_judged_by_fits_without_term_and_regime() -> None:
    """Median and worst are those of leaving each regime out, and the regime that is hurt most is named."""
    observations = _observations()
    regimes = regimes_to_leave_out(observations)
    without, complete = (
        {error.regime: error.mape_percent for error in leave_one_out(observations, regimes, fixed=fixed)}
        for fixed in ({"adapter_ms": 0.0}, {})
    )
    found = alone_errors(observations, {}, terms=("adapter_ms",))["adapter_ms"]
    assert found.in_fit_percent == fit_step_time(observations, fixed={"adapter_ms": 0.0}).errors[-1].mape_percent
    assert found.median_percent == np.median(list(without.values()))
    assert found.worst_percent == without[found.worst_regime] == max(without.values())
    assert found.hurt_regime is not None
    assert found.hurt_from_percent == complete[found.hurt_regime]
    assert found.hurt_to_percent == without[found.hurt_regime]
    changes = {regime: without[regime] - complete[regime] for regime in without}
    assert changes[found.hurt_regime] == max(changes.values())


def _profile(**report: Any) -> PerformanceProfile:
    shipped = load_profile(LLAMA)
    report = {"not_fitted": [], "intervals_95": {"request_ms": [0.1, 0.2], "token_ms": [0.0, 0.2]}} | report
    return shipped.model_copy(update={"provenance": shipped.provenance | {"step_time": report}})


@pytest.mark.parametrize(
    ("report", "term", "low", "expected"),
    [
        ({}, "request_ms", 0.01, "micro-benchmarks"),
        ({"serving_runs": {}}, "request_ms", 0.0, "serving runs only"),
        ({"serving_runs": {}}, "token_ms", 0.0, "nothing: 0 is possible"),
        ({}, "request_ms", 0.0, "nothing: 0 is possible"),
        ({"not_fitted": ["token_ms"]}, "token_ms", None, "given: scheduler's log"),
        (
            {"not_fitted": ["token_ms"], "taken_over": {"profile": "other", "terms": ["token_ms"]}},
            "token_ms",
            None,
            "given: other",
        ),
    ],
)
def test_a_term_is_shown_by_what_keeps_it_from_0(
    report: dict[str, Any], term: str, low: float | None, expected: str
) -> None:
    """Intervals of the fit to micro-benchmarks alone first, then those of the profile's own fit."""
    alone = {} if low is None else {term: (low, 0.3)}
    assert shown_by(_profile(**report), term, alone) == expected


def test_given_terms_are_those_that_were_not_fitted() -> None:
    """The queue scan of Llama; the host terms of Qwen, with the values in its profile."""
    assert list(given_terms(load_profile(LLAMA))) == ["blocked_waiting_ms"]
    qwen = load_profile(QWEN)
    assert given_terms(qwen)["slot_lookup_ms"] == qwen.step_time.slot_lookup_ms > 0


def _data(folder: Path) -> Path:
    """Write small micro-benchmarks and one serving run of a minute."""
    (folder / "calibration").mkdir()
    write_tables(folder / "calibration")
    (folder / "runs").mkdir()
    write_runs(folder / "runs" / "real_runs.csv", [RUN])
    return folder


def test_joint_fits_are_made_where_the_profile_saw_runs(tmp_path: Path) -> None:
    """A smoke run makes one with all terms under two seeds, and one without the slots' lookup."""
    shipped = load_profile(LLAMA)
    report = shipped.provenance["step_time"] | {"serving_runs": {"run_ids": ["R1"]}}
    profile = shipped.model_copy(update={"provenance": shipped.provenance | {"step_time": report}})
    rows = term_worths(profile, _data(tmp_path), is_smoke=True)
    assert [NOTHING, OTHER_WORKLOADS, *COEFFICIENT_NAMES] == [row.left_out for row in rows]
    joint = {row.left_out: row.joint for row in rows if row.joint}
    assert {NOTHING, OTHER_WORKLOADS, "slot_lookup_ms"} == set(joint)
    assert joint[NOTHING].benchmarks_percent < 5.0
    assert joint[NOTHING].tpot_mean_percent != joint[OTHER_WORKLOADS].tpot_mean_percent
    assert joint[NOTHING].tpot_mean_percent == joint[NOTHING].tpot_median_percent > 0.0
    lines = worth_table(rows)
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_runs_that_the_table_lacks_are_named(tmp_path: Path) -> None:
    """Errors of other runs would not be those of the profile's fit."""
    with pytest.raises(InputError, match="lacks R7"):
        fitted_runs(_profile(serving_runs={"run_ids": ["R1", "R7"]}), _data(tmp_path))


def test_bad_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Smoke numbers do not belong into a document, and missing tables are named."""
    for arguments, message in (["--update", "document.md", "--smoke"], "leave out --smoke"), ([], "calib_"):
        with pytest.raises(SystemExit) as caught:
            main([str(tmp_path), *arguments])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_profiles())
def test_with_all_terms_the_errors_are_those_of_the_shipped_profile(data_dir: Path, name: str) -> None:
    """The profile's own report of regimes that were left out comes from the same fits."""
    profile = load_profile(name)
    observations = step_observations(data_dir / "calibration", profile.model)
    found = alone_errors(observations, given_terms(profile), terms=())[NOTHING]
    reported = {regime: error["mape"] for regime, error in profile.provenance["step_time"]["left_out_percent"].items()}
    assert found.worst_percent == pytest.approx(reported[found.worst_regime], abs=0.02)
    assert found.median_percent == pytest.approx(np.median(list(reported.values())), abs=0.02)
