"""Measurements in the wrong unit, of another machine, or of no one form are called doubtful; sound ones are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.twin.random_steps import observed, random_steps
from tests.twin.test_step_table import LLAMA, PRIOR, STEP, calibrated, drawn_rows, write
from twin.calibration.described_fit import ProfileFit
from twin.calibration.plausibility import plausibility_warnings, scale_warnings
from twin.calibration.prior import prior_profile
from twin.calibration.step_table import no_steps, read_measurements, read_steps
from twin.errors import InputError
from twin.memory import GIB, slot_bytes
from twin.step_time import COEFFICIENT_NAMES


def _rows(factor: float = 1.0, **changes: float) -> list[dict[str, Any]]:
    """Return steps timed by the prior with some noise, in a unit of which `factor` make a millisecond."""
    truth = PRIOR.step_time.model_copy(
        update={name: getattr(PRIOR.step_time, name) * by for name, by in changes.items()}
    )
    return [row | {"time_ms": row["time_ms"] * factor} for row in drawn_rows(400, 4, truth, noise=0.03)]


def _warnings(folder: Path, name: str, rows: list[dict[str, Any]]) -> list[str]:
    write(folder / f"{name}.csv", rows)
    return list(plausibility_warnings(calibrated(folder), LLAMA))


@pytest.mark.parametrize(
    ("factor", "question"),
    [
        (1e-3, "is `time_ms` in seconds?"),
        (1e3, "is `time_ms` in microseconds?"),
        (1e6, "is `time_ms` in nanoseconds?"),
        (20.0, "check --model and --gpu"),
    ],
)
def test_step_times_of_another_size_than_expected_are_doubted(tmp_path: Path, factor: float, question: str) -> None:
    """A thousand times too much or too little is another unit; anything else beyond the band another machine."""
    assert question in _warnings(tmp_path, "steps", _rows(factor))[0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_step_times_within_the_band_are_not_doubted(tmp_path: Path, factor: float) -> None:
    """A GPU may be half or twice as fast as believed."""
    assert _warnings(tmp_path, "steps", _rows(factor)) == []


def test_a_fit_that_does_not_fit_is_doubted(tmp_path: Path) -> None:
    """Every other row in another unit: no coefficients give both."""
    rows = _rows()
    mixed = [row | {"time_ms": row["time_ms"] * (0.3 if index % 2 else 1.0)} for index, row in enumerate(rows)]
    (warning,) = (text for text in _warnings(tmp_path, "steps", mixed) if "errs by far more" in text)
    assert "one model on one GPU?" in warning
    assert "all " in warning


def test_a_coefficient_far_beyond_its_band_is_named(tmp_path: Path) -> None:
    """Adapters thirty times as dear as on any GPU; the other coefficients are not named."""
    (warning,) = _warnings(tmp_path, "steps", _rows(adapter_ms=30.0))
    assert "Far above what is expected of a100-80gb: `adapter_ms`" in warning
    assert "base_ms" not in warning


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        (
            "loads",
            {"rank": 8, "cpu_to_gpu_ms": 4e-3, "disk_to_cpu_ms": 40},
            "Loads cpu to gpu * `cpu_to_gpu_ms` in seconds?",
        ),
        ("loads", {"rank": 8, "cpu_to_gpu_ms": 4, "disk_to_cpu_ms": 4e4}, "Loads disk to cpu * in microseconds?"),
        ("loads", {"rank": 8, "cpu_to_gpu_ms": 9, "disk_to_cpu_ms": 90}, ""),
        ("startup", {"max_loras": 8, "seconds": 95_000}, "Starts * `seconds` in milliseconds?"),
        ("startup", {"max_loras": 8, "seconds": 60}, ""),
    ],
)
def test_loads_and_starts_in_another_unit_are_doubted(
    tmp_path: Path, name: str, row: dict[str, Any], words: str
) -> None:
    """A slow disk is not; a thousand times too much is."""
    warnings = _warnings(tmp_path, name, [row])
    assert len(warnings) == bool(words)
    for part in words.split(" * "):
        assert part in " ".join(warnings)


@pytest.mark.parametrize(("unit_tokens", "words"), [(1.0, ""), (16.0, "is `kv_tokens` in blocks?")])
def test_capacities_in_blocks_are_doubted(tmp_path: Path, unit_tokens: float, words: str) -> None:
    """Sixteen tokens to a block: nearly all of the cache would be missing."""
    rows: list[dict[str, Any]] = []
    for slots in (8, 32):
        kv_bytes = (78.4 * 0.9 - 3.5) * GIB - LLAMA.num_parameters * 2 - slots * slot_bytes(LLAMA, 16)
        tokens = int(kv_bytes / LLAMA.kv_bytes_per_token / unit_tokens)
        rows.append({"max_loras": slots, "max_lora_rank": 16, "kv_tokens": tokens})
    rows = [row | {"max_num_seqs": 256, "gpu_memory_utilization": 0.9} for row in rows]
    warnings = _warnings(tmp_path, "memory", rows)
    assert len(warnings) == bool(words)
    assert words in " ".join(warnings)


@pytest.mark.parametrize(("memory_gib", "is_doubted"), [(78.4, False), (40.0, False), (86.0, True), (20.0, True)])
def test_the_memory_is_that_of_the_gpu(memory_gib: float, *, is_doubted: bool) -> None:
    """More than the datasheet's is in GB or of another GPU; a half may be a part of one."""
    profile = prior_profile(LLAMA, "a100-80gb", gpu_memory_gib=memory_gib)
    warnings = plausibility_warnings(ProfileFit(profile, no_steps(), np.zeros((0, len(COEFFICIENT_NAMES)))), LLAMA)
    assert len(warnings) == int(is_doubted)
    assert ("is --gpu-memory-gib in GiB" in " ".join(warnings)) == is_doubted


