"""Calibrating from what a known profile would have shown: what is identified comes back, the rest is the prior's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.twin.simulated_serving import (
    LLAMA,
    adapters_of,
    bench_result,
    closed_loop_requests,
    scrapes,
    serve,
    write_pages,
)
from twin.calibration.described_fit import ProfileFit
from twin.calibration.evidence import read_evidence
from twin.calibration.prior import prior_profile
from twin.calibration.serving_settings import parse_settings
from twin.calibration.table_fit import calibrate_tables
from twin.engine import EngineConfig
from twin.lengths import LengthDistribution
from twin.profile import PerformanceProfile, StepTimeCoefficients, load_profile
from twin.workload import Workload

GPU = "h100-64gb"
PRIOR = prior_profile(LLAMA, GPU, gpu_memory_gib=None)
NUM_ADAPTERS = 12
ENGINE: dict[str, Any] = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
LORA = ENGINE | {"max_loras": 16, "max_lora_rank": 16, "max_cpu_loras": 32}
PLAIN = ENGINE | {"enable_lora": False}
PROMPT, OUTPUT = LengthDistribution(mean=300, std=200, min=4, max=1500), LengthDistribution(mean=200, std=150, min=4)
LORA_TERMS = (
    *("lora_base_ms", "lora_active_ms", "lora_token_ms", "expand_tile_ms", "shrink_tile_ms", "adapter_ms"),
    *("adapter_shrink_ms", "adapter_request_ms", "cached_adapter_ms", "slot_lookup_ms"),
)
# Of the loads that were measured, and between them.
RATES = (0.5, 1.0, 2.0, 4.0, 6.0)
RATES_BETWEEN = (0.7, 3.0, 5.5)


def _truth() -> PerformanceProfile:
    """Return a machine on which a step takes 1.7 times what the measured one's does, and context 2.5 times."""
    shipped = load_profile("llama-3.1-8b-h100-64gb")
    values = {name: 1.7 * value for name, value in shipped.step_time.model_dump().items()}
    values["context_token_ms"] *= 2.5 / 1.7
    return shipped.model_copy(update={"step_time": StepTimeCoefficients(**values)})


TRUTH = _truth()


def _write_metrics(folder: Path, engine: EngineConfig) -> None:
    names = [f"adapter-{index}" for index in range(NUM_ADAPTERS)]
    for rate in RATES:
        served = serve(TRUTH, engine, adapters_of(NUM_ADAPTERS, rate, prompt=PROMPT, output=OUTPUT), horizon_s=300)
        pages = scrapes(served, [10.0 * index for index in range(31)], names=names)
        write_pages(folder / f"pages-{rate:g}.txt", pages, served)


def _write_detailed(folder: Path, engine: EngineConfig) -> None:
    _write_open(folder, engine, has_details=True)


def _write_plain(folder: Path, engine: EngineConfig) -> None:
    _write_open(folder, engine, has_details=False)


def _write_open(folder: Path, engine: EngineConfig, *, has_details: bool) -> None:
    for rate in RATES:
        adapters = adapters_of(NUM_ADAPTERS, rate, prompt=PROMPT, output=OUTPUT)
        requests = Workload(adapters).requests(horizon_s=200, seed=1)
        served = serve(TRUTH, engine, adapters, horizon_s=400, requests=requests)
        _save(
            folder / f"rate-{rate:g}.json", bench_result(served, rate=rate, concurrency=None, has_details=has_details)
        )


def _write_closed(folder: Path, engine: EngineConfig) -> None:
    adapters = adapters_of(NUM_ADAPTERS, 1.0, prompt=PROMPT, output=OUTPUT)
    for places in (1, 4, 16, 32):
        requests = closed_loop_requests(TRUTH, engine, adapters, places=places, number=max(20, 10 * places))
        served = serve(TRUTH, engine, adapters, horizon_s=1e5, requests=requests)
        _save(folder / f"places-{places}.json", bench_result(served, rate="inf", concurrency=places, has_details=False))


