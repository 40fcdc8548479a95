"""A measurement replayed: the twin measured by itself is predicted exactly, and calibrating on it gives it back."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from placer.calibration_settings import SettingsReader
from tests.twin.measured import ignore_progress, new_folder
from tests.twin.measured_by_twin import TwinDriver
from tests.twin.simulated_serving import LLAMA, adapters_of
from twin.calibration.described_fit import ProfileFit
from twin.calibration.evidence import read_evidence
from twin.calibration.prior import prior_profile
from twin.calibration.table_fit import calibrate_tables
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.measurement.folder import MeasurementFolder, create_folder, open_folder
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import EndpointSettings, InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.session import run_segment
from twin.profile import PerformanceProfile, StepTimeCoefficients, load_profile
from twin.validation.measurement_replay import ReplayedMeasurement, replay_measurement
from twin.workload import Workload

GPU = "h100-64gb"
ENGINE = EngineConfig(max_loras=4, max_lora_rank=16, max_cpu_loras=6, max_num_seqs=64, max_num_batched_tokens=1024)
HORIZON_S = 60.0


def _truth() -> PerformanceProfile:
    """Return a machine whose steps take 1.7 times as long as the measured one's."""
    shipped = load_profile("llama-3.1-8b-h100-64gb")
    slower = {name: 1.7 * value for name, value in shipped.step_time.model_dump().items()}
    return shipped.model_copy(update={"step_time": StepTimeCoefficients(**slower)})


TRUTH = _truth()


def _workload() -> Workload:
    prompt, output = LengthDistribution(mean=200, std=150, min=4, max=900), LengthDistribution(mean=80, std=60, min=1)
    return Workload(adapters_of(8, 4.0, prompt=prompt, output=output))


def _measure(path: Path, *, stops_s: float | None = None, over_http: bool = False) -> MeasurementFolder:
    http = EndpointSettings(url="http://server", metrics_url="http://server/metrics", engine=ENGINE.model_dump())
    in_process = InProcessSettings(model="model", engine={"max_loras": 4})
    folder = new_folder(path, _workload(), horizon_s=HORIZON_S, settings=http if over_http else in_process)
    driver = TwinDriver(TRUTH, ENGINE, stops_s=stops_s, sees_steps=not over_http)
    while folder.manifest.status != "complete":
        run_segment(folder, driver, StopRequest(), ignore_progress)
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> MeasurementFolder:
    """Return a minute of eight adapters on four slots."""
    return _measure(tmp_path_factory.mktemp("whole") / "m")


def _require_equal(replayed: ReplayedMeasurement) -> None:
    one, other = replayed.measured, replayed.simulated
    assert (other.finished, other.finished_tokens) == (one.finished, one.finished_tokens)
    for field in ("ttft", "tpot", "itl"):
        expected, actual = getattr(one, field), getattr(other, field)
        assert actual.mean_s == pytest.approx(expected.mean_s, rel=1e-6)
        # The twin counts the gaps between tokens in bins of 1.6 %.
        for statistic in ("p50_s", "p95_s", "p99_s"):
            assert getattr(actual, statistic) == pytest.approx(getattr(expected, statistic), rel=0.02)


@pytest.mark.parametrize("stops_s", [None, 20.0])
def test_the_twin_measured_by_itself_is_predicted_exactly(tmp_path: Path, stops_s: float | None) -> None:
    """Tokens, latencies, steps and loads agree, also of a measurement that was interrupted and went on."""
    folder = _measure(tmp_path / "m", stops_s=stops_s)
    assert len(folder.manifest.segments) == (1 if stops_s is None else 2)
    replayed = replay_measurement(folder, TRUTH, LLAMA, ENGINE)
    _require_equal(replayed)
    seen, simulated = replayed.engine_measured, replayed.engine_simulated
    assert seen is not None
    for field in ("steps", "preemptions", "gpu_loads", "disk_loads"):
        assert getattr(simulated, field) == getattr(seen, field)
    for field in ("busy_s", "load_s", "running_s"):
        # Of the step that is cut off by an interruption, the twin counts the part before it.
        assert getattr(simulated, field) == pytest.approx(getattr(seen, field), rel=1e-6 if stops_s is None else 1e-3)
    assert seen.gpu_loads > 8
    assert folder.manifest.summary is not None
    assert replayed.measured_s == pytest.approx(folder.manifest.summary.measured_s)
    assert replayed.measured.finished_tokens / replayed.measured_s == pytest.approx(
        folder.manifest.summary.throughput_tps, rel=1e-5
    )


def test_over_http_only_requests_are_compared(tmp_path: Path) -> None:
    """Nobody saw the steps; what the client saw agrees."""
    replayed = replay_measurement(_measure(tmp_path / "m", over_http=True), TRUTH, LLAMA, ENGINE)
    assert replayed.engine_measured is None
    _require_equal(replayed)


def test_requests_to_the_base_model_are_replayed(tmp_path: Path) -> None:
    """They have no adapter, alone and beside those that have one."""
    drawn = _workload().requests(horizon_s=20.0)
    to_base = np.where(np.arange(len(drawn)) % 2, drawn.adapter, -1).astype(np.int32)
    facts = WorkloadFacts(adapters=_workload().adapters, num_requests=len(drawn), horizon_s=20.0, seed=0)
    for name, adapter in (("some", to_base), ("all", np.full_like(to_base, -1))):
        manifest = Manifest(workload=facts, settings=InProcessSettings(model="model", engine={"max_loras": 4}))
        folder = create_folder(tmp_path / name, manifest, replace(drawn, adapter=adapter), _workload())
        run_segment(folder, TwinDriver(TRUTH, ENGINE), StopRequest(), ignore_progress)
        _require_equal(replay_measurement(folder, TRUTH, LLAMA, ENGINE))


