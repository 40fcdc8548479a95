"""A measurement of the twin itself: what it simulates is recorded as `placer measure` records a real engine."""

from typing import Any

import numpy as np

from tests.twin.simulated_serving import LLAMA, Served, serve
from twin.engine import EngineConfig
from twin.hardware import GpuType
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import ServerFacts
from twin.measurement.records import OK, SENT, UNFINISHED, ShardWriter
from twin.measurement.session import SegmentFacts, SegmentOutcome, SegmentTask
from twin.profile import PerformanceProfile
from twin.replica import STEP_TABLE_COLUMNS, Replica, num_cached_adapters
from twin.workload import NANOSECONDS, RequestTable

MILLISECOND_NS = 1e6


class TwinDriver:
    """Runs segments in the twin.

    Parameters
    ----------
    stops_s
        A segment that begins before is interrupted then; ``None``: none is.
    sees_steps
        Whether steps, loads, memory and start-up are recorded, as in process.
    """

    def __init__(
        self,
        profile: PerformanceProfile,
        engine: EngineConfig,
        *,
        stops_s: float | None = None,
        sees_steps: bool = True,
    ) -> None:
        self._profile = profile
        self._engine = engine
        self._stops_s = stops_s
        self._sees_steps = sees_steps

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Simulate a segment until all requests are done, or until it is interrupted."""
        is_cut = self._stops_s is not None and task.start_s < self._stops_s
        end_s = self._stops_s if is_cut and self._stops_s is not None else task.horizon_s + 60.0
        start_ns = round(task.start_s * NANOSECONDS)
        chosen = task.requests.arrival_ns < end_s * NANOSECONDS
        requests = RequestTable(
            task.requests.arrival_ns[chosen] - start_ns,
            task.requests.adapter[chosen],
            task.requests.prompt_tokens[chosen],
            task.requests.output_tokens[chosen],
        )
        served = serve(
            self._profile,
            self._engine,
            task.workload.adapters,
            horizon_s=end_s - task.start_s,
            requests=requests,
        )
        if not is_cut:
            end_s = task.start_s + float(served.end_ns[-1]) / NANOSECONDS
        writer = ShardWriter(task.shards, task.number)
        self._write_requests(task, served, writer, end_s)
        gpu = GpuType(name=self._profile.gpu, memory_gib=self._profile.gpu_memory_gib)
        kv_tokens = Replica(LLAMA, gpu, self._engine, self._profile).memory().kv_tokens
        if self._sees_steps:
            self._write_steps(task, served, writer)
            self._write_loads(task, served, writer)
            self._write_replica(writer, kv_tokens)
        writer.close()
        if is_cut:
            stop.make("interrupted by the test")
        return SegmentOutcome(
            end_s=end_s,
            reason=stop.reason if is_cut else None,
            cause="interrupted" if is_cut else None,
            facts=SegmentFacts(server=ServerFacts(engine=self._engine, kv_tokens=kv_tokens)),
        )

    def _write_requests(self, task: SegmentTask, served: Served, writer: ShardWriter, end_s: float) -> None:
        trace, table = served.trace, served.requests
        # What a step that ends after the segment would give is not seen.
        is_seen = served.end_ns[served.step] <= trace.end_ns
        is_gap = served.emitted & ~served.is_first & is_seen
        for row in range(len(table)):
            adapter = int(table.adapter[row])
            arrival_s = task.start_s + int(table.arrival_ns[row]) / NANOSECONDS
            is_done = trace.finish_ns[row] >= 0
            first_ns = trace.first_token_ns[row]
            record: dict[str, Any] = {
                "request": int(task.rows[row]),
                "attempt": 0,
                "adapter": task.workload.adapters[adapter].name if adapter >= 0 else None,
                "prompt_tokens": int(table.prompt_tokens[row]),
                "output_tokens": int(table.output_tokens[row]),
                "arrival_s": arrival_s,
                "sent_s": arrival_s,
            }
            writer.write(SENT, record)
            record |= {
                "generated_tokens": int(trace.generated_tokens[row]),
                "ttft_s": (int(first_ns) - int(table.arrival_ns[row])) / NANOSECONDS if first_ns >= 0 else None,
                "itl_s": (served.gap_ns[is_gap & (served.request == row)] / NANOSECONDS).tolist(),
                "finish_s": task.start_s + int(trace.finish_ns[row]) / NANOSECONDS if is_done else end_s,
                "status": OK if is_done else UNFINISHED,
            }
            writer.write("requests", record)

    def _write_steps(self, task: SegmentTask, served: Served, writer: ShardWriter) -> None:
        log, table = served.trace.step_log, served.trace.step_table
        assert log is not None
        assert table is not None
        column = {name: table[:, index] for index, name in enumerate(STEP_TABLE_COLUMNS)}
        running = np.diff(log.running_offset)
        for step in range(len(table)):
            load_ns = int(column["load_ns"][step])
            writer.write(
                "steps",
                {name: int(column[name][step]) for name in ("tokens", "requests", "context_tokens", "adapters")}
                | {
                    "time_ms": (int(log.duration_ns[step]) - load_ns) / MILLISECOND_NS,
                    "max_loras": served.inputs.num_slots,
                    "max_lora_rank": served.inputs.max_lora_rank if served.inputs.num_slots else 0,
                    "has_prefill": bool(column["has_prefill"][step]),
                    "is_batch_changed": bool(column["is_batch_changed"][step]),
                    "waiting": int(column["waiting"][step]),
                    "cached_adapters": num_cached_adapters(served.inputs) if served.inputs.num_slots else 0,
                    "group": f"{task.number} {int(log.start_ns[step]) // (10 * NANOSECONDS)}",
                    "step": step,
                    "start_s": task.start_s + int(log.start_ns[step]) / NANOSECONDS,
                    "duration_ms": int(log.duration_ns[step]) / MILLISECOND_NS,
                    "load_ms": load_ns / MILLISECOND_NS,
                    "running": int(running[step]),
                    "preemptions": int(log.preemptions[step]),
                    "gpu_loads": int(log.gpu_loads[step]),
                    "disk_loads": int(log.disk_loads[step]),
                },
            )

    def _write_loads(self, task: SegmentTask, served: Served, writer: ShardWriter) -> None:
        trace, largest = served.trace, self._engine.max_lora_rank
        for index, adapter in enumerate(task.workload.adapters):
            gpu_ms, disk_ms = self._profile.load_time_ms(adapter.rank, largest)
            for load in range(int(trace.adapter_gpu_loads[index])):
                is_read = load < trace.adapter_disk_loads[index]
                times = {"cpu_to_gpu_ms": gpu_ms, "disk_to_cpu_ms": disk_ms if is_read else None}
                writer.write(
                    "loads", {"rank": adapter.rank, "max_lora_rank": largest, "adapter": adapter.name, **times}
                )

    def _write_replica(self, writer: ShardWriter, kv_tokens: int) -> None:
        engine = self._engine
        writer.write(
            "memory",
            {
                "max_loras": engine.num_slots,
                "max_lora_rank": engine.max_lora_rank if engine.num_slots else 0,
                "max_num_seqs": engine.max_num_seqs,
                "gpu_memory_utilization": engine.gpu_memory_utilization,
                "kv_tokens": kv_tokens,
            },
        )
        writer.write("startup", {"max_loras": engine.num_slots, "seconds": 40.0})
