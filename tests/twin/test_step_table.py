"""A user's own tables: what is read, what is refused, and what a profile takes from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.twin.random_steps import EVERY_COEFFICIENT, as_values, observed, random_steps
from twin.calibration.described_fit import HOST_TERMS, CalibrationSources, ProfileFit
from twin.calibration.evidence import read_evidence
from twin.calibration.observations import StepObservations
from twin.calibration.prior import is_prior, prior_profile
from twin.calibration.step_fit import design_matrix, predicted_ms
from twin.calibration.step_table import find_tables, read_measurements, read_steps
from twin.calibration.table_fit import calibrate_tables
from twin.errors import InputError
from twin.hardware import SHIPPED_MODELS
from twin.memory import GIB, slot_bytes
from twin.profile import StepTimeCoefficients, load_profile

LLAMA = SHIPPED_MODELS["llama-3.1-8b"]
PRIOR = prior_profile(LLAMA, "a100-80gb")
STEP: dict[str, Any] = {
    "tokens": 40,
    "requests": 8,
    "context_tokens": 4000,
    "time_ms": 20.5,
    "adapters": 4,
    "max_loras": 16,
    "max_lora_rank": 32,
    "has_prefill": 1,
    "is_batch_changed": 1,
    "waiting": 7,
    "cached_adapters": 60,
    "regime": "mixed",
    "group": "run 1",
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the suffix of the path says."""
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def as_rows(observations: StepObservations) -> list[dict[str, Any]]:
    """Return drawn steps as rows of a table of steps."""
    steps = observations.steps
    frame = pd.DataFrame(
        {
            "tokens": steps.tokens,
            "requests": steps.requests,
            "context_tokens": steps.context_tokens,
            "adapters": np.minimum(steps.adapters, steps.requests),
            "max_loras": steps.slots,
            "max_lora_rank": steps.max_rank,
            "has_prefill": steps.prefill,
            "is_batch_changed": steps.changed,
            "waiting": steps.waiting,
            "cached_adapters": steps.cached_adapters,
            "time_ms": observations.time_ms,
        }
    )
    rows: list[dict[str, Any]] = frame.to_dict(orient="records")  # type: ignore[assignment]  # names are str
    return rows


def drawn_rows(
    num_rows: int, seed: int, truth: StepTimeCoefficients = EVERY_COEFFICIENT, *, noise: float = 0.0
) -> list[dict[str, Any]]:
    """Return rows timed by `truth`, with no more adapters than requests."""
    steps = random_steps(num_rows, seed)
    fewer = {"adapters": np.minimum(steps.adapters, steps.requests)}
    names = type(steps).__dataclass_fields__
    drawn = type(steps)(**({name: getattr(steps, name) for name in names} | fewer))
    return as_rows(observed(drawn, truth, noise=noise))


def calibrated(data: Path, **options: Any) -> ProfileFit:
    """Calibrate Llama on an A100 from a folder."""
    return calibrate_tables(
        read_evidence(data, model=LLAMA.name),
        model=LLAMA,
        prior=PRIOR,
        gpu="a100-80gb",
        gpu_memory_gib=78.4,
        name="mine",
        **options,
    )


@pytest.mark.parametrize("name", ["steps.csv", "steps.csv.gz", "steps.parquet"])
def test_every_column_reaches_the_observation(tmp_path: Path, name: str) -> None:
    """CSV, packed CSV and Parquet hold the same step."""
    observations = read_steps(read_measurements(write(tmp_path / name, [STEP])))
    steps = observations.steps
    values = {field: getattr(steps, field).tolist() for field in type(steps).__dataclass_fields__}
    assert values == {
        "tokens": [40.0],
        "requests": [8.0],
        "context_tokens": [4000.0],
        "adapters": [4.0],
        "prefill": [1.0],
        "changed": [1.0],
        "waiting": [7.0],
        "slots": [16],
        "max_rank": [32],
        "cached_adapters": [60.0],
    }
    assert (observations.time_ms.tolist(), observations.regime.tolist()) == ([20.5], ["mixed"])
    assert observations.group.tolist() == ["run 1"]


