"""What the service counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "placer_http_requests", "Answers by route and status.", ["method", "route", "status"], registry=registry
        )
        self.accepted = Counter("placer_jobs_accepted", "Jobs that were accepted.", ["operation"], registry=registry)
        self.finished = Counter(
            "placer_jobs_finished", "Jobs that ended, by state.", ["operation", "state"], registry=registry
        )
        self.refused = Counter("placer_jobs_refused", "Requests that were refused.", ["kind"], registry=registry)
        self.resumed = Counter("placer_jobs_resumed", "Jobs that were put back and begin again.", registry=registry)
        self.waiting_s = Histogram(
            "placer_job_waiting_seconds", "From accepted to begun.", registry=registry, buckets=_SECONDS
        )
        self.running_s = Histogram(
            "placer_job_running_seconds", "From begun to ended.", ["operation"], registry=registry, buckets=_SECONDS
        )
        self.queue = Gauge("placer_queue_length", "Jobs that wait for a worker.", registry=registry)
        self.running = Gauge("placer_jobs_running", "Jobs that run.", registry=registry)
        self.workers = Gauge("placer_workers_ready", "Worker processes that can work.", registry=registry)
        self.worker_ends = Counter(
            "placer_worker_ends", "Worker processes that ended, by reason.", ["reason"], registry=registry
        )
        self.store_errors = Counter("placer_store_errors", "Changes that the database refused.", registry=registry)
        self.streams = Gauge("placer_streams_open", "Event streams and waiting requests.", registry=registry)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