def test_kv_blocks_are_the_servers(measured: MeasurementFolder) -> None:
    """A server with few blocks preempts, whatever the profile says about memory."""
    server = measured.manifest.server.model_copy(update={"kv_tokens": 2048})
    small = MeasurementFolder(measured.path, measured.manifest.model_copy(update={"server": server}))
    assert replay_measurement(small, TRUTH, LLAMA, ENGINE).engine_simulated.preemptions > 0


def _calibrated(folder: MeasurementFolder) -> ProfileFit:
    evidence = read_evidence(folder.path, model=LLAMA.name, settings_of=SettingsReader(None))
    assert evidence.unread == ()
    return calibrate_tables(
        evidence,
        model=LLAMA,
        prior=prior_profile(LLAMA, GPU, gpu_memory_gib=None),
        gpu=GPU,
        gpu_memory_gib=TRUTH.gpu_memory_gib,
        name="calibrated",
    )


def test_calibrating_on_a_measurement_gives_it_back(measured: MeasurementFolder) -> None:
    """Steps, loads, memory and start-up come from its tables; replayed, it is met where the prior is far off."""
    outcome = _calibrated(measured)
    provenance = outcome.profile.provenance
    assert provenance["prior"]["tables"] == []
    assert set(provenance["sources"]) == {f"{name}.parquet" for name in ("steps", "loads", "memory", "startup")}
    assert provenance["step_time"]["in_sample_percent"]["all"]["mape"] < 1.0
    assert outcome.profile.load_time_ms(16, 16) == pytest.approx(TRUTH.load_time_ms(16, 16))
    replayed = replay_measurement(measured, outcome.profile, LLAMA, ENGINE)
    seen = replayed.engine_measured
    assert seen is not None
    assert replayed.simulated.itl.mean_s == pytest.approx(replayed.measured.itl.mean_s, rel=0.02)
    assert replayed.simulated.ttft.mean_s == pytest.approx(replayed.measured.ttft.mean_s, rel=0.05)
    assert replayed.engine_simulated.load_s == pytest.approx(seen.load_s, rel=0.1)
    unfitted = replay_measurement(measured, prior_profile(LLAMA, GPU, gpu_memory_gib=None), LLAMA, ENGINE)
    assert unfitted.simulated.itl.mean_s is not None
    assert unfitted.measured.itl.mean_s is not None
    assert unfitted.simulated.itl.mean_s < 0.75 * unfitted.measured.itl.mean_s


def test_nothing_sent_and_nothing_measured_are_errors(tmp_path: Path) -> None:
    """A folder without tables says how to make them."""
    folder = new_folder(tmp_path / "m", _workload(), horizon_s=HORIZON_S)
    with pytest.raises(InputError, match="must have sent requests"):
        replay_measurement(folder, TRUTH, LLAMA, ENGINE)
    with pytest.raises(InputError, match="neither") as caught:
        read_evidence(folder.path, model=LLAMA.name)
    assert caught.value.hint is not None
    assert "--finish" in caught.value.hint


def test_tables_of_something_else_are_named(measured: MeasurementFolder, tmp_path: Path) -> None:
    """A column that is not there, an adapter that the manifest does not have, a file that was cut off."""
    copy = open_folder(Path(shutil.copytree(measured.path, tmp_path / "m")))
    path = copy.path / "requests.parquet"
    requests = pd.read_parquet(path)
    requests.drop(columns="ttft_s").to_parquet(path)
    with pytest.raises(InputError, match=r"requests\.parquet lacks ttft_s"):
        replay_measurement(copy, TRUTH, LLAMA, ENGINE)
    requests.assign(adapter="other").to_parquet(path)
    with pytest.raises(InputError, match="has the adapter 'other'") as caught:
        replay_measurement(copy, TRUTH, LLAMA, ENGINE)
    assert (caught.value.field, caught.value.value) == ("adapter", "other")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"Parquet.*requests\.parquet"):
        replay_measurement(copy, TRUTH, LLAMA, ENGINE)
    with pytest.raises(InputError, match=r"Parquet.*requests\.parquet"):
        read_evidence(copy.path, model=LLAMA.name)


def test_settings_come_from_the_manifest(measured: MeasurementFolder, tmp_path: Path) -> None:
    """In process all settings are known; over HTTP those that were declared."""
    known = SettingsReader(None)(measured.path)
    assert known.given >= {"max_loras", "max_num_batched_tokens", "block_size"}
    assert (known.engine.max_loras, len(known.shares), set(known.ranks)) == (4, 8, {16})
    folder = new_folder(
        tmp_path / "http",
        _workload(),
        settings=EndpointSettings(url="u", metrics_url="u/metrics", engine={"max_loras": 4}),
    )
    assert SettingsReader(None)(folder.path).given == {"max_loras"}
    (folder.path / "settings.yaml").write_text("engine: {max_loras: 8}\n", encoding="utf-8")
    assert SettingsReader(None)(folder.path).engine.max_loras == 8
