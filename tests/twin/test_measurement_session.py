"""Segments, folders and tables: whatever ends a measurement, what it recorded is kept, and the rest can be done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.twin.measured import QueueDriver, ignore_progress, new_folder, small_workload
from twin.calibration.step_table import find_tables, read_steps
from twin.engine import EngineConfig
from twin.errors import InputError, TwinError
from twin.measurement.folder import MeasurementFolder, open_folder
from twin.measurement.interrupts import StopRequest, signals_stop
from twin.measurement.manifest import Manifest, ServerFacts, manifest_schema, manifest_to_json
from twin.measurement.records import SENT, TABLES, ShardReader, ShardWriter, shard_path
from twin.measurement.session import (
    KILLED,
    SegmentOutcome,
    SegmentTask,
    complete_without_rest,
    run_segment,
    settle,
    unsent_rows,
)
from twin.measurement.tables import load_schedule, read_table, save_schedule, schema_of
from twin.workload import RequestTable

ROOT = Path(__file__).resolve().parents[2]


def _run(folder: MeasurementFolder, driver: QueueDriver | None = None) -> SegmentOutcome:
    return run_segment(folder, driver or QueueDriver(), StopRequest(), ignore_progress)


def test_a_complete_measurement_has_its_tables_and_no_shards(tmp_path: Path) -> None:
    """Every request of the schedule is a row, and the manifest says how many rows each table has."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder)
    manifest = open_folder(tmp_path / "m").manifest
    requests = read_table(folder.path, "requests")
    assert (manifest.status, manifest.reason) == ("complete", None)
    assert len(requests) == manifest.workload.num_requests == manifest.tables["requests"] > 5
    assert requests["request"].tolist() == list(range(len(requests)))
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    assert len(read_table(folder.path, "steps")) == manifest.tables["steps"]
    assert not folder.shards.exists()


def test_calibration_reads_the_folder_as_it_is(tmp_path: Path) -> None:
    """The tables are those of docs/calibration.md, with further columns."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder)
    tables = find_tables(folder.path)
    observations = read_steps(tables["steps"])
    assert set(tables) == {"steps", "loads"}
    assert observations.weight.sum() == len(tables["steps"])
    assert set(observations.time_ms.tolist()) == {250.0}


def test_the_summary_follows_from_the_tables(tmp_path: Path) -> None:
    """Tokens that arrived and that were served in time, per measured second."""
    workload = small_workload()
    folder = new_folder(tmp_path / "m", workload, horizon_s=20.0)
    _run(folder)
    summary = folder.manifest.summary
    assert summary is not None
    requests, schedule = read_table(folder.path, "requests"), folder.schedule()
    in_time = requests["finish_s"] <= 20.0
    assert 0 < in_time.sum() < len(requests)
    assert summary.measured_s == 20.0
    assert summary.requests == {"ok": len(schedule)}
    assert summary.offered_tps == pytest.approx(24 * len(schedule) / 20.0)
    assert summary.throughput_tps == pytest.approx(24 * in_time.sum() / 20.0)
    assert summary.ttft.mean_s == pytest.approx(requests["ttft_s"].mean())
    # The requests of the small engine never wait between tokens but for loads.
    assert summary.itl.p50_s == 0.25
    assert summary.disk_loads == 3
    assert summary.num_steps == len(read_table(folder.path, "steps"))


def test_the_quiet_end_of_a_schedule_is_measured_too(tmp_path: Path) -> None:
    """Rates are per second of the horizon, as the twin's are, also where the last answer comes long before it."""
    folder = new_folder(tmp_path / "m", small_workload(rates_rps=(0.05, 0.05)), horizon_s=60.0)
    _run(folder)
    summary, schedule = folder.manifest.summary, folder.schedule()
    assert summary is not None
    assert float(folder.manifest.segments[0].end_s or 0.0) < 58.0
    assert summary.measured_s == 60.0
    assert summary.offered_tps == summary.throughput_tps == pytest.approx(24 * len(schedule) / 60.0)


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was sent is not sent again; the rest is, in a segment of its own, on the schedule's clock."""
    folder = new_folder(tmp_path / "m", small_workload(), horizon_s=40.0)
    outcome = _run(folder, QueueDriver(stops_at=12))
    assert (outcome.cause, outcome.reason) == ("interrupted", "interrupted by the test")
    assert (folder.manifest.status, folder.manifest.reason) == ("partial", "interrupted by the test")
    partial = read_table(folder.path, "requests")
    assert "unfinished" in set(partial["status"])
    assert folder.manifest.summary is not None
    assert folder.manifest.summary.requests["unsent"] == len(folder.schedule()) - len(partial)

    again = open_folder(folder.path)
    _run(again)
    manifest, requests = again.manifest, read_table(folder.path, "requests")
    assert (manifest.status, manifest.reason) == ("complete", None)
    assert sorted(requests["request"]) == list(range(len(folder.schedule())))
    pd.testing.assert_frame_equal(requests.iloc[: len(partial)], partial)
    rest = requests.iloc[len(partial) :]
    assert set(rest["segment"]) == {2}
    assert (rest["status"] == "ok").all()
    assert manifest.segments[1].start_s == rest["arrival_s"].iloc[0]
    assert [segment.reason for segment in manifest.segments] == ["interrupted by the test", None]
    assert set(read_table(folder.path, "steps")["segment"]) == {1, 2}


