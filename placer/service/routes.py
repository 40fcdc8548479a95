"""The paths of the service, and what each of them takes and answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from placer.plan_document import Plan
from placer.recheck import Recheck
from placer.replan_document import Replan
from placer.service.answers import JSON, accepted, answer, answer_of, open_stream
from placer.service.documents import (
    FINISHED,
    Health,
    Job,
    JobList,
    JobState,
    Operation,
    ReplanRequest,
    SolveRequest,
    VerifyRequest,
    WhatIfRequest,
)
from placer.service.error_details import MEDIA_TYPE, refused
from placer.service.event_stream import event_stream
from placer.service.job_documents import job_document
from placer.service.service import Service
from placer.service.strict_json import StrictRoute
from placer.whatif.document import WhatIf

_ERROR = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ErrorDetails"}}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_LOCATION = {"Location": {"description": "Of the job.", "schema": {"type": "string"}}}
_COMMON: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or unknown.", **_ERROR},
    503: {"description": "The service ends, or its database cannot be used.", "headers": _RETRY_AFTER, **_ERROR},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such job.", **_ERROR}}
_SUBMITTED: dict[int | str, dict[str, Any]] = {
    **_COMMON,
    202: {"model": Job, "description": "Accepted, and not finished.", "headers": {**_LOCATION, **_RETRY_AFTER}},
    400: {"description": "The body is no JSON.", **_ERROR},
    408: {"description": "The body did not come in time.", **_ERROR},
    409: {"description": "There is no answer: nothing within the budget, or cancelled.", **_ERROR},
    413: {"description": "The body is too large.", **_ERROR},
    422: {"description": "What was given cannot be used, or takes more than the limits allow.", **_ERROR},
    429: {"description": "The queue is full.", "headers": _RETRY_AFTER, **_ERROR},
    500: {"description": "A worker process or a library failed.", **_ERROR},
}

Deadline = Annotated[
    float,
    Query(
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds to wait for the answer. 0: answer at once with the job. The solver gets half of it.",
    ),
]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat it to ask the same again: there is one job for each key.",
    ),
]
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]

router = APIRouter(route_class=StrictRoute)


def service_of(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service


@router.post("/v1/solve", response_model=Plan, responses=_SUBMITTED, tags=["work"])
async def solve(request: Request, body: SolveRequest, deadline_s: Deadline = 60.0, key: Key = None) -> Response:
    """Place the adapters of a problem on as few GPUs as possible, and check every GPU with the twin."""
    return await _answer("solve", body, deadline_s, key, request)


@router.post("/v1/replan", response_model=Replan, responses=_SUBMITTED, tags=["work"])
async def replan(request: Request, body: ReplanRequest, deadline_s: Deadline = 60.0, key: Key = None) -> Response:
    """Change a plan for the problem of now: few GPUs, few moves, and an order of steps that is safe."""
    return await _answer("replan", body, deadline_s, key, request)


@router.post("/v1/verify", response_model=Recheck, responses=_SUBMITTED, tags=["work"])
async def verify(request: Request, body: VerifyRequest, deadline_s: Deadline = 60.0, key: Key = None) -> Response:
    """Simulate the GPUs of a plan with the settings it gives them, and say whether the twin accepts them."""
    return await _answer("verify", body, deadline_s, key, request)


@router.post("/v1/whatif", response_model=WhatIf, responses=_SUBMITTED, tags=["work"])
async def whatif(request: Request, body: WhatIfRequest, deadline_s: Deadline = 60.0, key: Key = None) -> Response:
    """Plan a problem anew for every scenario."""
    return await _answer("whatif", body, deadline_s, key, request)


async def _answer(operation: Operation, body: Any, deadline_s: float, key: str | None, request: Request) -> Response:
    return await answer(service_of(request), operation, body, key=key, deadline_s=deadline_s, request=request)


@router.head("/v1/jobs", include_in_schema=False)
@router.get("/v1/jobs", responses=_COMMON, tags=["jobs"])
async def list_jobs(
    request: Request,
    count: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="`next_before` of a list.")] = None,
    state: JobState | None = None,
) -> JobList:
    """List jobs, the latest first."""
    service = service_of(request)
    number = None if before is None else int(before)
    stored = await service.jobs.latest(count=count, before=number, state=state)
    following = str(stored[-1].sequence) if len(stored) == count else None
    return JobList(jobs=tuple(job_document(job, service.jobs) for job in stored), next_before=following)


@router.head("/v1/jobs/{job_id}", include_in_schema=False)
@router.get("/v1/jobs/{job_id}", responses={**_COMMON, **_NOT_FOUND}, tags=["jobs"])
async def get_job(request: Request, job_id: JobId) -> Job:
    """Say how far a job is."""
    service = service_of(request)
    return job_document(await service.jobs.get(job_id), service.jobs)


@router.head("/v1/jobs/{job_id}/result", include_in_schema=False)
@router.get(
    "/v1/jobs/{job_id}/result",
    response_model=Plan | Replan | Recheck | WhatIf,
    responses={**_SUBMITTED, **_NOT_FOUND},
    tags=["jobs"],
)
async def get_result(request: Request, job_id: JobId) -> Response:
    """Return the document that answers a job; 202 while there is none; its error where it failed."""
    service = service_of(request)
    job = await service.jobs.get(job_id)
    return await answer_of(service, job) if job.state in FINISHED else accepted(service, job)


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        **_COMMON,
        **_NOT_FOUND,
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
        429: {"description": "Too many clients wait.", "headers": _RETRY_AFTER, **_ERROR},
    },
    tags=["jobs"],
)
async def get_events(
    request: Request,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{0,15}$")] = None,
) -> Response:
    """Stream what a job does: phases, incumbents, GPUs that the twin has judged; at the end the job."""
    service = service_of(request)
    await service.jobs.get(job_id)
    if service.num_streams >= service.settings.streams:
        raise refused("too-many-streams", 429, "fewer clients must wait. Too many do.", retry_after_s=5)

    async def told() -> str:
        return job_document(await service.jobs.get(job_id), service.jobs).model_dump_json()

    async def stream() -> Any:
        with open_stream(service):
            async for part in event_stream(service.jobs, job_id, int(last_event_id or 0), told):
                yield part

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)


@router.post("/v1/jobs/{job_id}/cancel", responses={**_COMMON, **_NOT_FOUND}, tags=["jobs"])
async def cancel_job(request: Request, job_id: JobId) -> Job:
    """End a job; the best plan so far stays as its result. A job that has finished stays as it is."""
    service = service_of(request)
    return job_document(await service.jobs.cancel(job_id), service.jobs)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["service"])
async def healthz() -> Health:
    """Say that the process is alive."""
    return Health(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Health, "description": "Not now."}}, tags=["service"])
async def readyz(request: Request) -> Response:
    """Say whether requests should be sent here, and why not."""
    reasons = await service_of(request).reasons_not_ready()
    health = Health(status="unavailable" if reasons else "ok", reasons=reasons)
    return Response(health.model_dump_json(), status_code=503 if reasons else 200, media_type=JSON)


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Response,
    responses={
        401: _COMMON[401],
        200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
    tags=["service"],
)
async def metrics(request: Request) -> Response:
    """Return counters in the text format of Prometheus."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
