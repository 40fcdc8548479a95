"""Replaying measured steps in the twin: it takes the same ones if, and only if, it follows the rules that made them."""

from pathlib import Path

import pandas as pd
import pytest

from tests.twin.measured import RANKS, new_folder, small_workload
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import SHIPPED_MODELS, GpuType
from twin.measurement.folder import MeasurementFolder
from twin.measurement.manifest import Clock, InProcessSettings, Segment
from twin.measurement.step_replay import replay_steps
from twin.measurement.tables import table_path
from twin.profile import load_profile
from twin.reference import run_reference
from twin.replica import STEP_TABLE_COLUMNS, Replica, build_inputs

HORIZON_S = 20.0
WORKLOAD = small_workload(rates_rps=(1.0,) * 5, prompt=40, output=30)


def _replica(*, max_loras: int = 2, slowness: float = 1.0) -> Replica:
    """Return a replica of few slots whose steps take so many times the profile's."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    times = {name: value * slowness for name, value in profile.step_time.model_dump().items()}
    return Replica(
        SHIPPED_MODELS["llama-3.1-8b"],
        GpuType(name="h100-64gb", memory_gib=63.43),
        EngineConfig(max_loras=max_loras, max_lora_rank=RANKS[-1], max_cpu_loras=5, max_num_seqs=4),
        profile.model_copy(update={"step_time": type(profile.step_time)(**times)}),
    )


def _recorded(path: Path, replica: Replica, *, clock: Clock = "steady") -> MeasurementFolder:
    """Return a measurement whose steps are those of a replica."""
    folder = new_folder(path, WORKLOAD, horizon_s=HORIZON_S, settings=InProcessSettings(model="m", clock=clock))
    inputs = build_inputs(WORKLOAD, folder.schedule(), replica, horizon_s=4 * HORIZON_S, hash_seed=0)
    trace = run_reference(inputs, log_steps=True, keep_step_table=True)
    assert trace.step_log is not None
    assert trace.step_table is not None
    assert (trace.finish_ns >= 0).all()
    log = trace.step_log
    frame = pd.DataFrame(trace.step_table, columns=list(STEP_TABLE_COLUMNS)).assign(
        start_s=log.start_ns / 1e9,
        duration_ms=log.duration_ns / 1e6,
        gpu_loads=log.gpu_loads,
        disk_loads=log.disk_loads,
        preemptions=log.preemptions,
    )
    frame.to_parquet(table_path(folder.path, "steps"))
    folder.update(segments=(Segment(number=1, start_s=0.0, end_s=4 * HORIZON_S, started_at="", status="complete"),))
    return folder


def test_the_same_rules_take_the_same_steps_whatever_the_profile_says(tmp_path: Path) -> None:
    """The recorded times count, not those of the replica."""
    replay = replay_steps(_recorded(tmp_path / "m", _replica(slowness=3.0)), _replica())
    assert replay.is_same
    assert replay.first_difference is None
    assert replay.gpu_loads[0] == replay.gpu_loads[1] > 5
    assert replay.disk_loads == (5, 5)
    assert replay.num_steps > 100


def test_other_rules_take_other_steps(tmp_path: Path) -> None:
    """The first step that differs is named."""
    folder = _recorded(tmp_path / "m", _replica())
    replay = replay_steps(folder, _replica(max_loras=1))
    assert not replay.is_same
    assert replay.first_difference is not None
    assert replay.first_difference < replay.num_steps


def test_a_changed_record_is_found(tmp_path: Path) -> None:
    """One token more in one step, or a step that is missing at the end."""
    folder = _recorded(tmp_path / "m", _replica())
    steps = pd.read_parquet(table_path(folder.path, "steps"))
    steps.assign(tokens=steps["tokens"] + (steps.index == 17)).to_parquet(table_path(folder.path, "steps"))
    assert replay_steps(folder, _replica()).first_difference == 17
    steps.iloc[:-1].to_parquet(table_path(folder.path, "steps"))
    assert replay_steps(folder, _replica()).first_difference == len(steps) - 1


def test_times_that_pass_between_steps_cannot_be_replayed(tmp_path: Path) -> None:
    """On the wall clock, and where a measurement was interrupted."""
    folder = _recorded(tmp_path / "wall", _replica(), clock="wall")
    with pytest.raises(InputError, match="on the clock `cpu` or `steady`"):
        replay_steps(folder, _replica())
    folder = _recorded(tmp_path / "two", _replica())
    folder.update(segments=folder.manifest.segments * 2)
    with pytest.raises(InputError, match="has 2 on `steady`"):
        replay_steps(folder, _replica())