@pytest.mark.parametrize(("kv_tokens", "is_warned"), [(4096, False), (8192, True)])
def test_another_server_after_an_interruption_is_warned_of(tmp_path: Path, kv_tokens: int, is_warned: bool) -> None:  # noqa: FBT001
    """A measurement of two engines is none of either."""
    folder = new_folder(tmp_path / "m", small_workload(), horizon_s=40.0)
    _run(folder, QueueDriver(stops_at=12, server=ServerFacts(kv_tokens=4096)))
    again = open_folder(folder.path)
    _run(again, QueueDriver(server=ServerFacts(kv_tokens=kv_tokens)))
    assert any("another KV cache" in warning for warning in again.manifest.warnings) == is_warned


def _killed(path: Path, *, kv_tokens: int) -> MeasurementFolder:
    """Measure in a process that SIGKILL ends in the middle of a step; go on in the folder if there is one."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.twin.measured import *\n"
        "from twin.measurement.folder import open_folder\n"
        "from twin.measurement.session import run_segment\n"
        "class Killed(QueueDriver):\n"
        "    def run(self, task, stop):\n"
        "        stop.make = lambda reason: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().run(task, stop)\n"
        "path = Path(sys.argv[1])\n"
        "folder = open_folder(path) if path.exists() else new_folder(path, small_workload(), horizon_s=40.0)\n"
        "server = ServerFacts(kv_tokens=int(sys.argv[2]))\n"
        "run_segment(folder, Killed(stops_at=10, server=server), StopRequest(), ignore_progress)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(kv_tokens)]
    run = subprocess.run(command, cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    return open_folder(path)


def test_what_a_server_said_survives_a_kill(tmp_path: Path) -> None:
    """It is in the manifest before the first request is sent, and stays when the tables are made."""
    folder = _killed(tmp_path / "m", kv_tokens=4096)
    assert folder.manifest.status == "running"
    assert folder.manifest.server.kv_tokens == 4096
    assert settle(folder).server.kv_tokens == 4096
    folder = _killed(folder.path, kv_tokens=8192)
    assert any("another KV cache" in warning for warning in settle(folder).warnings)


def test_an_endpoint_that_has_not_said_everything_yet_is_no_other_one(tmp_path: Path) -> None:
    """Slots are in vLLM's metrics only after the first requests: until then they are what the problem file declares."""
    said = ServerFacts(engine=EngineConfig(max_loras=4), details={"said": {"max_loras": 4}})
    silent = ServerFacts(engine=EngineConfig(max_loras=8), details={"said": {}})
    folder = new_folder(tmp_path / "m", small_workload(), horizon_s=40.0)
    _run(folder, QueueDriver(stops_at=12, server=said))
    again = open_folder(folder.path)
    _run(again, QueueDriver(server=silent))
    assert not any("another KV cache" in warning for warning in again.manifest.warnings)


