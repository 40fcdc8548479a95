"""The loop that drives an engine through a schedule: what it records, and when it ends."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.twin.measured import LOAD_S, STEP_S, QueueEngine, StepClock, say_nothing
from twin.errors import TwinError
from twin.measurement.clocks import CpuClock, SteadyClock, WallClock
from twin.measurement.engine_loop import Counts, DueRequest, EngineLoop
from twin.measurement.records import GROUP_S, SENT, ShardReader, ShardWriter
from twin.measurement.speed_probe import SpeedProbe

NAMES = ("a", "b", "c")


def _run(
    folder: Path,
    schedule: Sequence[DueRequest],
    *,
    limit_s: float = 1000.0,
    must_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> tuple[dict[str, list[dict[str, Any]]], float, Counts]:
    """Serve a schedule; return the records by table, the end, and the counts."""
    clock = StepClock()
    writer = ShardWriter(folder, 1)
    loop = EngineLoop(QueueEngine(clock, **options), clock, writer, NAMES, segment=1, limit_s=limit_s)
    end_s = loop.run(schedule, must_stop, say_nothing)
    writer.close()
    reader = ShardReader(folder)
    records = {table: list(reader.records(table)) for table in ("requests", "steps", "loads", SENT)}
    return records, end_s, loop.counts


def test_a_request_is_recorded_from_arrival_to_end(tmp_path: Path) -> None:
    """It waits for the step it arrived in, then gets a token per step; the adapter's load makes its first step long."""
    schedule = [DueRequest(0, 1.0, 0, 10, 3), DueRequest(1, 1.1, -1, 20, 2)]
    records, end_s, _ = _run(tmp_path, schedule)
    first, second = sorted(records["requests"], key=lambda record: record["request"])
    load_end = 1.0 + STEP_S + LOAD_S
    assert (first["adapter"], first["status"], first["generated_tokens"]) == ("a", "ok", 3)
    assert first["first_scheduled_s"] == 1.0
    assert first["ttft_s"] == STEP_S + LOAD_S
    assert first["itl_s"] == [STEP_S, STEP_S]
    assert first["finish_s"] == end_s == load_end + 2 * STEP_S
    assert (second["adapter"], second["first_scheduled_s"]) == (None, load_end)
    assert second["ttft_s"] == pytest.approx(load_end + STEP_S - 1.1)


def test_a_step_is_recorded_with_what_its_time_depends_on(tmp_path: Path) -> None:
    """The columns that `placer calibrate` reads, and the load apart from the rest of the step."""
    schedule = [DueRequest(0, 0.0, 1, 10, 3), DueRequest(1, 0.5, -1, 20, 1)]
    records, _, counts = _run(tmp_path, schedule)
    steps = records["steps"]
    assert counts.steps == len(steps) == 3
    assert [step["tokens"] for step in steps] == [10, 1, 21]
    assert [step["requests"] for step in steps] == [1, 1, 2]
    assert [step["context_tokens"] for step in steps] == [0, 11, 12]
    assert [step["adapters"] for step in steps] == [1, 1, 1]
    assert [step["has_prefill"] for step in steps] == [True, False, True]
    assert [step["time_ms"] for step in steps] == [1000 * STEP_S] * 3
    assert [step["duration_ms"] for step in steps] == [1000 * (STEP_S + LOAD_S), 1000 * STEP_S, 1000 * STEP_S]
    assert [step["disk_load_ranks"] for step in steps] == [[16], [], []]
    assert [step["start_s"] for step in steps] == [0.0, STEP_S + LOAD_S, 2 * STEP_S + LOAD_S]
    (load,) = records["loads"]
    assert (load["adapter"], load["rank"], load["max_lora_rank"], load["step"]) == ("b", 16, 16, 0)
    assert (load["cpu_to_gpu_ms"], load["disk_to_cpu_ms"]) == (None, 1000 * LOAD_S)


def test_the_batch_counts_as_changed_as_in_the_twin(tmp_path: Path) -> None:
    """The first step, a prefill, the step after one, and another number of requests (twin/semantics.md)."""
    records, _, _ = _run(tmp_path, [DueRequest(0, 0.0, -1, 5, 5), DueRequest(1, 0.0, -1, 5, 3)])
    assert [step["has_prefill"] for step in records["steps"]] == [True, False, False, False, False]
    assert [step["is_batch_changed"] for step in records["steps"]] == [True, True, False, True, False]


def test_steps_are_grouped_by_windows_of_the_clock(tmp_path: Path) -> None:
    """Rows of one group are resampled together."""
    records, _, _ = _run(tmp_path, [DueRequest(0, GROUP_S - STEP_S, -1, 5, 2)])
    assert [step["group"] for step in records["steps"]] == ["1-0", "1-1"]


def test_a_preemption_is_recorded_with_step_and_request(tmp_path: Path) -> None:
    """The request keeps the time of its first schedule."""
    schedule = [DueRequest(0, 0.0, -1, 5, 4), DueRequest(1, 0.0, -1, 5, 4)]
    records, _, _ = _run(tmp_path, schedule, loses_blocks=1)
    by_number = {record["request"]: record for record in records["requests"]}
    assert (by_number[0]["preemptions"], by_number[1]["preemptions"]) == (0, 1)
    assert sum(step["preemptions"] for step in records["steps"]) == 1
    assert by_number[1]["first_scheduled_s"] == 0.0


