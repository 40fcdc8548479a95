"""From a request to a job, and from a job to an answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from placer.service.admission import check_numbers, check_request
from placer.service.documents import FINISHED, AnyRequest, ErrorDetails, Operation
from placer.service.error_details import MEDIA_TYPE, encoded, error_details, refused
from placer.service.job_documents import job_document
from placer.service.job_store import StoredJob
from placer.service.service import Service
from placer.service.settings import JobLimits

JSON = "application/json"
# How often it is looked whether a client that waits is still there.
_LOOK_S = 1.0
# Of the time that a client waits, the solver gets this share; simulations and repair follow it.
_SOLVER_SHARE = 0.5
_POLL_S = 1


async def answer(
    service: Service, operation: Operation, body: AnyRequest, *, key: str | None, deadline_s: float, request: Request
) -> Response:
    """Return the document that answers a request, when it is there within the deadline; else the job.

    A client that goes away while it waits cannot ask for its job, unless it knows a key: without one, the job is
    cancelled.
    """
    limits = service.settings.limits
    if deadline_s > limits.deadline_s:
        raise refused(
            "bad-input",
            422,
            f"`deadline_s` must be at most {limits.deadline_s:g} on this server. Got {deadline_s:g}.",
            field="deadline_s",
            value=deadline_s,
            hint="submit a job with deadline_s=0, and ask for its result later",
        )
    content, digest = await anyio.to_thread.run_sync(_prepared, operation, body, await request.json(), limits)
    solver_s = deadline_s * _SOLVER_SHARE if deadline_s else None
    # Who may not wait is refused before there is a job, which nobody would ask for.
    with open_stream(service) if deadline_s else nullcontext():
        job = await service.jobs.submit(operation, content, digest=digest, key=key, solver_s=solver_s)
        if deadline_s and job.state not in FINISHED:
            job = await _waited(service, job, deadline_s, request, is_cancelled_without_client=key is None)
    return await answer_of(service, job) if job.state in FINISHED else accepted(service, job)


async def answer_of(service: Service, job: StoredJob) -> Response:
    """Return the document of a job that has finished, or its error."""
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if job.state == "succeeded" or job.has_result:
        result = await service.jobs.result_of(job.id)
        if result is not None:
            return Response(result, media_type=JSON, headers=headers)
    if job.error is not None:
        details = ErrorDetails.model_validate(job.error)
    else:
        details = error_details("cancelled", 409, "a job must not be cancelled to have a result. This one was.")
    return Response(encoded(details), status_code=details.status, media_type=MEDIA_TYPE, headers=headers)


def accepted(service: Service, job: StoredJob) -> Response:
    """Return a job that has not finished, and where to look for it."""
    document = job_document(job, service.jobs)
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": str(_POLL_S)}
    return Response(document.model_dump_json(), status_code=202, media_type=JSON, headers=headers)


@contextmanager
def open_stream(service: Service) -> Iterator[None]:
    """Count a client that stays (RequestRefusedError, 429, when there are too many)."""
    if service.num_streams >= service.settings.streams:
        service.metrics.refused.labels("too-many-streams").inc()
        raise refused(
            "too-many-streams",
            429,
            f"at most {service.settings.streams} clients may wait at a time. So many do.",
            retry_after_s=5,
            hint="submit jobs with deadline_s=0, and ask for them",
        )
    service.num_streams += 1
    service.metrics.streams.set(service.num_streams)
    try:
        yield
    finally:
        service.num_streams -= 1
        service.metrics.streams.set(service.num_streams)


async def _waited(
    service: Service, job: StoredJob, deadline_s: float, request: Request, *, is_cancelled_without_client: bool
) -> StoredJob:
    """Return a job when it has finished, the time is over, the service ends, or the client has gone."""
    clock = asyncio.get_running_loop().time
    until_s = clock() + deadline_s
    feed = service.jobs.feed_of(job.id)
    while feed is not None and not feed.has_ended and not service.jobs.has_stopped:
        left_s = until_s - clock()
        if left_s <= 0.0:
            break
        await feed.changed(min(left_s, _LOOK_S))
        if await request.is_disconnected():
            if is_cancelled_without_client:
                await service.jobs.cancel(job.id)
            break
    return await service.jobs.get(job.id)


def _prepared(operation: Operation, body: AnyRequest, data: Any, limits: JobLimits) -> tuple[bytes, str]:
    """Return a request as it is kept, and what tells whether another one is the same (InputError).

    Kept is what was sent: documents that validation made of it need not be valid input again.
    """
    check_numbers(data)
    check_request(body, limits)
    content = json.dumps(data, sort_keys=True, separators=(",", ":")).encode("ascii")
    return content, hashlib.sha256(operation.encode("ascii") + b"\n" + content).hexdigest()