class _LogsAndFails:
    """A driver whose engine writes a log and does not start."""

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Fail."""
        del stop
        task.log.write_text("Traceback", encoding="utf-8")
        raise TwinError("vLLM's engine must start.")


def test_an_engine_that_never_started_leaves_its_log_and_the_folder_can_be_used(tmp_path: Path) -> None:
    """The log says more than the error does; nothing else is left, and the same command works."""
    path = tmp_path / "m"
    with pytest.raises(TwinError, match="must start"):
        run_segment(new_folder(path, small_workload()), _LogsAndFails(), StopRequest(), ignore_progress)
    assert [entry.name for entry in path.iterdir()] == ["engine.log"]
    folder = new_folder(path, small_workload())
    assert not folder.engine_log.exists()
    _run(folder)
    assert open_folder(path).manifest.status == "complete"


def test_a_break_down_keeps_what_was_recorded(tmp_path: Path) -> None:
    """The error reaches the caller, and the folder says what it was."""
    folder = new_folder(tmp_path / "m", small_workload())
    with pytest.raises(TwinError, match="the engine broke"):
        _run(folder, QueueDriver(breaks_at=9))
    manifest = open_folder(folder.path).manifest
    assert (manifest.status, manifest.reason) == ("partial", "the engine broke")
    assert manifest.tables["steps"] == 9
    assert manifest.segments[0].end_s is not None
    assert manifest.segments[0].end_s > 2.0


def test_a_killed_process_loses_nothing_that_it_recorded(tmp_path: Path) -> None:
    """SIGKILL in the middle of a step: the tables can be made afterwards, and the measurement can go on."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.twin.measured import *\n"
        "from twin.measurement.session import run_segment\n"
        "class Killed(QueueDriver):\n"
        "    def run(self, task, stop):\n"
        "        stop.make = lambda reason: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().run(task, stop)\n"
        "folder = new_folder(Path(sys.argv[1]), small_workload(), horizon_s=40.0)\n"
        "run_segment(folder, Killed(stops_at=10), StopRequest(), ignore_progress)\n"
    )
    path = tmp_path / "m"
    run = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    assert run.returncode == -signal.SIGKILL
    folder = open_folder(path)
    left = folder.manifest
    assert (left.status, left.tables) == ("running", {})

    manifest = settle(folder)
    requests = read_table(path, "requests")
    assert (manifest.status, manifest.reason) == ("partial", KILLED)
    assert len(read_table(path, "steps")) == 10
    assert set(requests["status"]) == {"ok", "lost"}
    lost = requests[requests["status"] == "lost"]
    assert lost["sent_s"].notna().all()
    assert lost["generated_tokens"].isna().all()
    assert manifest.segments[0].end_s == max(requests["finish_s"].max(), requests["sent_s"].max())

    _run(folder)
    assert folder.manifest.status == "complete"
    assert (read_table(path, "requests")["status"] == "lost").sum() == len(lost)
    assert sorted(read_table(path, "requests")["request"]) == list(range(len(folder.schedule())))


def test_a_record_that_was_cut_off_is_counted(tmp_path: Path) -> None:
    """Half a line is no record, also where half of it would be valid JSON."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder, QueueDriver(stops_at=8))
    with shard_path(folder.shards, "steps", 1).open("ab") as shard:
        shard.write(b"[" * 100_000 + b"\n" + b'{"tokens": 3}')
    manifest = settle(folder)
    assert manifest.tables["steps"] == 9
    assert "2 records were cut off when a process was killed" in manifest.warnings


def test_tables_can_be_made_again(tmp_path: Path) -> None:
    """Settling is idempotent, and leaves a complete measurement alone."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder, QueueDriver(stops_at=8))
    first, steps = settle(folder), read_table(folder.path, "steps")
    assert settle(folder) == first
    pd.testing.assert_frame_equal(read_table(folder.path, "steps"), steps)
    _run(folder)
    assert settle(folder) == folder.manifest
    assert folder.manifest.status == "complete"


