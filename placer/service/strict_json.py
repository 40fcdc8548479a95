"""JSON as RFC 8259 has it, for bodies of requests: no NaN, no numbers beyond float64, no key twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import anyio.to_thread
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

# Larger bodies are parsed beside the event loop.
_SMALL_BYTES = 64 << 10


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


class StrictRequest(Request):
    """A request whose body is parsed strictly, once."""

    _values: Any = None
    _is_parsed = False

    async def json(self) -> Any:
        """Return the plain values of the body."""
        if not self._is_parsed:
            body = await self.body()
            is_small = len(body) <= _SMALL_BYTES
            self._values = parse_strictly(body) if is_small else await anyio.to_thread.run_sync(parse_strictly, body)
            self._is_parsed = True
        return self._values


class StrictRoute(APIRoute):
    """A route whose requests are `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

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
