"""The ASGI application: routes, errors and OpenAPI around a service."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from placer.provenance import placer_version
from placer.service.documents import ErrorDetails
from placer.service.error_details import (
    MEDIA_TYPE,
    RequestRefusedError,
    details_of,
    encoded,
    error_details,
)
from placer.service.guard import OPEN_PATHS, Guard
from placer.service.routes import router
from placer.service.service import Service
from solvers.problem_errors import ProblemSource, translate
from solvers.problem_file import ProblemFile
from twin.errors import PlacerError

logger = logging.getLogger("placer.service")

_TITLE = "placer"
_ABOUT = (
    "Place many LoRA adapters on as few vLLM GPUs as serve their traffic, checked by a digital twin. "
    "Bodies are those of problem files and plan.json."
)


def make_app(service: Service) -> FastAPI:
    """Return the application of a service; serving it starts the service, and its end ends it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()
            await service.close()

    app = FastAPI(
        title=_TITLE,
        description=_ABOUT,
        version=placer_version(),
        lifespan=lifespan,
        # Both would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(router)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    app.add_exception_handler(RequestRefusedError, _answer_refusal)
    app.add_exception_handler(PlacerError, _answer_placer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_bug)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema["components"]
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                _without_default_error(operation)
                # Whether a token is asked for is a matter of how the service was started.
                operation["security"] = [] if path in OPEN_PATHS else [{}, {"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _without_default_error(operation: dict[str, Any]) -> None:
    """Describe errors of validation as they are answered."""
    error = operation["responses"].get("422")
    if error is not None and "application/json" in error.get("content", {}):
        reference = {"schema": {"$ref": "#/components/schemas/ErrorDetails"}}
        operation["responses"]["422"] = {
            "description": "What was given cannot be used.",
            "content": {MEDIA_TYPE: reference},
        }


def _answer(details: ErrorDetails, *, headers: dict[str, str] | None = None) -> Response:
    return Response(encoded(details), status_code=details.status, media_type=MEDIA_TYPE, headers=headers)


def _answer_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefusedError)
    seconds = error.retry_after_s
    return _answer(error.details, headers=None if seconds is None else {"Retry-After": str(seconds)})


def _answer_placer_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlacerError)
    return _answer(details_of(error))


def _answer_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: "not-found", 405: "method-not-allowed", 400: "bad-request"}
    details = error_details(kinds.get(error.status_code, "http"), error.status_code, str(error.detail))
    return _answer(details, headers=dict(error.headers or {}))


def _answer_bug(request: Request, error: Exception) -> Response:
    """Answer what nobody expected; a client that has gone is no bug, and hears nothing of it."""
    if isinstance(error, ClientDisconnect | OSError):
        return Response(status_code=503)
    logger.error("a bug of placer in %s %s", request.method, request.url.path, exc_info=error)
    return _answer(error_details("bug", 500, f"this is a bug of placer: {type(error).__name__}."))


def _answer_invalid(_: Request, error: Exception) -> Response:
    """Answer a request that does not follow its schema: about a problem, in the words of problem files."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    location = tuple(first["loc"])
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return _answer(error_details("bad-json", 400, f"a body must be JSON as RFC 8259 has it. {reason}."))
    if location[:2] == ("body", "problem") and isinstance(error.body, dict):
        try:
            ProblemFile.model_validate(error.body.get("problem"))
        except ValidationError as problem_error:
            source = ProblemSource(error.body.get("problem", {}), "problem")
            return _answer(details_of(translate(problem_error, source, ProblemFile)))
    field = ".".join(str(part) for part in location[1:]) or str(location[0])
    reason = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    others = len(error.errors()) - 1
    more = f" And {others} more {'error' if others == 1 else 'errors'}." if others else ""
    value = None if first["type"] == "missing" else first.get("input")
    return _answer(error_details("bad-input", 422, f"`{field}`: {reason}.{more}", field=field, value=value))