@pytest.mark.parametrize("is_emptied", [False, True])
def test_tables_are_kept_when_the_records_are_gone(tmp_path: Path, is_emptied: bool) -> None:  # noqa: FBT001
    """Whoever copies a partial measurement without its shards must not lose the tables by finishing it."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder, QueueDriver(stops_at=8))
    steps = read_table(folder.path, "steps")
    shutil.rmtree(folder.shards)
    if is_emptied:
        folder.shards.mkdir()
    with pytest.raises(InputError, match="must have its records"):
        settle(folder)
    assert len(steps) > 0
    pd.testing.assert_frame_equal(read_table(folder.path, "steps"), steps)


def test_nothing_is_left_when_everything_was_sent(tmp_path: Path) -> None:
    """A measurement that was stopped while its last requests ran has no rest to send."""
    folder = new_folder(tmp_path / "m", small_workload(rates_rps=(2.0,), output=200), horizon_s=5.0)
    _run(folder, QueueDriver(stops_at=100))
    assert folder.manifest.status == "partial"
    assert len(unsent_rows(folder, folder.schedule())) == 0


class _Refusing:
    """A driver that has nothing to measure."""

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Refuse."""
        del task, stop
        raise InputError("`max_loras` must be less. Got 999.", field="max_loras")


def test_a_folder_in_which_nothing_was_recorded_can_be_used_again(tmp_path: Path) -> None:
    """After a wrong setting the same command with another setting must work."""
    path = tmp_path / "m"
    with pytest.raises(InputError, match="max_loras"):
        run_segment(new_folder(path, small_workload()), _Refusing(), StopRequest(), ignore_progress)
    _run(new_folder(path, small_workload()))
    assert open_folder(path).manifest.status == "complete"


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    """Nothing is overwritten; a measurement in it is pointed out."""
    folder = new_folder(tmp_path / "m", small_workload())
    with pytest.raises(InputError, match="new or an empty folder") as caught:
        new_folder(folder.path, small_workload())
    assert "--resume" in str(caught.value.hint)
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="new or an empty folder") as caught:
            new_folder(path, small_workload())
        assert "--resume" not in str(caught.value.hint)


