"""JSON as RFC 8259 has it, for bodies of requests: no NaN, no numbers beyond float64, no key twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import anyio.to_thread
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from placer.service.error_details import RequestRefusedError, refused

# Larger bodies are parsed beside the event loop.
_SMALL_BYTES = 64 << 10
# Of a body, times the adapters that a problem may have, and as if it were at least so many.
_ENTRIES_PER_ADAPTER = 2
_CONTAINERS_PER_ADAPTER = 10
_VALUES_PER_ADAPTER = 50
_LEAST_ADAPTERS = 10_000


def parse_strictly(content: bytes) -> Any:
    """Return the plain values of JSON text.

    Raises
    ------
    json.JSONDecodeError
        When it is none, repeats a key, has a number that is not finite, or is nested too deep.
    """
    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deep", "", 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error), "", 0) from None


def check_numbers(data: Any, adapters: int) -> None:
    """Raise RequestRefusedError (422) for more values than documents about `adapters` adapters have.

    Validation goes through all values, in the event loop, and keeps an error of a kilobyte for each that is wrong: a
    body of the largest size could take all memory of the service.
    """
    scale = max(adapters, _LEAST_ADAPTERS)
    num_values = num_containers = 0
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        field, container = waiting.pop()
        num_values += len(container)
        num_containers += 1
        if (
            len(container) > _ENTRIES_PER_ADAPTER * scale
            or num_containers > _CONTAINERS_PER_ADAPTER * scale
            or num_values > _VALUES_PER_ADAPTER * scale
        ):
            raise refused(
                "bad-input",
                422,
                f"`{field}` must leave a body with at most {_ENTRIES_PER_ADAPTER * scale:,} entries in a list or "
                f"mapping, {_CONTAINERS_PER_ADAPTER * scale:,} lists and mappings, and "
                f"{_VALUES_PER_ADAPTER * scale:,} values. "
                f"It has {len(container):,} entries.",
                field=field,
                hint="ask for less, or have the server's limit of adapters raised (docs/service.md)",
            )
        entries = container.items() if isinstance(container, dict) else enumerate(container)
        waiting += [
            (f"{field}.{key}" if field else str(key), value) for key, value in entries if isinstance(value, dict | list)
        ]


class StrictRequest(Request):
    """A request whose body is parsed strictly, once.

    Attributes
    ----------
    refusal
        Why its body is not looked at, once it was asked for.
    """

    refusal: RequestRefusedError | None = None
    _values: Any = None
    _is_parsed = False

    async def json(self) -> Any:
        """Return the plain values of the body (RequestRefusedError: see `check_numbers`)."""
        if not self._is_parsed:
            self._values = await self._parsed(await self.body())
            self._is_parsed = True
        return self._values

    async def _parsed(self, body: bytes) -> Any:
        if len(body) <= _SMALL_BYTES:
            return parse_strictly(body)
        try:
            return await anyio.to_thread.run_sync(self._checked, body)
        except RequestRefusedError as refusal:
            self.refusal = refusal
            raise

    def _checked(self, body: bytes) -> Any:
        data = parse_strictly(body)
        if isinstance(data, dict | list):
            check_numbers(data, self.app.state.service.settings.limits.adapters)
        return data


class StrictRoute(APIRoute):
    """A route whose requests are `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            try:
                return await handle(strict)
            except HTTPException:
                # What reading a body raises is 400 to FastAPI.
                if strict.refusal is not None:
                    raise strict.refusal from None
                raise

        return strictly


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"a key must be given once, {key[:80]!r} is given again")
            seen.add(key)
    return mapping


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"numbers must be finite, {text} is not")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"numbers must be finite, {text[:40]} is too large")
    return number
