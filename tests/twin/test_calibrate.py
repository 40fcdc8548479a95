"""Calibration: known coefficients come back from synthetic tables, the shipped profiles from the real ones."""

import sys
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
    TRUE_SLOT_MIB,
    run_loop,
    write_tables,
)
from twin.calibrate import STUDY_SERVING_TERMS, calibrate, fit_report, main
from twin.calibration_data import expected_distinct, idle_slots, join_steps
from twin.closed_loop import reconstruct_closed_loop, replay_closed_loop
from twin.errors import ProfileError
from twin.profile import StepTimeCoefficients, load_profile
from twin.step_fit import StepObservations, design_matrix, error_table, fit_step_time
from twin.step_time import COEFFICIENT_NAMES, step_time_ms


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose tables are made from `TRUE_COEFFICIENTS`."""
    folder = tmp_path_factory.mktemp("data") / "calibration"
    write_tables(folder)
    return folder


def random_observations(num_rows: int, seed: int) -> StepObservations:
    """Return steps drawn over all regimes, without times."""
    random = np.random.default_rng(seed)
    slots = random.choice([0, 8, 32, 100, 300], num_rows)
    adapters = np.minimum(random.integers(0, 100, num_rows), slots)
    rows = np.arange(num_rows)
    return StepObservations(
        tokens=random.choice([1, 60, 100, 127, 128, 300, 511, 512, 513, 900, 2048], num_rows).astype(np.float64),
        requests=random.integers(1, 300, num_rows).astype(np.float64),
        context_tokens=random.integers(0, 200_000, num_rows).astype(np.float64),
        adapters=adapters.astype(np.float64),
        prefill=random.integers(0, 2, num_rows).astype(np.float64),
        slots=slots.astype(np.int64),
        max_rank=np.where(slots > 0, random.choice([8, 16, 32, 64], num_rows), 0).astype(np.int64),
        weight=np.ones(num_rows),
        measurement=rows.astype(np.int64),
        time_ms=np.ones(num_rows),
        regime=np.array(["drawn"] * num_rows),
        without_adapter=np.zeros(num_rows, dtype=np.bool_),
    )


def timed(observations: StepObservations, coefficients: StepTimeCoefficients) -> StepObservations:
    """Return the steps with the times that `step_time_ms` gives them."""
    o = observations
    times = [
        step_time_ms(
            coefficients.as_array(),
            int(o.tokens[row]),
            int(o.requests[row]),
            int(o.context_tokens[row]),
            int(o.adapters[row]),
            int(o.prefill[row]),
            0,
            0,
            0,
            0,
            int(o.slots[row]),
            int(o.max_rank[row]),
        )
        for row in range(len(o.tokens))
    ]
    names = [name for name in StepObservations.__dataclass_fields__ if name != "time_ms"]
    return StepObservations(**{name: getattr(o, name) for name in names}, time_ms=np.array(times))


def all_coefficients(*, small_batch_ms: float) -> StepTimeCoefficients:
    """Return coefficients that all differ from 0, of the size that each has on a GPU."""
    sizes = {"base_ms": 12.0, "lora_base_ms": 1.0, "large_batch_ms": 2.0, "lora_large_batch_ms": 4.0}
    per_unit = {"context_token_ms": 7e-5, "mixed_context_token_ms": 3e-5, "mixed_step_ms": 1.5, "adapter_ms": 0.3}
    values = dict.fromkeys(COEFFICIENT_NAMES, 0.01) | sizes | per_unit | {"small_batch_ms": small_batch_ms}
    return StepTimeCoefficients(**values)


def test_terms_are_those_of_the_step_time() -> None:
    """The vectorised terms times coefficients equal the scalar function that both engines call."""
    coefficients = all_coefficients(small_batch_ms=-0.7)
    observations = timed(random_observations(400, seed=1), coefficients)
    assert design_matrix(observations) @ coefficients.as_array() == pytest.approx(observations.time_ms, rel=1e-12)


@pytest.mark.parametrize("small_batch_ms", [-0.7, 0.0, 0.9])
def test_known_coefficients_are_recovered(small_batch_ms: float) -> None:
    """Every identified coefficient comes back from noise-free steps, also the one that may be negative."""
    truth = all_coefficients(small_batch_ms=small_batch_ms)
    fit = fit_step_time(timed(random_observations(2000, seed=2), truth))
    expected = truth.model_dump() | {"blocked_waiting_ms": 0.0}
    assert fit.coefficients == pytest.approx(expected, rel=0.02, abs=1e-4)
    assert fit.errors[-1].mape_percent < 0.01


def test_noise_moves_the_coefficients_little_and_no_coefficient_below_zero() -> None:
    """With 2 % noise the fit's error is the noise's, and the constraint holds."""
    steps = timed(random_observations(2000, seed=3), TRUE_COEFFICIENTS)
    noise = np.random.default_rng(4).normal(1.0, 0.02, len(steps.time_ms))
    names = [name for name in StepObservations.__dataclass_fields__ if name != "time_ms"]
    noisy = StepObservations(**{name: getattr(steps, name) for name in names}, time_ms=steps.time_ms * noise)
    fit = fit_step_time(noisy)
    assert fit.errors[-1].mape_percent == pytest.approx(2.0 * np.sqrt(2.0 / np.pi), rel=0.1)
    assert min(value for name, value in fit.coefficients.items() if name != "small_batch_ms") >= 0.0
    assert error_table(steps, fit.coefficients)[-1].mape_percent < 0.5


def test_excluded_terms_are_zero() -> None:
    """What the data do not identify can be left out."""
    excluded = frozenset({"mixed_step_ms", "small_batch_ms"})
    fit = fit_step_time(timed(random_observations(300, seed=5), TRUE_COEFFICIENTS), excluded=excluded)
    assert {fit.coefficients[name] for name in excluded} == {0.0}


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
    columns = {"requests": 1, "context_tokens": 0, "adapters": 0, "prefill": 0, "slots": 0, "max_rank": 0}
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
    profile = calibrate(tables, model="llama-3.1-8b")
    report = profile.provenance["step_time"]
    assert report["in_sample_percent"]["all"]["rows"] == 60
    # The saving without an adapter is 0.5 ms and not part of the form, so that regime alone is off.
    assert report["no_adapter_ms"] == pytest.approx(0.5, abs=0.1)
    fitted = [row["mape"] for regime, row in report["in_sample_percent"].items() if "idle" not in regime]
    assert max(fitted[:-1]) < 0.3
    for name in ("base_ms", "token_ms", "context_token_ms", "adapter_ms", "slot_tile_ms"):
        assert getattr(profile.step_time, name) == pytest.approx(getattr(TRUE_COEFFICIENTS, name), rel=0.05)
    assert {name: getattr(profile.step_time, name) for name in STUDY_SERVING_TERMS} == STUDY_SERVING_TERMS
    memory = profile.memory
    assert memory.overhead_gib == pytest.approx(TRUE_OVERHEAD_GIB, abs=0.01)
    assert memory.slot_overhead_mib == pytest.approx(TRUE_SLOT_MIB, abs=0.05)
    assert memory.activation_gib == pytest.approx(TRUE_ACTIVATION_GIB, abs=0.01)
    assert memory.sampler_bytes_per_logit == pytest.approx(TRUE_BYTES_PER_LOGIT, rel=1e-3)
    assert (profile.startup.base_s, profile.startup.per_slot_s) == (100.0, 3.5)
    # Swaps of rank 8 into slots of rank 8, 16 and 32 take 7, 8 and 10 ms; outliers and loads at start-up do not count.
    loads = [(entry.rank, entry.cpu_to_gpu_ms, entry.disk_to_cpu_ms) for entry in profile.load_times]
    assert loads == [(8, pytest.approx(25 / 3), 68.0), (16, 7.5, 76.0), (32, 7.0, 92.0)]


def test_replicas_refused_for_their_context_have_a_measured_capacity(tables: Path) -> None:
    """A capacity too small for the model's length is known; no memory at all is None."""
    measured = {
        (entry.max_loras, entry.max_lora_rank): entry.kv_tokens
        for entry in calibrate(tables, model="llama-3.1-8b").memory.measured
    }
    assert len(measured) == 15
    short = measured[128, 32]
    assert short is not None
    assert 0 < short < 131072
    assert measured[384, 32] is None