def test_only_one_process_works_on_a_folder(tmp_path: Path) -> None:
    """A second one is refused, until the first is gone."""
    folder = new_folder(tmp_path / "m", small_workload())
    with folder.lock(), pytest.raises(InputError, match="only one process"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    """Such as one that belongs to somebody else."""
    folder = new_folder(tmp_path / "m", small_workload())
    (folder.path / ".lock").mkdir()
    with pytest.raises(InputError, match="folder of a measurement must be writable"), folder.lock():
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none that can be read"),
        ("{", "must be valid JSON"),
        ("[" * 100_000, "must be valid JSON"),
        ('{"status": "done"}', "must follow its schema"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, content: str | None, message: str) -> None:
    """The file is named."""
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        open_folder(tmp_path)
    assert caught.value.file == str(tmp_path / "manifest.json")


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    """Reading gives what was written, and the schema describes it."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder)
    text = manifest_to_json(folder.manifest)
    assert Manifest.model_validate_json(text) == folder.manifest
    assert text == (folder.path / "manifest.json").read_text(encoding="utf-8")
    assert set(json.loads(text)) == set(manifest_schema()["properties"])


def test_a_schedule_survives_its_file(tmp_path: Path) -> None:
    """Requests to the base model have no adapter and no rank."""
    workload = small_workload()
    requests = RequestTable(
        np.array([0, 5, 7], np.int64), np.array([2, -1, 0], np.int32), np.full(3, 4, np.int32), np.full(3, 2, np.int32)
    )
    save_schedule(requests, workload, tmp_path)
    loaded = load_schedule(tmp_path, [adapter.name for adapter in workload.adapters])
    for field in ("arrival_ns", "adapter", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(requests, field))
    with pytest.raises(InputError, match="must be readable and name its adapters"):
        load_schedule(tmp_path, ["a0"])


def test_a_schedule_that_is_not_the_measurements_is_named(tmp_path: Path) -> None:
    """Cut short, of other columns or with empty cells, nothing may be sent by it."""
    folder = new_folder(tmp_path / "m", small_workload())
    path = folder.path / "schedule.parquet"
    whole = pd.read_parquet(path)
    for damaged in (whole.head(2), pd.DataFrame({"x": range(len(whole))}), whole.assign(arrival_ns=None)):
        damaged.to_parquet(path)
        with pytest.raises(InputError, match=r"schedule must.*schedule\.parquet"):
            folder.schedule()


@pytest.mark.parametrize(
    "record",
    ['{"request": "x", "attempt": 0}', '{"status": "ok"}', '{"request": 1, "attempt": 9, "generated_tokens": 9e20}'],
)
def test_records_of_another_kind_are_named(tmp_path: Path, record: str) -> None:
    """A damaged shard is an error of the input, and leaves the tables as they are."""
    folder = new_folder(tmp_path / "m", small_workload())
    _run(folder, QueueDriver(stops_at=8))
    requests = read_table(folder.path, "requests")
    with shard_path(folder.shards, "requests", 1).open("a", encoding="utf-8") as shard:
        shard.write(record + "\n")
    with pytest.raises(InputError, match=r"records must be as .* wrote them\..*requests-\*\.jsonl"):
        settle(folder)
    pd.testing.assert_frame_equal(read_table(folder.path, "requests"), requests)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    """A table that is no Parquet file is an error of the input, not of the program."""
    (tmp_path / "steps.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"readable Parquet.*steps\.parquet") as caught:
        read_table(tmp_path, "steps")
    assert not caught.value.message.endswith("..")


def test_a_table_that_was_not_recorded_is_empty() -> None:
    """With its columns, so that readers need not ask."""
    for table, columns in TABLES.items():
        assert schema_of(table).names == [column.name for column in columns]
        assert list(read_table(Path("/nowhere"), table).columns) == [column.name for column in columns]


def test_a_record_must_be_valid_json(tmp_path: Path) -> None:
    """A number that JSON does not have would make the line unreadable."""
    writer = ShardWriter(tmp_path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        writer.write(SENT, {"sent_s": float("nan")})
    writer.close()
    assert list(ShardReader(tmp_path).records(SENT)) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_become_requests_to_stop(name: str) -> None:
    """The first one gives the reason; who listens hears each."""
    stop, heard = StopRequest(), []
    before = signal.getsignal(getattr(signal, name))
    with signals_stop(stop), stop.listener(lambda: heard.append(stop.count)):
        assert not stop.is_made
        os.kill(os.getpid(), getattr(signal, name))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason == f"interrupted by {name}"
    assert heard == [1, 2]
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    """`nohup` ignores SIGHUP so that a measurement survives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    try:
        with signals_stop(stop):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_made
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_listens_late_hears_at_once() -> None:
    """A stop that was requested while something started must not be missed."""
    stop, heard = StopRequest(), []
    stop.make("early")
    with stop.listener(lambda: heard.append(stop.reason)):
        pass
    assert heard == ["early"]


def test_a_measurement_without_a_rest_can_be_declared_complete(tmp_path: Path) -> None:
    """What has no outcome stays so, and is said; shards are not needed any more."""
    folder = new_folder(tmp_path / "m", small_workload(rates_rps=(2.0,), output=200), horizon_s=5.0)
    _run(folder, QueueDriver(stops_at=100))
    assert complete_without_rest(folder).status == "complete"
    manifest = open_folder(folder.path).manifest
    assert manifest.reason is None
    assert not folder.shards.exists()
    assert [warning for warning in manifest.warnings if "have no outcome and are not sent again" in warning]


def test_warnings_are_those_of_the_present_tables(tmp_path: Path) -> None:
    """A count that has grown does not stand beside the old one; what a segment said stays."""
    folder = new_folder(tmp_path / "m", small_workload(), horizon_s=40.0)
    _run(folder, QueueDriver(stops_at=12))
    (segment,) = folder.manifest.segments
    folder.update(segments=(segment.model_copy(update={"warnings": ("said by the driver",)}),))
    _run(folder, QueueDriver(stops_at=12))
    counts = [warning for warning in folder.manifest.warnings if "have no outcome" in warning]
    assert len(counts) == 1
    assert folder.manifest.summary is not None
    assert counts[0].startswith(f"{folder.manifest.summary.requests['unfinished']} requests")
    assert "said by the driver" in folder.manifest.warnings