def test_missing_columns_have_their_documented_defaults(tmp_path: Path) -> None:
    """Four columns are enough for steps without LoRA."""
    rows = [{name: STEP[name] for name in ("tokens", "requests", "context_tokens", "time_ms")}]
    rows.append(rows[0] | {"tokens": 8})
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))
    steps = observations.steps
    assert steps.prefill.tolist() == steps.changed.tolist() == [1.0, 0.0]
    assert (steps.slots.tolist(), steps.cached_adapters.tolist()) == ([0, 0], [0.0, 0.0])
    assert observations.regime.tolist() == ["prefill or mixed step, without LoRA", "decode, without LoRA"]
    assert len(set(observations.group.tolist())) == 2


def test_equal_benchmarks_are_one_of_their_median_time(tmp_path: Path) -> None:
    """A stall does not move it, and rows that stand for many steps count as many."""
    rows = [STEP | {"time_ms": time, "context_tokens": 4000 + time} for time in (10, 11, 90)]
    rows += [STEP | {"time_ms": 30, "requests": 9}, STEP | {"time_ms": 12, "group": "run 2"}]
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))
    assert observations.time_ms.tolist() == [11.0, 30.0, 12.0]
    assert observations.steps.context_tokens[0] == pytest.approx(4037.0)
    weighted = [row | {"count": count} for row, count in zip(rows[:3], (1, 1, 9), strict=True)]
    observations = read_steps(read_measurements(write(tmp_path / "weighted.csv", weighted)))
    assert observations.time_ms.tolist() == [90.0]


def _log(counts: dict[tuple[int, int], int], *, group: str = "run 1") -> list[dict[str, Any]]:
    """Return steps of a log by (tokens, requests), whose contexts and times grow: time = tokens + context / 1000."""
    steps = [
        STEP | {"tokens": tokens, "requests": requests, "context_tokens": 100 * index, "group": group}
        for (tokens, requests), count in counts.items()
        for index in range(count)
    ]
    timed = [step | {"time_ms": step["tokens"] + step["context_tokens"] / 1000} for step in steps]
    return [step | {"step": number} for number, step in enumerate(timed)]


def test_steps_of_a_log_become_means_of_steps_that_are_alike(tmp_path: Path) -> None:
    """Frequent kinds are cut by context into at most 8 means; rare ones share one; every step counts once."""
    rows = _log({(40, 8): 100, (41, 8): 400, (50, 8): 7, (51, 8): 7, (52, 8): 9})
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows[::-1])))
    sizes = np.bincount(observations.measurement)
    assert sorted(sizes.tolist()) == [20] * 5 + [23] + [50] * 8
    assert observations.weight.sum() == len(rows)
    # The time is linear in tokens and contexts, so that a mean of times is the time of the means.
    steps = observations.steps
    expected = observations.means(steps.tokens) + observations.means(steps.context_tokens) / 1000
    assert observations.time_ms == pytest.approx(expected)
    frequent = steps.context_tokens[observations.measurement == observations.measurement[steps.tokens == 40].min()]
    assert sorted(frequent.tolist()) == [100.0 * index for index in range(20)]


def test_a_mean_of_a_log_stays_in_its_regime(tmp_path: Path) -> None:
    """Few steps of a kind without prefills are a mean of few steps; nothing is lost."""
    rows = _log({(40, 8): 10}) + _log({(40, 8): 10}, group="run 2")
    rows += [row | {"has_prefill": 0, "is_batch_changed": 0} for row in _log({(8, 8): 5})]
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))
    assert sorted(np.bincount(observations.measurement).tolist()) == [5, 20]