@pytest.mark.parametrize("unit", ["ns", "ms"])
def test_durations_are_refused_with_what_to_write_instead(tmp_path: Path, unit: str) -> None:
    """A time delta is a number of nanoseconds inside, or of anything else."""
    frame = pd.DataFrame([STEP, STEP]).assign(
        time_ms=pd.to_timedelta([20, 21], unit="ms").astype(f"timedelta64[{unit}]")
    )
    path = tmp_path / "steps.parquet"
    frame.to_parquet(path)
    with pytest.raises(InputError, match="`time_ms` must have numbers, not durations") as caught:
        read_steps(read_measurements(path))
    assert caught.value.hint is not None
    assert "total_seconds() * 1000" in caught.value.hint


def test_dates_are_no_numbers(tmp_path: Path) -> None:
    """A column of timestamps is another column by mistake."""
    pd.DataFrame([STEP]).assign(tokens=pd.Timestamp("2026-01-01")).to_parquet(tmp_path / "steps.parquet")
    with pytest.raises(InputError, match="`tokens` must have numbers, not dates"):
        read_steps(read_measurements(tmp_path / "steps.parquet"))


def test_a_ratio_is_explained_by_the_nearest_unit() -> None:
    """Within a factor of five; else the general advice stands."""
    texts = [
        " ".join(
            scale_warnings("X", ratio, usual=(0.3, 3.0), units={1e3: "us", 1e6: "ns"}, column="c", otherwise="all")
        )
        for ratio in np.array([1.0, 400.0, 2e5, 20.0]).tolist()
    ]
    assert texts[0] == ""
    assert [text.rpartition(": ")[2] for text in texts[1:]] == ["is `c` in us?", "is `c` in ns?", "check all."]


@pytest.mark.parametrize(
    ("steps", "max_loras", "is_doubted"),
    [
        ("none", 0, False),
        ("none", 16, False),
        ("without LoRA", 0, True),
        ("without LoRA", 16, False),
        ("all", 16, True),
    ],
)
def test_runs_are_judged_by_the_prior_where_no_step_tells(steps: str, max_loras: int, *, is_doubted: bool) -> None:
    """1.7 times what is expected is within a prior's band, and too much beside steps of the same kind."""
    drawn = observed(random_steps(50, seed=1))
    chosen = {
        "none": np.zeros(50, dtype=np.bool_),
        "without LoRA": drawn.steps.slots == 0,
        "all": drawn.steps.slots >= 0,
    }
    runs = {
        "coverage": {"max_loras": [max_loras]},
        "steps_alone": {"measured_over_predicted": 1.7},
        "tpot_median_percent": 1.0,
    }
    profile = PRIOR.model_copy(update={"provenance": {"step_time": {"serving_runs": runs}}})
    observations = drawn.select(chosen[steps])
    fit = ProfileFit(profile, observations, np.zeros((0, len(COEFFICIENT_NAMES))), PRIOR)
    assert any("output token" in text for text in plausibility_warnings(fit, LLAMA)) == is_doubted
