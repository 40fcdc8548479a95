"""Requests that are drawn once, for whoever simulates the same adapters on many replicas."""

from __future__ import annotations

from twin.workload import Adapter, AdapterStream, Phase, RequestTable, Workload, draw_stream, merge_streams

# Requests that are kept, of 16 bytes each: those of about 150 busy GPUs over half an hour.
MOST_KEPT = 8_000_000


class DrawnTraffic:
    """Draws the requests of each adapter once; whatever replica it is on, they are the same.

    Threads may share it: two that draw the same adapter at once draw the same requests.

    Parameters
    ----------
    seed
        Of the traffic.
    most_kept
        Requests that are kept; beyond, they are drawn each time.
    """

    def __init__(self, seed: int, *, most_kept: int = MOST_KEPT) -> None:
        self.seed = seed
        self.num_kept = 0
        self._most_kept = most_kept
        self._streams: dict[tuple[str, float, float], AdapterStream] = {}

    def requests(self, workload: Workload, *, horizon_s: float) -> RequestTable:
        """Return what ``workload.requests`` does; all workloads must be subsets of one, whose rates may be scaled."""
        if workload.trace is not None:
            return workload.requests(horizon_s=horizon_s, seed=self.seed)
        return merge_streams([self._stream(adapter, workload.phases, horizon_s) for adapter in workload.adapters])

    def _stream(self, adapter: Adapter, phases: tuple[Phase, ...], horizon_s: float) -> AdapterStream:
        """Return the requests of one adapter; they are kept if there is room."""
        key = (adapter.name, adapter.rate_rps, horizon_s)
        stream = self._streams.get(key)
        if stream is None:
            stream = draw_stream(adapter, phases, horizon_s, self.seed)
            count = len(stream.arrival_ns)
            if self.num_kept + count <= self._most_kept:
                self._streams[key] = stream
                self.num_kept += count
        return stream