def test_a_refused_request_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    """Nothing is hidden, and nothing stops."""
    schedule = [DueRequest(0, 0.0, -1, 9, 1), DueRequest(1, 0.0, -1, 5, 1)]
    records, _, counts = _run(tmp_path, schedule, longest=8)
    by_number = {record["request"]: record for record in records["requests"]}
    assert (by_number[0]["status"], by_number[0]["error"]) == ("error", "a prompt of 9 tokens is too long")
    assert (by_number[1]["status"], counts.failed, counts.finished) == ("ok", 1, 1)


def test_what_is_not_done_at_the_limit_is_recorded_as_it_is(tmp_path: Path) -> None:
    """With the tokens that it has."""
    records, end_s, _ = _run(tmp_path, [DueRequest(0, 0.0, -1, 5, 100)], limit_s=2 * STEP_S)
    (request,) = records["requests"]
    assert (request["status"], request["generated_tokens"], end_s) == ("unfinished", 2, 2 * STEP_S)


def test_what_was_due_while_the_last_step_ran_waits_at_the_limit(tmp_path: Path) -> None:
    """It was sent, and is not what nobody ever asked for."""
    schedule = [DueRequest(0, 0.0, -1, 5, 100), DueRequest(1, 1.5 * STEP_S, -1, 5, 1)]
    records, _, counts = _run(tmp_path, schedule, limit_s=1.8 * STEP_S)
    by_number = {record["request"]: record for record in records["requests"]}
    assert counts.sent == 2
    assert (by_number[1]["status"], by_number[1]["generated_tokens"]) == ("unfinished", 0)


def test_a_stop_ends_the_loop_after_the_step(tmp_path: Path) -> None:
    """What was not due yet was never sent."""
    answers = iter([False, False, True])
    schedule = [DueRequest(0, 0.0, -1, 5, 10), DueRequest(1, 5.0, -1, 5, 1)]
    records, _, counts = _run(tmp_path, schedule, must_stop=lambda: next(answers))
    assert [record["status"] for record in records["requests"]] == ["unfinished"]
    assert (counts.sent, len(records[SENT])) == (1, 1)


def test_an_engine_that_breaks_loses_no_record(tmp_path: Path) -> None:
    """The error goes on; requests in flight are recorded before."""
    with pytest.raises(TwinError, match="broke"):
        _run(tmp_path, [DueRequest(0, 0.0, -1, 5, 10)], breaks_at=3)
    (request,) = ShardReader(tmp_path).records("requests")
    assert (request["status"], request["generated_tokens"]) == ("unfinished", 3)
    assert len(list(ShardReader(tmp_path).records("steps"))) == 3


def test_the_cpu_clock_moves_by_work_only() -> None:
    """Idle time is skipped, and it never goes back."""
    clock = CpuClock(3.0)
    clock.begin()
    clock.wait_until(5.0)
    assert clock.now() == 5.0
    clock.spend(0.5)
    clock.wait_until(4.0)
    assert clock.now() == 5.5


def test_the_wall_clock_starts_where_the_segment_does() -> None:
    """It naps for a moment at most, so that a stop is seen."""
    clock = WallClock(7.0)
    clock.begin()
    begin = time.perf_counter()
    clock.wait_until(1e9)
    clock.spend(100.0)
    assert 7.0 < clock.now() <= 7.0 + time.perf_counter() - begin + 0.001


def test_the_steady_clock_corrects_for_the_processors_speed() -> None:
    """A step between two pieces of work that took twice the reference counts half, or a quarter if it loses more."""
    pieces = [0.5, 2.0, 2.0, 6.0]
    clock = SteadyClock(1.0, iter(pieces).__next__, reference_s=2.0, sensitivity=1.0)
    clock.begin()
    assert clock.scale() == 1.0
    assert clock.scale() == 0.5
    sensitive = SteadyClock(1.0, iter(pieces).__next__, reference_s=2.0, sensitivity=2.0)
    sensitive.begin()
    assert sensitive.scale() == 1.0
    assert sensitive.scale() == 0.25
    clock.spend(3.0)
    assert clock.now() == 4.0


class _SlowClock(StepClock):
    """A clock on which everything counts half."""

    def scale(self) -> float:
        """Return a half."""
        return 0.5


def test_a_scaled_step_has_its_scale_and_scaled_loads(tmp_path: Path) -> None:
    """What is recorded of a step by the clock, of its loads and of its tokens' times is multiplied alike."""
    clock, writer = _SlowClock(), ShardWriter(tmp_path, 1)
    loop = EngineLoop(QueueEngine(clock), clock, writer, NAMES, segment=1, limit_s=9.0)
    end_s = loop.run([DueRequest(0, 0.0, 0, 10, 2)], lambda: False, say_nothing)
    writer.close()
    reader = ShardReader(tmp_path)
    first, second = reader.records("steps")
    assert (first["scale"], second["scale"]) == (0.5, 0.5)
    assert first["duration_ms"] == 1000 * (STEP_S + LOAD_S) / 2
    assert first["load_ms"] == 1000 * LOAD_S / 2
    assert [load["disk_to_cpu_ms"] for load in reader.records("loads")] == [1000 * LOAD_S / 2]
    assert [request["ttft_s"] for request in reader.records("requests")] == [(STEP_S + LOAD_S) / 2]
    assert end_s == (2 * STEP_S + LOAD_S) / 2


def test_the_piece_of_work_takes_cpu_time() -> None:
    """It is measured by this process's own clock, and is the same work each time."""
    probe = SpeedProbe()
    before = time.process_time()
    taken = [probe() for _ in range(3)]
    assert all(piece > 0 for piece in taken)
    assert sum(taken) <= time.process_time() - before