def test_what_is_frequent_in_a_long_log_does_not_outweigh_what_is_rare(tmp_path: Path) -> None:
    """A hundred groups of the same step are 8 means, as one group is."""
    rows = [row for number in range(100) for row in _log({(40, 8): 20}, group=f"window {number}")]
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))
    assert np.bincount(observations.measurement).tolist() == [250] * 8


def test_a_fit_to_a_log_meets_the_mean_of_times_with_a_long_tail(tmp_path: Path) -> None:
    """A tenth of the steps takes twice as long: the mean is 1.1 times what nine of ten take."""
    generator = np.random.default_rng(0)
    log = _log({(tokens, 8): 60 for tokens in range(8, 58)})
    tails = np.where(np.arange(len(log)) % 10 == 0, 2.0, 1.0)[generator.permutation(len(log))]
    rows = [row | {"time_ms": row["time_ms"] * tail} for row, tail in zip(log, tails, strict=True)]
    rows = [row for row in rows if row["tokens"] > 8]
    write(tmp_path / "steps.csv", rows)
    fit = calibrated(tmp_path)
    predicted = predicted_ms(fit.observations, fit.profile.step_time.model_dump())
    weights = np.bincount(fit.observations.measurement)
    measured = np.average(fit.observations.time_ms, weights=weights)
    assert np.average(predicted, weights=weights) == pytest.approx(measured, rel=0.02)
    assert measured == pytest.approx(np.mean([row["time_ms"] for row in rows]))


def test_tables_of_several_folders_are_fitted_together(tmp_path: Path) -> None:
    """Equal names of groups stay apart, loads and starts are joined, and errors name the file."""
    for slots, name in ((8, "one"), (16, "two")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "steps.csv", [STEP | {"max_loras": slots, "time_ms": slots}])
        write(tmp_path / name / "startup.csv", [{"max_loras": slots, "seconds": 20 + slots}])
        loads = [{"rank": slots, "cpu_to_gpu_ms": slots, "disk_to_cpu_ms": 10 * slots}]
        write(tmp_path / name / "loads.csv", loads)
    evidence = read_evidence(tmp_path / "one", tmp_path / "two", model=LLAMA.name)
    fit = calibrate_tables(evidence, model=LLAMA, prior=PRIOR, gpu="a100-80gb", gpu_memory_gib=78.4, name="mine")
    assert fit.observations.time_ms.tolist() == [8.0, 16.0]
    assert fit.observations.group.tolist() == ["1 run 1", "2 run 1"]
    assert (fit.profile.startup.base_s, fit.profile.startup.per_slot_s) == (20.0, 1.0)
    times = {entry.rank: (entry.cpu_to_gpu_ms, entry.disk_to_cpu_ms) for entry in fit.profile.load_times}
    assert (times[8], times[16]) == ((8.0, 80.0), (16.0, 160.0))
    assert sorted(fit.profile.provenance["sources"]) == sorted(
        f"{name}/{table}.csv" for name in ("one", "two") for table in ("steps", "startup", "loads")
    )
    write(tmp_path / "two" / "startup.csv", [{"max_loras": 8, "seconds": -1}])
    with pytest.raises(InputError, match=r"two/startup\.csv:2"):
        calibrate_tables(
            read_evidence(tmp_path / "one", tmp_path / "two", model=LLAMA.name),
            model=LLAMA,
            prior=PRIOR,
            gpu="a100-80gb",
            gpu_memory_gib=78.4,
            name="mine",
        )


def test_folders_and_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    """The profile says of each what it was: what is called alike is told apart by where it is."""
    paths = [tmp_path / place / "m" for place in ("one", "two")]
    for path in paths:
        path.mkdir(parents=True)
        write(path / "steps.csv", [STEP])
    for given in (paths, [path / "steps.csv" for path in paths]):
        hashes = read_evidence(*given, model=LLAMA.name).hashes
        assert list(hashes) == [f"{path}/steps.csv" for path in paths]


