"""Jobs as clients see them."""

from __future__ import annotations

from datetime import UTC, datetime

from placer.service.documents import ErrorDetails, Job
from placer.service.job_store import StoredJob
from placer.service.jobs import Jobs


def job_document(stored: StoredJob, jobs: Jobs) -> Job:
    """Return what a client is told about a job."""
    feed = jobs.feed_of(stored.id)
    is_running = feed is not None and stored.state == "running"
    return Job(
        id=stored.id,
        operation=stored.operation,
        state=stored.state,
        submitted_at=_date(stored.submitted_s) or "",
        started_at=_date(stored.started_s),
        finished_at=_date(stored.finished_s),
        num_starts=stored.num_starts,
        queue_position=jobs.position_of(stored.id) if stored.state == "accepted" else None,
        is_cancelling=stored.is_cancelling and stored.finished_s is None,
        has_result=stored.has_result,
        phase=feed.phase if feed is not None and is_running else None,
        incumbent=feed.incumbent if feed is not None and is_running else None,
        exit_code=stored.exit_code,
        error=None if stored.error is None else ErrorDetails.model_validate(stored.error),
    )


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
