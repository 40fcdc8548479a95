"""The joint fit of benchmarks and serving runs: what only serving shows comes back from runs that the twin made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.twin.random_steps import EVERY_COEFFICIENT, observed, random_steps
from tests.twin.run_tables import measured_run
from tests.twin.test_step_table import as_rows, calibrated, write
from twin.calibration.coverage import RunCoverage
from twin.calibration.described_fit import CalibrationSources
from twin.calibration.observations import StepObservations
from twin.calibration.origins import LEAST_DATA_SHARE
from twin.calibration.prior import coefficient_prior
from twin.calibration.serving_fit import RUN_WEIGHT, ServingFit, fit_with_runs
from twin.calibration.step_fit import CoefficientPrior, fit_step_time, relative_design
from twin.errors import InputError
from twin.profile import PerformanceProfile, load_profile
from twin.step_time import COEFFICIENT_NAMES
from twin.validation.front_end import FrontEnd
from twin.validation.replay import replay_run
from twin.validation.runs import MeasuredRun

HOST_FREE = {"cached_adapter_ms": 0.0, "adapter_request_ms": 0.0, "changed_request_ms": 0.0, "slot_lookup_ms": 0.0}
# What the runs are made with: a step looks up the adapters of a cache, which no benchmark here shows.
TRUTH = EVERY_COEFFICIENT.model_copy(update=HOST_FREE | {"cached_adapter_ms": 4e-3, "blocked_waiting_ms": 0.0})


def _profile() -> PerformanceProfile:
    shipped = load_profile("llama-3.1-8b-h100-64gb")
    return shipped.model_copy(update={"step_time": TRUTH})


def _benchmarks() -> StepObservations:
    """Return steps with no more than one adapter in the cache: its size is not to be seen."""
    steps = random_steps(400, seed=1)
    alone = replace(steps, adapters=np.minimum(steps.adapters, 1.0), waiting=np.zeros(400))
    return observed(replace(alone, cached_adapters=np.zeros(400)), TRUTH)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[MeasuredRun, ...]:
    """Return runs whose time per output token is that of the twin with the true coefficients."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for slots, adapters, rate in ((8, 24, 0.2), (16, 16, 0.4), (24, 48, 0.1)):
        run = measured_run(
            folder,
            run_id=f"R{slots}",
            slots=slots,
            n_served=adapters,
            rates_counts=f"{rate}:{adapters}",
            total_time=90,
        )
        quantities = replay_run(run, _profile(), seed=0, horizon_s=None, front_end=FrontEnd()).quantities
        made.append(replace(run, measured=run.measured.model_copy(update={"tpot_mean_ms": quantities.tpot_mean_ms})))
    return tuple(made)


def _fit(runs: tuple[MeasuredRun, ...], prior: CoefficientPrior | None = None, *, small: bool = False) -> ServingFit:
    fixed = {name: 0.0 for name in HOST_FREE if name != "cached_adapter_ms"} | {"blocked_waiting_ms": 0.0}
    # On 30 GiB, 300 slots leave no room for a KV cache.
    profile = _profile().model_copy(update={"gpu_memory_gib": 30.0}) if small else _profile()
    return fit_with_runs(
        *(_benchmarks(), runs, profile, FrontEnd()), fixed=fixed, prior=prior, seeds=(0,), iterations=6, workers=1
    )


def test_runs_give_what_benchmarks_do_not_show(runs: tuple[MeasuredRun, ...], tmp_path: Path) -> None:
    """A cost per cached adapter is invisible in the benchmarks, and found in the time per output token."""
    blind = fit_step_time(_benchmarks(), fixed={name: 0.0 for name in HOST_FREE if name != "cached_adapter_ms"})
    assert blind.coefficients["cached_adapter_ms"] == 0.0
    unused = measured_run(tmp_path, tpot_mean_ms="")
    outcome = _fit((*runs, unused))
    assert outcome.run_ids == ("R8", "R16", "R24")
    assert max(abs(error) for error in outcome.tpot_error_percent) < 1.0
    assert outcome.fit.coefficients["cached_adapter_ms"] == pytest.approx(TRUTH.cached_adapter_ms, rel=0.1)
    assert outcome.fit.coefficients["base_ms"] == pytest.approx(TRUTH.base_ms, rel=0.02)
    low, high = outcome.intervals["cached_adapter_ms"]
    assert low <= outcome.fit.coefficients["cached_adapter_ms"] * 1.05
    assert high >= 0.95 * TRUTH.cached_adapter_ms


def test_rows_of_the_fit_say_what_benchmarks_and_runs_show(runs: tuple[MeasuredRun, ...]) -> None:
    """The benchmarks' rows come first; those of the runs are the terms of a token's steps over its time."""
    outcome = _fit(runs)
    benchmarks = relative_design(_benchmarks())
    assert outcome.rows.shape == (len(benchmarks) + len(runs), len(COEFFICIENT_NAMES))
    assert np.array_equal(outcome.rows[: len(benchmarks)], benchmarks)
    of_runs = outcome.rows[len(benchmarks) :]
    cached = COEFFICIENT_NAMES.index("cached_adapter_ms")
    assert not benchmarks[:, cached].any()
    assert (of_runs[:, cached] > 0).all()
    # Adapter loads are no step's, and are the rest.
    vector = np.array([outcome.fit.coefficients[name] for name in COEFFICIENT_NAMES])
    assert of_runs @ vector == pytest.approx(RUN_WEIGHT, rel=0.1)


