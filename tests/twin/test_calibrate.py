"""Calibration from the published tables: known coefficients come back, the shipped profiles from the real ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.calibration_tables import (
    TRUE_ACTIVATION_GIB,
    TRUE_BYTES_PER_LOGIT,
    TRUE_COEFFICIENTS,
    TRUE_OVERHEAD_GIB,
    TRUE_SCAN_MS,
    TRUE_SLOT_MIB,
    run_loop,
    write_tables,
)
from tests.twin.random_steps import EVERY_COEFFICIENT
from twin.calibration.closed_loop import reconstruct_closed_loop, replay_closed_loop
from twin.calibration.described_fit import HOST_TERMS, CalibrationSources
from twin.calibration.profile_fit import calibrate
from twin.calibration.step_fit import design_matrix, error_table, predicted_ms
from twin.calibration.tables import expected_distinct, idle_slots, join_steps, step_observations
from twin.errors import ProfileError
from twin.profile import load_profile
from twin.step_time import COEFFICIENT_NAMES


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose tables are made from `TRUE_COEFFICIENTS`."""
    folder = tmp_path_factory.mktemp("data") / "calibration"
    write_tables(folder)
    return folder


@settings(max_examples=60)
@given(
    num_requests=st.integers(1, 60),
    prompt_tokens=st.integers(1, 700),
    output_tokens=st.integers(1, 30),
    max_num_seqs=st.integers(1, 40),
)
def test_steps_of_a_loop_follow_from_its_tokens(
    num_requests: int, prompt_tokens: int, output_tokens: int, max_num_seqs: int
) -> None:
    """Requests, contexts and prefills counted from the tokens alone are those of a request-by-request simulation."""
    steps = run_loop(num_requests, prompt_tokens, output_tokens, max_num_seqs)
    tokens = np.array([step.tokens for step in steps])
    counts = reconstruct_closed_loop(tokens, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    assert counts is not None
    requests, contexts, has_prefill = counts
    assert requests.tolist() == [step.requests for step in steps]
    assert contexts.tolist() == [step.context_tokens for step in steps]
    assert has_prefill.tolist() == [step.has_prefill for step in steps]


@settings(max_examples=60)
@given(
    num_requests=st.integers(1, 60),
    prompt_tokens=st.integers(1, 700),
    output_tokens=st.integers(2, 30),
    max_num_seqs=st.integers(1, 40),
)
def test_replayed_loop_is_the_simulated_one(
    num_requests: int, prompt_tokens: int, output_tokens: int, max_num_seqs: int
) -> None:
    """Kinds of steps and the gaps that end in them, by counting and request by request."""
    table = replay_closed_loop(
        num_requests, prompt_tokens=prompt_tokens, output_tokens=output_tokens, max_num_seqs=max_num_seqs
    )
    steps = [step for step in run_loop(num_requests, prompt_tokens, output_tokens, max_num_seqs) if step.gaps]
    assert table["weight"].sum() == num_requests * (output_tokens - 1)
    for row in table.itertuples():
        kind = [step for step in steps if (step.tokens, step.has_prefill) == (row.tokens, row.prefill)]
        gaps = sum(step.gaps for step in kind)
        assert row.weight == gaps
        assert row.requests == pytest.approx(sum(step.gaps * step.requests for step in kind) / gaps)
        assert row.context_tokens == pytest.approx(sum(step.gaps * step.context_tokens for step in kind) / gaps)


@pytest.mark.parametrize("tokens", [[7], [10, 1], [10, 13]])
def test_log_of_no_closed_loop_is_not_replayed(tokens: list[int]) -> None:
    """Tokens that are no multiple of the prompt, or fewer than the requests that must be generating."""
    assert reconstruct_closed_loop(np.array(tokens), prompt_tokens=5, output_tokens=9) is None


def test_expected_distinct_adapters_is_the_mean_of_draws() -> None:
    """Checked against 20,000 uniform draws of 32 requests among 64 adapters."""
    draws = np.random.default_rng(6).integers(0, 64, (20_000, 32))
    mean = float(np.mean([len(set(row)) for row in draws.tolist()]))
    assert expected_distinct(64, 32) == pytest.approx(mean, rel=0.005)
    assert expected_distinct(1, 32) == 1.0


def test_measurements_of_several_rows_are_weighted_means() -> None:
    """One latency over two kinds of steps, 3 : 1, after a measurement of one row."""
    columns: dict[str, object] = {
        "requests": 1,
        "context_tokens": 0,
        "adapters": 0,
        "prefill": 0,
        "slots": 0,
        "max_rank": 0,
    }
    columns |= {"cached_adapters": 0, "group": "run"}
    single = pd.DataFrame([columns | {"tokens": 7, "time_ms": 1.0, "regime": "single"}])
    rows = [columns | {"tokens": 10, "weight": 3.0}, columns | {"tokens": 20, "weight": 1.0}]
    double = pd.DataFrame(rows).assign(time_ms=2.0, regime="double", measurement="loop")
    observations = join_steps([single, double])
    tokens = design_matrix(observations)[:, COEFFICIENT_NAMES.index("token_ms")]
    assert tokens.tolist() == [7.0, 12.5]
    assert observations.time_ms.tolist() == [1.0, 2.0]
    assert observations.regime.tolist() == ["single", "double"]


def test_calibration_recovers_what_the_tables_were_made_from(tables: Path) -> None:
    """Step times, memory, loads and start-up of a whole synthetic folder."""
    profile = calibrate(tables, model="llama-3.1-8b").profile
    report = profile.provenance["step_time"]
    assert report["in_sample_percent"]["all"]["rows"] == 60
    assert max(row["mape"] for row in report["in_sample_percent"].values()) < 0.3
    for name in ("base_ms", "token_ms", "context_token_ms", "adapter_ms", "expand_tile_ms", "shrink_tile_ms"):
        assert getattr(profile.step_time, name) == pytest.approx(getattr(TRUE_COEFFICIENTS, name), rel=0.05)
    assert profile.step_time.blocked_waiting_ms == pytest.approx(TRUE_SCAN_MS, rel=1e-4)
    assert report["not_fitted"] == ["blocked_waiting_ms"]
    memory = profile.memory
    assert memory.overhead_gib == pytest.approx(TRUE_OVERHEAD_GIB, abs=0.01)
    assert memory.slot_overhead_mib == pytest.approx(TRUE_SLOT_MIB, abs=0.05)
    assert memory.activation_gib == pytest.approx(TRUE_ACTIVATION_GIB, abs=0.01)
    assert memory.sampler_bytes_per_logit == pytest.approx(TRUE_BYTES_PER_LOGIT, rel=1e-3)
    assert (profile.startup.base_s, profile.startup.per_slot_s) == (100.0, 3.5)
    # Swaps of rank 8 into slots of rank 8, 16 and 32 take 7, 8 and 10 ms; outliers and loads at start-up do not count.
    loads = [tuple(entry.model_dump().values()) for entry in profile.load_times]
    assert loads == [
        (8, 8, 7.0, 68.0),
        (8, 16, 8.0, 68.0),
        (8, 32, 10.0, 68.0),
        (16, 16, 7.0, 76.0),
        (16, 32, 8.0, 76.0),
        (32, 32, 7.0, 92.0),
    ]


def test_intervals_hold_their_values_and_regimes_left_out_are_judged(tables: Path) -> None:
    """The report says how sure each coefficient is, and how far a regime is off that was not measured."""
    profile = calibrate(tables, model="llama-3.1-8b").profile
    report = profile.provenance["step_time"]
    for name, (low, high) in report["intervals_95"].items():
        value = getattr(profile.step_time, name)
        assert low - 1e-6 <= value <= high + 1e-6 or high - low < 0.1 * value, name
    assert {"max_lora_rank 32", "prefill with LoRA", "slots allocated, no adapter active"} <= set(
        report["left_out_percent"]
    )
    assert report["left_out_percent"]["max_lora_rank 32"]["mape"] < 1.0


def test_host_terms_are_taken_over_from_a_profile(tables: Path) -> None:
    """Five terms as they are, whatever the tables say of them; the others are fitted around them."""
    alone = calibrate(tables, model="llama-3.1-8b").profile
    host = alone.model_copy(update={"step_time": EVERY_COEFFICIENT})
    taken = calibrate(tables, model="llama-3.1-8b", sources=CalibrationSources(host_profile=host)).profile
    assert [getattr(taken.step_time, name) for name in HOST_TERMS] == [
        getattr(EVERY_COEFFICIENT, name) for name in HOST_TERMS
    ]
    report = taken.provenance["step_time"]
    assert report["taken_over"]["profile"] == host.name
    assert set(report["not_fitted"]) == set(HOST_TERMS)


def test_reported_errors_are_those_of_the_profile(tables: Path) -> None:
    """What a profile says of its errors is what its coefficients give on the same measurements."""
    profile = calibrate(tables, model="llama-3.1-8b").profile
    errors = error_table(step_observations(tables, "llama-3.1-8b"), profile.step_time.model_dump())
    reported = profile.provenance["step_time"]["in_sample_percent"]
    assert reported == {
        error.regime: {
            "rows": error.num_rows,
            "mape": pytest.approx(error.mape_percent, abs=0.01),
            "bias": pytest.approx(error.bias_percent, abs=0.01),
            "max": pytest.approx(error.max_percent, abs=0.01),
        }
        for error in errors
    }


def test_observations_of_the_tables_are_what_the_loops_did(tables: Path) -> None:
    """Counts that the log does not have are reconstructed: the true coefficients give the measured times."""
    observations = step_observations(tables, "llama-3.1-8b")
    predicted = predicted_ms(observations, TRUE_COEFFICIENTS.model_dump())
    assert predicted == pytest.approx(observations.time_ms, rel=0.01)


def test_replicas_refused_for_their_context_have_a_measured_capacity(tables: Path) -> None:
    """A capacity too small for the model's length is known; no memory at all is None."""
    measured = {
        (entry.max_loras, entry.max_lora_rank): entry.kv_tokens
        for entry in calibrate(tables, model="llama-3.1-8b").profile.memory.measured
    }
    assert len(measured) == 15
    short = measured[128, 32]
    assert short is not None
    assert 0 < short < 131072
    assert measured[384, 32] is None


def test_same_tables_give_the_same_profile(tables: Path) -> None:
    """The fit is deterministic, and the folder above is as good as the folder itself."""
    profiles = [calibrate(folder, model="llama-3.1-8b").profile for folder in (tables, tables.parent)]
    assert profiles[0] == profiles[1]


def test_unknown_model_is_refused(tables: Path) -> None:
    """The tables cover two models."""
    with pytest.raises(ProfileError, match=r"llama-3\.1-8b, qwen2\.5-7b.*Got 'gpt-5'"):
        calibrate(tables, model="gpt-5")


def test_model_without_rows_is_refused(tables: Path) -> None:
    """These tables hold no rows of the other model."""
    with pytest.raises(ProfileError, match=r"must have rows of 'qwen2\.5-7b'"):
        calibrate(tables, model="qwen2.5-7b")


@pytest.mark.parametrize(("table", "column", "message"), [("calib_runs.csv", "kv_tokens", "two numbers from 400 on")])
def test_tables_that_do_not_identify_the_memory_are_refused(
    tables: Path, tmp_path: Path, table: str, column: str, message: str
) -> None:
    """Without KV capacities at several numbers of sequences the sampler's share is unknown."""
    for path in tables.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = pd.read_csv(tmp_path / table)
    content[column] = float("nan")
    content.to_csv(tmp_path / table, index=False)
    with pytest.raises(ProfileError, match=message):
        calibrate(tmp_path, model="llama-3.1-8b")


def test_loads_without_swaps_of_a_rank_are_refused(tables: Path, tmp_path: Path) -> None:
    """A rank that was read from disk but never swapped has no load time."""
    for path in tables.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = pd.read_csv(tmp_path / "calib_loading_points.csv.gz")
    content = content[(content["adapter_rank"] != 16) | (content["type"] != "cpu_to_gpu")]
    content.to_csv(tmp_path / "calib_loading_points.csv.gz", index=False)
    with pytest.raises(ProfileError, match=r"same adapter ranks. Got \[8, 32\] and \[8, 16, 32\]"):
        calibrate(tmp_path, model="llama-3.1-8b")


def test_scheduler_runs_with_free_slots_say_nothing_about_the_queue(tables: Path, tmp_path: Path) -> None:
    """Without runs whose slots are all taken the coefficient is unknown, and the calibration says so."""
    for path in tables.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = pd.read_csv(tmp_path / "calib_scheduler_runs.csv.gz")
    content["mean_loras_by_batch"] = 0.5 * content["gpu_loras"]
    content.to_csv(tmp_path / "calib_scheduler_runs.csv.gz", index=False)
    with pytest.raises(ProfileError, match=r"at least 8 runs with all slots taken\. It has 0"):
        calibrate(tmp_path, model="llama-3.1-8b")


def test_missing_table_is_named(tmp_path: Path) -> None:
    """A folder without tables."""
    with pytest.raises(ProfileError, match=r"must hold the table calib_runs\.csv") as caught:
        calibrate(tmp_path, model="llama-3.1-8b")
    assert caught.value.hint == "give the folder that holds the calib_* tables"


def test_idle_slots_are_steps_of_one_token_without_an_adapter(tables: Path) -> None:
    """Slots are allocated, no adapter is in the batch: what they cost is the grid's, not an adapter's."""
    observations = join_steps([idle_slots(tables, "llama-3.1-8b")])
    assert set(observations.steps.adapters) == {0.0}
    assert set(observations.steps.tokens) == {1.0}
    assert observations.steps.slots.min() > 0


@pytest.mark.parametrize(("model", "mape"), [("llama-3.1-8b", 1.4), ("qwen2.5-7b", 1.5)])
def test_the_form_explains_the_real_benchmarks(data_dir: Path, model: str, mape: float) -> None:
    """The public micro-benchmarks alone, without serving runs."""
    profile = calibrate(data_dir, model=model).profile
    errors = profile.provenance["step_time"]["in_sample_percent"]
    assert errors["all"]["mape"] < mape
    assert errors["logged decode"]["max"] < 3.0


def test_shipped_profile_without_runs_is_what_the_real_tables_give(data_dir: Path) -> None:
    """The one whose host terms are taken over can be made again from the public data, up to another machine's rounding.

    The other one is fitted to simulated hours, which takes minutes.
    """
    shipped = load_profile("qwen2.5-7b-h100-64gb")
    sources = CalibrationSources(host_profile=load_profile("llama-3.1-8b-h100-64gb"))
    made = calibrate(data_dir, model="qwen2.5-7b", sources=sources).profile
    assert made.step_time.as_array() == pytest.approx(shipped.step_time.as_array(), rel=1e-3, abs=1e-6)
    rest = {"step_time": shipped.step_time, "provenance": shipped.provenance}
    assert made.model_copy(update=rest) == shipped
    assert made.provenance["sources"] == shipped.provenance["sources"]