def test_measurements_given_twice_are_refused(tmp_path: Path) -> None:
    """They would count twice, by whatever path."""
    write(tmp_path / "steps.csv", [STEP])
    with pytest.raises(InputError, match="given twice"):
        read_evidence(tmp_path, tmp_path / ".." / tmp_path.name, model=LLAMA.name)


def test_rows_of_one_measurement_are_its_kinds_of_steps(tmp_path: Path) -> None:
    """A mean latency over two kinds of steps, 3 : 1."""
    rows = [
        STEP | {"measurement": "a", "weight": 3, "tokens": 40},
        STEP | {"measurement": "b", "weight": 1, "tokens": 50},
        STEP | {"measurement": "a", "weight": 1, "tokens": 80},
    ]
    observations = read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))
    assert design_matrix(observations)[:, 1].tolist() == [50.0, 50.0]
    assert observations.time_ms.tolist() == [20.5, 20.5]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"tokens": 0}, "tokens", "must be a number of at least 1. Got '0'"),
        ({"tokens": 4.5}, "tokens", "must be an integer"),
        ({"tokens": "many"}, "tokens", "Got 'many'"),
        ({"tokens": ""}, "tokens", "Got ''"),
        ({"requests": 41}, "requests", "must be at most `tokens`"),
        ({"context_tokens": -1}, "context_tokens", "at least 0"),
        ({"time_ms": 0}, "time_ms", "greater than 0"),
        ({"time_ms": "inf"}, "time_ms", "Got 'inf'"),
        ({"adapters": 17}, "adapters", "at most `max_loras`"),
        ({"adapters": 9}, "adapters", "at most `requests`"),
        ({"max_lora_rank": 0}, "max_lora_rank", "one of 8, 16, 32, 64, 128, 256, 320, 512"),
        ({"max_lora_rank": 7}, "max_lora_rank", "one of 8, 16, 32, 64, 128, 256, 320, 512"),
        ({"has_prefill": "maybe"}, "has_prefill", "must be 0 or 1"),
        ({"is_batch_changed": 2}, "is_batch_changed", "must be 0 or 1"),
        ({"cached_adapters": 3}, "cached_adapters", "at least `adapters`"),
        ({"waiting": -3}, "waiting", "at least 0"),
        ({"count": 0}, "count", "greater than 0"),
        ({"regime": ""}, "regime", "must have a value"),
        ({"measurement": ""}, "measurement", "must have a value"),
    ],
)
def test_bad_cell_is_named_with_its_line(tmp_path: Path, changes: dict[str, Any], field: str, message: str) -> None:
    """File, line, column and value; the first row is fine."""
    added = {name: 1 for name in ("count", "measurement") if name in changes}
    path = write(tmp_path / "steps.csv", [STEP | added, STEP | changes])
    with pytest.raises(InputError, match="must ") as caught:
        read_steps(read_measurements(path))
    error = caught.value
    assert message in error.message
    assert f"{path}:3" in error.message
    assert (error.file, error.field) == (str(path), field)
    assert str(changes[field]) in str(error.value)
    assert error.hint


def test_bad_cell_of_a_parquet_file_is_named_with_its_row(tmp_path: Path) -> None:
    """There are no lines; rows count from 1."""
    path = write(tmp_path / "steps.parquet", [STEP, STEP | {"time_ms": -1.0}])
    with pytest.raises(InputError, match=r"Got -1\.0 \(.*steps\.parquet, row 2\)"):
        read_steps(read_measurements(path))


def test_one_measurement_has_one_time(tmp_path: Path) -> None:
    """Two times for one mean contradict each other."""
    rows = [STEP | {"measurement": "a"}, STEP | {"measurement": "a", "time_ms": 21}]
    with pytest.raises(InputError, match=r"same in all rows of a `measurement`.*Got '21\.0'"):
        read_steps(read_measurements(write(tmp_path / "steps.csv", rows)))


