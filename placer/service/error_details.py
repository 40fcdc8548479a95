"""Errors as problem details (RFC 9457), and which HTTP status and exit code each of ours stands for."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from placer.service.documents import ErrorDetails
from twin.errors import ClusterError, NoSolutionError, PlacerError, SolverError, VllmError

MEDIA_TYPE = "application/problem+json"
_URN = "urn:placer:error:"
_LONGEST_VALUE = 200
_LONGEST_TEXT = 2_000


class RequestRefusedError(Exception):
    """A request that is answered with an error.

    Parameters
    ----------
    details
        The answer.
    retry_after_s
        When it may be worth to ask again; ``None``: not said.
    """

    def __init__(self, details: ErrorDetails, *, retry_after_s: int | None = None) -> None:
        super().__init__(details.detail)
        self.details = details
        self.retry_after_s = retry_after_s


def error_details(
    kind: str,
    status: int,
    detail: str,
    *,
    field: str | None = None,
    value: object = None,
    file: str | None = None,
    hint: str | None = None,
) -> ErrorDetails:
    """Return an error; text is cut, and values that are not short and plain are left out."""
    return ErrorDetails(
        type=f"{_URN}{kind}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail[:_LONGEST_TEXT],
        field=None if field is None else field[:_LONGEST_VALUE],
        value=_plain(value),
        file=file,
        hint=hint,
    )


def refused(
    kind: str, status: int, detail: str, *, retry_after_s: int | None = None, **more: Any
) -> RequestRefusedError:
    """Return the exception that answers a request with an error; see `error_details`."""
    return RequestRefusedError(error_details(kind, status, detail, **more), retry_after_s=retry_after_s)


def details_of(error: PlacerError) -> ErrorDetails:
    """Return the answer to an error that placer raises on purpose.

    What a client can correct is 422; that nothing was found within the budget, 409; what failed here, 500.
    """
    kind, status = _kind_of(error)
    return error_details(
        kind, status, error.message, field=error.field, value=error.value, file=error.file, hint=error.hint
    )


def exit_code_of_error(details: ErrorDetails) -> int:
    """Return the exit code that the command line has for such an error."""
    return {422: 2, 409: 4}.get(details.status, 6)


def encoded(details: ErrorDetails) -> bytes:
    """Return the body of an answer: ASCII, so that text which is no valid Unicode can be told, too."""
    return json.dumps(details.model_dump(mode="python", exclude_none=True), allow_nan=False).encode("ascii")


def _kind_of(error: PlacerError) -> tuple[str, int]:
    if isinstance(error, NoSolutionError):
        return "no-solution", 409
    if isinstance(error, VllmError | ClusterError):
        return "backend-failed", 500
    if isinstance(error, SolverError):
        # One that is not installed is a matter of what was asked for.
        is_choice = error.field == "solver" or isinstance(error.__cause__, ImportError)
        return ("bad-input", 422) if is_choice else ("backend-failed", 500)
    return "bad-input", 422


def _plain(value: object) -> Any:
    """Return a value if it is short and plain, else nothing."""
    if isinstance(value, str):
        return value[:_LONGEST_VALUE]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else None
    return None