def _save(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _calibrated(folder: Path, engine: dict[str, Any]) -> ProfileFit:
    known = parse_settings({"engine": engine, "adapters": NUM_ADAPTERS}, file="settings.yaml")
    evidence = read_evidence(folder, model=LLAMA.name, settings_of=lambda _: known)
    return calibrate_tables(
        evidence,
        model=LLAMA,
        prior=PRIOR,
        gpu=GPU,
        gpu_memory_gib=TRUTH.gpu_memory_gib,
        name="calibrated",
        workers=1,
    )


def _errors_percent(profile: PerformanceProfile, engine: EngineConfig) -> list[float]:
    """Return how far the mean step is off under loads that were not measured."""
    errors = []
    for rate in RATES_BETWEEN:
        adapters = adapters_of(NUM_ADAPTERS, rate, prompt=PROMPT, output=OUTPUT)
        served = serve(TRUTH, engine, adapters, horizon_s=100, seed=9)
        errors.append(100 * (served.mean_step_ms(profile.step_time) / served.mean_step_ms(TRUTH.step_time) - 1))
    return errors


@pytest.mark.parametrize(
    ("write", "settings", "tolerance_percent"),
    [
        (_write_metrics, PLAIN, 1.5),
        (_write_metrics, LORA, 3.0),
        (_write_detailed, LORA, 3.0),
        (_write_plain, LORA, 3.0),
        (_write_closed, LORA, 5.0),
    ],
    ids=["metrics without LoRA", "metrics", "details", "open loops", "closed loops"],
)
def test_step_times_come_back(
    tmp_path: Path, write: Callable[[Path, EngineConfig], None], settings: dict[str, Any], tolerance_percent: float
) -> None:
    """The prior is off by a third or more; calibrated, loads between the measured ones are within a few percent."""
    engine = EngineConfig.model_validate(settings)
    write(tmp_path, engine)
    outcome = _calibrated(tmp_path, settings)
    assert min(abs(error) for error in _errors_percent(PRIOR, engine)) > 33
    assert max(abs(error) for error in _errors_percent(outcome.profile, engine)) < tolerance_percent
    report = outcome.profile.provenance["step_time"]
    assert "base_ms" not in report["from_prior"]
    low, high = report["intervals_95"]["base_ms"]
    # A few percent of the mean step may be moved between the terms that all steps have.
    assert low * 0.95 < TRUTH.step_time.base_ms < high * 1.05


def test_what_metrics_do_not_identify_stays_the_priors(tmp_path: Path) -> None:
    """A server without LoRA says nothing about LoRA; none is in the queue: all of that is the prior's, and named."""
    _write_metrics(tmp_path, EngineConfig.model_validate(PLAIN))
    outcome = _calibrated(tmp_path, PLAIN)
    kept = outcome.profile.provenance["step_time"]["from_prior"]
    assert set(LORA_TERMS) | {"blocked_waiting_ms", "large_batch_ms"} <= set(kept)
    for name in LORA_TERMS:
        assert getattr(outcome.profile.step_time, name) == pytest.approx(getattr(PRIOR.step_time, name), rel=1e-3)
    assert outcome.profile.provenance["prior"]["tables"] == ["loads", "memory", "startup"]
    assert outcome.profile.provenance["kind"] == "calibrated"


def test_adapters_in_the_batch_are_identified_from_metrics(tmp_path: Path) -> None:
    """Loads with one to twelve adapters in the batch tell what an adapter costs."""
    _write_metrics(tmp_path, EngineConfig.model_validate(LORA))
    outcome = _calibrated(tmp_path, LORA)
    report = outcome.profile.provenance["step_time"]
    assert "adapter_ms" not in report["from_prior"]
    low, high = report["intervals_95"]["adapter_ms"]
    assert low <= TRUTH.step_time.adapter_ms <= high
    assert "cached_adapter_ms" in report["from_prior"]


def test_what_was_read_and_assumed_is_in_the_provenance(tmp_path: Path) -> None:
    """Files with their hash, windows used and left out by reason, and every assumption."""
    _write_metrics(tmp_path, EngineConfig.model_validate(PLAIN))
    (tmp_path / "notes.bin").write_bytes(b"\0\1")
    outcome = _calibrated(tmp_path, PLAIN)
    serving = outcome.profile.provenance["serving"]
    source = serving["sources"][0]
    assert source["files"] == sorted(path.name for path in tmp_path.glob("pages-*"))
    assert source["read"] == source["used"] + sum(source["dropped"].values()) == 150
    assert serving["windows"] == len(outcome.observations.time_ms)
    assert serving["unread"] == ["notes.bin"]
    assert any("independent" in sentence for sentence in serving["assumed"])
    assert set(outcome.profile.provenance["sources"]) == set(source["files"])