@pytest.mark.parametrize("missing", ["tokens", "requests", "context_tokens", "time_ms", "max_lora_rank"])
def test_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    """Required columns, and the rank where there are slots."""
    row = {name: value for name, value in STEP.items() if name != missing}
    with pytest.raises(InputError, match=f"lacks {missing}") as caught:
        read_steps(read_measurements(write(tmp_path / "steps.csv", [row])))
    assert caught.value.field == missing


def test_two_columns_for_the_same_thing_are_refused(tmp_path: Path) -> None:
    """`count` is `weight`; a repeated heading is worse."""
    with pytest.raises(InputError, match="has both"):
        read_steps(read_measurements(write(tmp_path / "steps.csv", [STEP | {"count": 1, "weight": 2}])))
    path = tmp_path / "twice.csv"
    path.write_text("tokens, tokens\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="`tokens` twice"):
        read_measurements(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("steps.csv", b"", "must be CSV with a header. It is empty"),
        ("steps.csv", b"tokens\n", "must hold at least one row"),
        ("steps.csv", b"tokens\n\xff\xfe\n", "must be CSV with a header"),
        ("steps.parquet", b"no parquet", "must be Parquet"),
        ("steps.csv.gz", b"no gzip", "must be readable"),
    ],
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Empty, cut off, another format."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        find_tables(tmp_path)
    assert caught.value.file == str(tmp_path / name)


def test_folder_without_tables_or_with_one_twice_is_refused(tmp_path: Path) -> None:
    """A wrong path is told apart from an empty folder."""
    with pytest.raises(InputError, match="is neither"):
        find_tables(tmp_path / "nothing")
    with pytest.raises(InputError, match="has none of them"):
        find_tables(tmp_path)
    write(tmp_path / "steps.csv", [STEP])
    write(tmp_path / "steps.parquet", [STEP])
    with pytest.raises(InputError, match=r"has steps\.csv and steps\.parquet"):
        find_tables(tmp_path)
    assert list(find_tables(tmp_path / "steps.csv")) == ["steps"]


def test_many_steps_give_their_coefficients(tmp_path: Path) -> None:
    """A whole table of noise-free steps brings the profile from the prior to the truth."""
    write(tmp_path / "steps.csv", drawn_rows(1500, seed=1))
    outcome = calibrated(tmp_path)
    assert outcome.profile.step_time.model_dump() == pytest.approx(as_values(EVERY_COEFFICIENT), rel=0.1)
    report = outcome.profile.provenance["step_time"]
    assert report["in_sample_percent"]["all"]["mape"] < 0.1
    assert report["from_prior"] == []
    assert "regime decode, with LoRA" in report["left_out_percent"]
    assert not is_prior(outcome.profile)
    assert outcome.profile.provenance["prior"]["tables"] == ["loads", "memory", "startup"]
    assert set(outcome.profile.provenance["sources"]) == {"steps.csv"}


def test_steps_without_lora_leave_lora_to_the_prior(tmp_path: Path) -> None:
    """What was measured is fitted, what was not is kept and named."""
    rows = [row for row in drawn_rows(1500, seed=2) if row["max_loras"] == 0]
    write(tmp_path / "steps.csv", rows)
    profile = calibrated(tmp_path).profile
    kept = profile.provenance["step_time"]["from_prior"]
    assert {"adapter_ms", "lora_base_ms", "expand_tile_ms", "blocked_waiting_ms"} <= set(kept)
    assert not {"base_ms", "token_ms", "context_token_ms"} & set(kept)
    assert profile.step_time.adapter_ms == pytest.approx(PRIOR.step_time.adapter_ms)
    assert profile.step_time.base_ms == pytest.approx(EVERY_COEFFICIENT.base_ms, rel=0.02)


def test_host_terms_of_another_profile_are_not_fitted(tmp_path: Path) -> None:
    """They are as they are there, and named."""
    write(tmp_path / "steps.csv", drawn_rows(300, seed=3))
    host = load_profile("llama-3.1-8b-h100-64gb")
    profile = calibrated(tmp_path, sources=CalibrationSources(host_profile=host)).profile
    assert [getattr(profile.step_time, name) for name in HOST_TERMS] == [
        getattr(host.step_time, name) for name in HOST_TERMS
    ]
    report = profile.provenance["step_time"]
    assert report["not_fitted"] == sorted(HOST_TERMS)
    assert report["taken_over"]["profile"] == host.name


@pytest.mark.parametrize("is_long", [False, True])
def test_loads_are_medians_per_rank_and_gaps_are_the_priors(tmp_path: Path, is_long: bool) -> None:  # noqa: FBT001
    """Rank 16 was never read from disk."""
    wide: list[dict[str, Any]] = [
        {"rank": 8, "cpu_to_gpu_ms": 3.0, "disk_to_cpu_ms": 50.0},
        {"rank": 8, "cpu_to_gpu_ms": 4.0, "disk_to_cpu_ms": ""},
        {"rank": 8, "cpu_to_gpu_ms": 99.0, "disk_to_cpu_ms": 60.0},
        {"rank": 16, "cpu_to_gpu_ms": 7.0, "disk_to_cpu_ms": ""},
    ]
    long = [
        {"rank": row["rank"], "kind": kind, "ms": row[f"{kind}_ms"]}
        for row in wide
        for kind in ("cpu_to_gpu", "disk_to_cpu")
        if row[f"{kind}_ms"] != ""
    ]
    write(tmp_path / "loads.csv", long if is_long else wide)
    profile = calibrated(tmp_path).profile
    loads = [(entry.rank, entry.cpu_to_gpu_ms, entry.disk_to_cpu_ms) for entry in profile.load_times]
    disk_scale, copy_scale = 55.0 / PRIOR.load_time_ms(8, 8)[1], 7.0 / PRIOR.load_time_ms(16, 16)[0]
    assert loads[:2] == [(8, 4.0, 55.0), (16, 7.0, pytest.approx(disk_scale * PRIOR.load_time_ms(16, 16)[1], rel=1e-5))]
    for rank, copy_ms, disk_ms in loads[2:]:
        believed = PRIOR.load_time_ms(rank, rank)
        assert (copy_ms, disk_ms) == pytest.approx((copy_scale * believed[0], disk_scale * believed[1]), rel=1e-5)
    larger = [entry.rank for entry in PRIOR.load_times if entry.rank > 16]
    assert profile.provenance["load_times"]["ranks_from_prior"] == {"cpu_to_gpu": larger, "disk_to_cpu": [16, *larger]}
    # Nothing of the steps was measured.
    assert is_prior(profile)
    assert profile.step_time.model_dump() == pytest.approx(PRIOR.step_time.model_dump())


@pytest.mark.parametrize("ranks", [(8,), (32,), (8, 64), (12, 16)])
def test_ranks_without_loads_lie_in_order_between_the_measured_ones(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    """One rank does not stand for all: larger adapters take longer, and the measured times are kept."""
    rows = [{"rank": rank, "cpu_to_gpu_ms": 5.0 + 0.01 * rank, "disk_to_cpu_ms": 20.0 + 0.1 * rank} for rank in ranks]
    write(tmp_path / "loads.csv", rows)
    profile = calibrated(tmp_path).profile
    known = [entry.rank for entry in profile.load_times]
    assert known == sorted({*ranks, *(entry.rank for entry in PRIOR.load_times)})
    for row in rows:
        assert profile.load_time_ms(int(row["rank"]), 64) == pytest.approx(
            (row["cpu_to_gpu_ms"], row["disk_to_cpu_ms"])
        )
    for kind in ("cpu_to_gpu_ms", "disk_to_cpu_ms"):
        values = [getattr(entry, kind) for entry in profile.load_times]
        assert values == sorted(values)
    if ranks == (8,):
        scale = 5.08 / PRIOR.load_time_ms(8, 8)[0]
        assert profile.load_time_ms(64, 64)[0] == pytest.approx(scale * PRIOR.load_time_ms(64, 64)[0], rel=1e-5)


def test_loads_by_slot_rank_keep_their_medians_and_scale_the_rest(tmp_path: Path) -> None:
    """Rank 8 was copied into slots of rank 8 and 32; other ranks keep the prior's growth at the measured level."""
    rows = [
        {"rank": 8, "max_lora_rank": slot, "cpu_to_gpu_ms": ms, "disk_to_cpu_ms": 50.0}
        for slot, ms in ((8, 6.0), (8, 8.0), (32, 10.0))
    ]
    write(tmp_path / "loads.csv", rows)
    profile = calibrated(tmp_path).profile
    assert [(entry.rank, entry.max_lora_rank) for entry in profile.load_times[:3]] == [(8, 8), (8, 32), (16, None)]
    assert profile.load_time_ms(8, 8) == (7.0, 50.0)
    assert profile.load_time_ms(8, 16)[0] == pytest.approx(8.5)
    assert profile.load_time_ms(8, 32) == profile.load_time_ms(8, 64) == (10.0, 50.0)
    scale = 7.0 / PRIOR.load_time_ms(8, 8)[0]
    assert profile.load_time_ms(16, 16)[0] == pytest.approx(scale * PRIOR.load_time_ms(16, 16)[0], rel=1e-5)


def test_a_slot_below_the_adapters_rank_is_refused(tmp_path: Path) -> None:
    """Such a slot cannot hold the adapter."""
    write(tmp_path / "loads.csv", [{"rank": 16, "max_lora_rank": 8, "cpu_to_gpu_ms": 6.0, "disk_to_cpu_ms": 50.0}])
    with pytest.raises(InputError, match="at least the adapter's `rank`") as caught:
        calibrated(tmp_path)
    assert (caught.value.field, caught.value.value) == ("max_lora_rank", "8")


def test_memory_gives_the_overhead_and_keeps_the_capacities(tmp_path: Path) -> None:
    """KV tokens made from 2.5 GiB of overhead and 4 MiB per slot; one replica did not start."""
    peak = max(PRIOR.memory.activation_gib * GIB, PRIOR.memory.sampler_bytes_per_logit * LLAMA.vocab_size * 256)
    rows: list[dict[str, Any]] = []
    for slots in (8, 32, 64):
        free = 78.4 * GIB * 0.92 - LLAMA.num_parameters * 2 - peak - 2.5 * GIB
        kv_bytes = free - slots * (slot_bytes(LLAMA, 16) + 4 * 2**20)
        tokens = int(kv_bytes / LLAMA.kv_bytes_per_token)
        rows.append({"max_loras": slots, "max_lora_rank": 16, "kv_tokens": tokens})
    rows.append({"max_loras": 900, "max_lora_rank": 64, "kv_tokens": ""})
    write(tmp_path / "memory.csv", [row | {"max_num_seqs": 256, "gpu_memory_utilization": 0.92} for row in rows])
    memory = calibrated(tmp_path).profile.memory
    assert memory.overhead_gib == pytest.approx(2.5, abs=0.01)
    assert memory.slot_overhead_mib == pytest.approx(4.0, abs=0.05)
    assert (memory.measured_utilization, memory.measured_max_num_seqs) == (0.92, 256)
    assert [(entry.max_loras, entry.kv_tokens) for entry in memory.measured] == [
        *((row["max_loras"], row["kv_tokens"]) for row in rows[:3]),
        (900, None),
    ]


def test_capacities_that_cannot_all_be_kept_are_counted(tmp_path: Path) -> None:
    """Other settings count in the overhead; of repeated settings the least capacity is kept."""
    rows: list[dict[str, Any]] = [
        *(MEMORY | {"kv_tokens": tokens} for tokens in (300_000, 290_000, 290_000)),
        *(MEMORY | {"max_loras": 16, "kv_tokens": tokens} for tokens in ("", 250_000)),
        *(MEMORY | {"max_loras": 32, "kv_tokens": tokens} for tokens in (200_000, 200_000)),
        *(MEMORY | {"gpu_memory_utilization": 0.8, "kv_tokens": tokens} for tokens in (230_000, 220_000)),
    ]
    outcomes = []
    for part in (rows[:-2], rows):
        write(tmp_path / "memory.csv", part)
        outcomes.append(calibrated(tmp_path).profile)
    kept = [(entry.max_loras, entry.kv_tokens) for entry in outcomes[1].memory.measured]
    assert kept == [(8, 290_000), (16, None), (32, 200_000)]
    assert outcomes[1].provenance["memory"] == {"rows": 9, "other_settings": 2, "contradicting": 5}
    assert outcomes[0].provenance["memory"] == {"rows": 7, "other_settings": 0, "contradicting": 5}
    assert outcomes[0].memory.overhead_gib != outcomes[1].memory.overhead_gib


def test_startup_is_a_line_over_slots_or_the_priors_slope(tmp_path: Path) -> None:
    """One number of slots says nothing about the time per slot."""
    write(tmp_path / "startup.csv", [{"max_loras": slots, "seconds": 60 + 2 * slots} for slots in (8, 16, 64)])
    startup = calibrated(tmp_path).profile.startup
    assert (startup.base_s, startup.per_slot_s) == (60.0, 2.0)
    write(tmp_path / "startup.csv", [{"max_loras": 10, "seconds": 100}])
    startup = calibrated(tmp_path).profile.startup
    assert startup.per_slot_s == PRIOR.startup.per_slot_s
    assert startup.base_s == pytest.approx(100 - 10 * PRIOR.startup.per_slot_s)


MEMORY = {"max_loras": 8, "max_lora_rank": 16, "max_num_seqs": 256, "gpu_memory_utilization": 0.9, "kv_tokens": 100_000}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("loads", {"rank": 0, "cpu_to_gpu_ms": 1, "disk_to_cpu_ms": 1}, "`rank` must be a number of at least 1"),
        ("loads", {"rank": 8, "cpu_to_gpu_ms": 1}, "lacks disk_to_cpu_ms"),
        ("loads", {"rank": 8, "cpu_to_gpu_ms": "x", "disk_to_cpu_ms": 1}, "must be empty or a number"),
        ("loads", {"rank": 8, "kind": "gpu", "ms": 3}, "`kind` must be cpu_to_gpu or disk_to_cpu. Got 'gpu'"),
        ("loads", {"rank": 8, "kind": "cpu_to_gpu"}, "lacks ms"),
        ("memory", MEMORY | {"gpu_memory_utilization": 1.2}, r"must be in \(0, 1\]"),
        ("memory", MEMORY | {"max_lora_rank": 0}, "one of 8, 16, 32, 64, 128, 256, 320, 512"),
        ("memory", MEMORY | {"max_lora_rank": 7}, "one of 8, 16, 32, 64, 128, 256, 320, 512"),
        ("memory", MEMORY | {"kv_tokens": -1}, "must be empty or a number"),
        ("memory", MEMORY | {"kv_tokens": 900_000}, "less than they take on 78.4 GiB"),
        ("memory", {"max_loras": 8}, "lacks max_lora_rank"),
        ("startup", {"max_loras": 8, "seconds": "soon"}, "Got 'soon'"),
        ("startup", {"max_loras": 8}, "lacks seconds"),
    ],
)
def test_bad_cell_of_the_other_tables_is_named(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    """As in the table of steps."""
    path = write(tmp_path / f"{name}.csv", [row])
    with pytest.raises(InputError, match=message) as caught:
        calibrated(tmp_path)
    assert caught.value.file == str(path)