def test_runs_are_covered_by_the_kinds_of_their_steps(runs: tuple[MeasuredRun, ...]) -> None:
    """Settings are as in the table of runs; decodes with LoRA take nearly all of a token's time."""
    coverage = _fit(runs).coverage
    assert (coverage.slots, coverage.max_ranks) == ((8, 16, 24), (16,))
    shares = coverage.time_shares
    assert shares["with LoRA"] == 1.0
    assert shares["without LoRA"] == 0.0
    assert shares["without a prefill"] > 0.5
    assert 0.0 < shares["with a prefill"] < 0.9
    assert shares["with a prefill beside decodes"] <= shares["with a prefill"]
    # Only eight slots are fewer than the adapters in use.
    assert shares["with a queue while adapters take all slots"] > 0.0
    enough = _fit(runs[1:2]).coverage
    assert (enough.slots, enough.time_shares["with a queue while adapters take all slots"]) == ((16,), 0.0)


def test_own_tables_with_runs_say_what_is_the_priors(runs: tuple[MeasuredRun, ...], tmp_path: Path) -> None:
    """Steps without LoRA and one run with it: a single mean does not decide a dozen LoRA coefficients."""
    steps = random_steps(600, seed=2)
    dense = observed(steps, TRUTH)
    write(tmp_path / "steps.csv", as_rows(dense.select(steps.slots == 0)))
    alone = calibrated(tmp_path)
    joint = calibrated(tmp_path, sources=CalibrationSources(runs=runs[1:2]), workers=1)
    reports = [outcome.profile.provenance["step_time"] for outcome in (alone, joint)]
    shares, shares_with_run = (report["data_shares"] for report in reports)
    assert all(shares_with_run[name] >= shares[name] - 1e-3 for name in COEFFICIENT_NAMES)
    assert 0.0 < sum(shares_with_run.values()) - sum(shares.values()) <= 1.0 + 1e-3
    kept = reports[1]["from_prior"]
    assert kept == sorted(name for name, share in shares_with_run.items() if share < LEAST_DATA_SHARE)
    assert {"blocked_waiting_ms", "adapter_request_ms"} <= set(kept) < set(reports[0]["from_prior"])
    assert shares_with_run["blocked_waiting_ms"] == 0.0
    assert len(joint.rows) == len(alone.rows) + 1 == len(joint.observations.time_ms) + 1
    coverage = RunCoverage.from_report(reports[1]["serving_runs"]["coverage"])
    assert (coverage.slots, coverage.max_ranks, coverage.time_shares["with LoRA"]) == ((16,), (16,), 1.0)
    assert coverage.as_report() == reports[1]["serving_runs"]["coverage"]


def test_a_wrong_prior_gives_way_to_benchmarks_and_runs(runs: tuple[MeasuredRun, ...]) -> None:
    """Twice the truth is believed of everything: benchmarks correct the base, runs the cost per cached adapter."""
    right = coefficient_prior(_profile())
    outcome = _fit(runs, CoefficientPrior(2.0 * right.values, 2.0 * right.deviations))
    found = outcome.fit.coefficients
    assert found["base_ms"] == pytest.approx(TRUTH.base_ms, rel=0.05)
    assert found["expand_tile_ms"] == pytest.approx(TRUTH.expand_tile_ms, rel=0.1)
    assert found["cached_adapter_ms"] == pytest.approx(TRUTH.cached_adapter_ms, rel=0.2)
    assert max(abs(error) for error in outcome.tpot_error_percent) < 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_time": 1, "rates_counts": "0.01:4"}, "must complete requests in the twin"),
        ({"rates_counts": "0:4"}, "must complete requests in the twin"),
        ({"slots": 300, "n_served": 4}, "must start in the twin"),
    ],
)
def test_run_that_the_twin_cannot_time_is_named(tmp_path: Path, changes: dict[str, str | int], message: str) -> None:
    """One that ends before its first request, without traffic, or does not fit the profile's memory."""
    run = measured_run(tmp_path, run_id="odd", **changes)
    with pytest.raises(InputError, match=message) as caught:
        _fit((run,), small="slots" in changes)
    assert (caught.value.field, caught.value.value) == ("run_id", "odd")
    assert "'odd'" in caught.value.message
    assert "leave the run out" in str(caught.value.hint)


def test_runs_without_a_time_per_token_are_refused(tmp_path: Path) -> None:
    """There is nothing to fit."""
    with pytest.raises(InputError, match="at least one serving run must have a time per output token"):
        _fit((measured_run(tmp_path, tpot_mean_ms=""),))


def test_progress_is_reported_after_every_iteration(runs: tuple[MeasuredRun, ...]) -> None:
    """Fits over simulations take minutes: whoever waits sees that the error falls."""
    reported: list[tuple[int, float]] = []
    fixed = dict.fromkeys(HOST_FREE, 0.0) | {"blocked_waiting_ms": 0.0, "cached_adapter_ms": 0.0}
    fit_with_runs(
        *(_benchmarks(), runs[:1], _profile(), FrontEnd()),
        fixed={name: value for name, value in fixed.items() if name != "cached_adapter_ms"},
        seeds=(0,),
        iterations=3,
        workers=1,
        on_iteration=lambda number, error: reported.append((number, error)),
    )
    assert [number for number, _ in reported] == [0, 1, 2]
    assert reported[-1][1] < reported[0][1]
