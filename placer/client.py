"""A client of the HTTP service (`placer serve`): the same documents as files, sent and read. Extra ``client``."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from placer.plan_document import Plan
from placer.recheck import Recheck
from placer.replan_document import Replan
from placer.service.documents import (
    FINISHED,
    ErrorDetails,
    Job,
    Operation,
    ReplanOptions,
    SolveOptions,
    VerifyOptions,
    WhatIfOptions,
)
from placer.whatif.document import WhatIf
from placer.whatif.scenario import ScenarioFile
from solvers.problem_file import ProblemFile
from twin.errors import PlacerError

try:
    import httpx
except ImportError as error:
    raise ImportError("placer.client must have httpx: pip install 'lora-placer[client]'") from error

__all__ = ["Answer", "Client", "JobEvent", "ServiceError"]

Answer = Plan | Replan | Recheck | WhatIf
ProblemContent = ProblemFile | Mapping[str, Any]
_DOCUMENTS: dict[Operation, type[Answer]] = {"solve": Plan, "replan": Replan, "verify": Recheck, "whatif": WhatIf}
# Where it is worth to ask again: the queue is full, the service ends or starts, or its disk is full.
_RETRIED = frozenset({429, 503})
_LONGEST_PAUSE_S = 30.0
# As the service says; what stands before it may say anything.
_LONGEST_RETRY_AFTER_S = 120.0
# Of what is asked, not of the way there: the same again would fail the same way.
_NOT_RETRIED = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
# Of a request beyond the time for which the service was asked to wait.
_SLACK_S = 30.0


class ServiceError(PlacerError):
    """The service refused a request, or a job failed.

    Parameters
    ----------
    details
        What the service answered.
    """

    def __init__(self, details: ErrorDetails) -> None:
        super().__init__(details.detail, file=details.file, field=details.field, value=details.value, hint=details.hint)
        self.details = details


@dataclass(frozen=True)
class JobEvent:
    """Something that happened in a job.

    Attributes
    ----------
    number
        Ascending; `Client.events` goes on after any of them.
    kind
        ``phase``, ``incumbent``, ``gpu-verified``, ``fleet``, ``state`` and others (docs/service.md).
    data
        What it says.
    """

    number: int
    kind: str
    data: dict[str, Any]


class Client:
    """A connection to a service; a context manager.

    Requests that get no answer, 429 or 503 are repeated, after as long as the service says. Each submission has an
    idempotency key, so that a repetition is never a second job.

    Parameters
    ----------
    url
        Such as ``http://127.0.0.1:8080``.
    token
        That the service asks for, if it does.
    retries
        How often a request is repeated.
    transport, sleep
        How requests are sent, and how it is waited.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        retries: int = 10,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=_SLACK_S, transport=transport)
        self._retries = retries
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def solve(
        self,
        problem: ProblemContent,
        *,
        files: Mapping[str, str] | None = None,
        options: SolveOptions | None = None,
        deadline_s: float = 60.0,
        key: str | None = None,
    ) -> Plan:
        """Return a plan, however long it takes.

        Parameters
        ----------
        problem
            Content of a problem file.
        files
            Text of the files that it names, by name.
        options
            How it is solved.
        deadline_s
            Within which an answer is wanted: the solver gets half of it.
        key
            Idempotency key; ``None``: a new one.

        Raises
        ------
        ServiceError
            When the service refuses the request, or the job fails or is cancelled.
        httpx.TransportError
            When the service cannot be reached.
        """
        made = self._done("solve", _body(problem, files, options), deadline_s, key)
        assert isinstance(made, Plan)
        return made

    def replan(
        self,
        plan: Plan,
        problem: ProblemContent,
        *,
        files: Mapping[str, str] | None = None,
        options: ReplanOptions | None = None,
        deadline_s: float = 60.0,
        key: str | None = None,
    ) -> Replan:
        """Return a plan for the problem of now that is near `plan`, and the way there; see `solve`."""
        body = {"plan": _plain(plan), **_body(problem, files, options)}
        made = self._done("replan", body, deadline_s, key)
        assert isinstance(made, Replan)
        return made

    def verify(
        self,
        plan: Plan,
        problem: ProblemContent,
        *,
        files: Mapping[str, str] | None = None,
        options: VerifyOptions | None = None,
        deadline_s: float = 60.0,
        key: str | None = None,
    ) -> Recheck:
        """Return what the twin says about a plan; see `solve`."""
        body = {"plan": _plain(plan), **_body(problem, files, options)}
        made = self._done("verify", body, deadline_s, key)
        assert isinstance(made, Recheck)
        return made

    def whatif(
        self,
        problem: ProblemContent,
        scenarios: ScenarioFile | Mapping[str, Any],
        *,
        files: Mapping[str, str] | None = None,
        options: WhatIfOptions | None = None,
        deadline_s: float = 60.0,
        key: str | None = None,
    ) -> WhatIf:
        """Return a study of scenarios; see `solve`."""
        body = {"scenarios": _plain(scenarios), **_body(problem, files, options)}
        made = self._done("whatif", body, deadline_s, key)
        assert isinstance(made, WhatIf)
        return made

    def submit(self, operation: Operation, request: BaseModel | Mapping[str, Any], *, key: str | None = None) -> Job:
        """Return the job of a request (`placer.service.documents`), which is kept when this returns; see `solve`."""
        answer = self._post(operation, _plain(request), 0.0, key)
        if answer.status_code == 202:
            return Job.model_validate_json(answer.content)
        # The key is that of a job that has finished.
        return self.status(answer.headers["location"].rpartition("/")[2])

    def status(self, job_id: str) -> Job:
        """Return how far a job is (ServiceError when there is none)."""
        return Job.model_validate_json(self._checked(self._sent("GET", f"/v1/jobs/{job_id}")).content)

    def cancel(self, job_id: str) -> Job:
        """End a job; see the service's path ``/v1/jobs/{job_id}/cancel``."""
        return Job.model_validate_json(self._checked(self._sent("POST", f"/v1/jobs/{job_id}/cancel")).content)

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Yield what a job does until it ends; when the connection breaks, it is made again."""
        failures = 0
        while True:
            pause_s = min(1.0 * (failures + 1), _LONGEST_PAUSE_S)
            try:
                with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(after)}
                ) as answer:
                    if answer.is_error:
                        answer.read()
                        if failures >= self._retries or answer.status_code not in _RETRIED:
                            self._checked(answer)
                        pause_s = _retry_after_s(answer, pause_s)
                    else:
                        for event in _events(answer.iter_lines()):
                            if event.kind == "end":
                                return
                            after, failures = event.number, 0
                            yield event
            except httpx.TransportError as error:
                if failures >= self._retries or isinstance(error, _NOT_RETRIED):
                    raise
            failures += 1
            if failures > self._retries:
                raise httpx.ReadError("the events of a job must come to an end. The service broke them off.")
            self._sleep(pause_s)

    def result(self, job_id: str) -> Answer | None:
        """Return the document of a job; ``None`` while there is none.

        Raises
        ------
        ServiceError
            When the job failed, was cancelled without a result, or is not known.
        """
        answer = self._checked(self._sent("GET", f"/v1/jobs/{job_id}/result"))
        if answer.status_code == 202:
            return None
        return _DOCUMENTS[self.status(job_id).operation].model_validate_json(answer.content)

    def wait(self, job_id: str) -> Job:
        """Return a job when it has finished."""
        for _ in self.events(job_id):
            pass
        job = self.status(job_id)
        assert job.state in FINISHED
        return job

    def _done(self, operation: Operation, body: dict[str, Any], deadline_s: float, key: str | None) -> Answer:
        """Submit a job, and return its document when it is done."""
        answer = self._post(operation, body, deadline_s, key)
        if answer.status_code != 202:
            return _DOCUMENTS[operation].model_validate_json(answer.content)
        job = Job.model_validate_json(answer.content)
        self.wait(job.id)
        made = self.result(job.id)
        assert made is not None
        return made

    def _post(self, operation: Operation, body: dict[str, Any], deadline_s: float, key: str | None) -> httpx.Response:
        answer = self._sent(
            "POST",
            f"/v1/{operation}",
            params={"deadline_s": deadline_s},
            json=body,
            headers={"Idempotency-Key": key or uuid.uuid4().hex},
            timeout=httpx.Timeout(_SLACK_S, read=deadline_s + _SLACK_S),
        )
        return self._checked(answer)

    def _sent(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send a request, again when there is no answer or the service asks for it."""
        for attempt in range(self._retries + 1):
            is_last = attempt == self._retries
            pause_s = min(0.5 * 2.0**attempt, _LONGEST_PAUSE_S)
            try:
                answer = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                if is_last or isinstance(error, _NOT_RETRIED):
                    raise
            else:
                if is_last or answer.status_code not in _RETRIED:
                    return answer
                pause_s = _retry_after_s(answer, pause_s)
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    def _checked(answer: httpx.Response) -> httpx.Response:
        """Return an answer that is none of an error."""
        if not answer.is_error:
            return answer
        try:
            details = ErrorDetails.model_validate_json(answer.content)
        except ValueError:
            # What stands before the service has words of its own.
            details = ErrorDetails(
                type="about:blank",
                title=answer.reason_phrase,
                status=answer.status_code,
                detail=f"the service answered {answer.status_code} {answer.reason_phrase}.",
            )
        raise ServiceError(details)


def _retry_after_s(answer: httpx.Response, otherwise_s: float) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), _LONGEST_RETRY_AFTER_S) if text.isdigit() else otherwise_s


def _body(problem: ProblemContent, files: Mapping[str, str] | None, options: BaseModel | None) -> dict[str, Any]:
    body: dict[str, Any] = {"problem": _plain(problem)}
    if files:
        body["files"] = dict(files)
    if options is not None:
        body["options"] = _plain(options)
    return body


def _plain(document: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(document, BaseModel):
        return document.model_dump(mode="json", exclude_unset=True)
    return dict(document)


def _events(lines: Iterator[str]) -> Iterator[JobEvent]:
    """Yield the events of a stream."""
    number, kind, data = 0, "message", ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "id":
            number = int(value)
        elif field == "event":
            kind = value
        elif field == "data":
            data = value
        elif not line and data:
            yield JobEvent(number, kind, json.loads(data))
            kind, data = "message", ""