def test_same_tables_give_the_same_profile(tables: Path) -> None:
    """The fit is deterministic, and the folder above is as good as the folder itself."""
    assert calibrate(tables, model="llama-3.1-8b") == calibrate(tables.parent, model="llama-3.1-8b")


def test_command_line_writes_the_profile_and_prints_the_report(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is what `calibrate` returns; the report goes to standard output."""
    output = tmp_path / "profile.json"
    assert main([str(tables), "--model", "llama-3.1-8b", "--output", str(output)]) == 0
    profile = calibrate(tables, model="llama-3.1-8b")
    assert load_profile(str(output)) == profile
    assert capsys.readouterr().out == fit_report(profile) + "\n"
    assert "decode with LoRA" in fit_report(profile)


def test_command_line_reports_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without tables: exit code 2, the message and the hint on standard error, nothing written."""
    output = tmp_path / "profile.json"
    assert main([str(tmp_path), "--model", "llama-3.1-8b", "--output", str(output)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: a calibration folder must hold the table calib_runs.csv")
    assert "hint: give the folder that holds the calib_* tables" in captured.err
    assert not output.exists()


def test_unknown_model_is_refused(tables: Path) -> None:
    """The tables cover two models."""
    with pytest.raises(ProfileError, match=r"llama-3\.1-8b, qwen2\.5-7b.*Got 'gpt-5'"):
        calibrate(tables, model="gpt-5")


def test_model_without_rows_is_refused(tables: Path) -> None:
    """These tables hold no rows of the other model."""
    with pytest.raises(ProfileError, match=r"must have rows of 'qwen2\.5-7b'"):
        calibrate(tables, model="qwen2.5-7b")


def test_fit_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is an optional extra: running a profile does not need it, fitting one does."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ProfileError, match="needs scipy") as caught:
        fit_step_time(timed(random_observations(10, seed=7), TRUE_COEFFICIENTS))
    assert caught.value.hint == "install the extra: lora-placer[train]"


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


def test_idle_slots_are_marked_as_steps_without_an_adapter(tables: Path) -> None:
    """Slots are allocated, no adapter is in the batch: what that saves must not be taken for a slot's cost."""
    observations = join_steps([idle_slots(tables, "llama-3.1-8b")])
    assert observations.without_adapter.all()
    assert set(observations.tokens) == {1.0}


@pytest.mark.parametrize(("model", "mape"), [("llama-3.1-8b", 1.7), ("qwen2.5-7b", 2.2)])
def test_shipped_profile_is_what_the_real_tables_give(data_dir: Path, model: str, mape: float) -> None:
    """The shipped profile can be made again from the public data, up to another machine's rounding, and explains it."""
    made, shipped = calibrate(data_dir, model=model), load_profile(f"{model}-h100-64gb")
    assert made.step_time.as_array() == pytest.approx(shipped.step_time.as_array(), rel=1e-3, abs=1e-6)
    rest = {"step_time": shipped.step_time, "provenance": shipped.provenance}
    assert made.model_copy(update=rest) == shipped
    assert made.provenance["sources"] == shipped.provenance["sources"]
    errors = made.provenance["step_time"]["in_sample_percent"]
    assert errors["all"]["mape"] < mape
    assert errors["logged decode"]["max"] < 3.0
