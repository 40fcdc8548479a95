"""What every request passes before it is looked at: sizes, times, the token; and what is counted of the answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from placer.service.documents import ErrorDetails
from placer.service.error_details import MEDIA_TYPE, encoded, error_details
from placer.service.metrics import Metrics
from placer.service.settings import ServiceSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Answered without a token: what a load balancer and a generator of clients ask.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})


class Guard:
    """ASGI middleware around the application."""

    def __init__(self, application: Application, settings: ServiceSettings, metrics: Metrics) -> None:
        self._application = application
        self._settings = settings
        self._metrics = metrics
        self._digests = [_digest(token.encode("utf-8")) for token in settings.tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._settings)
        try:
            if (refusal := self._refusal(scope)) is not None:
                await exchange.refuse(refusal)
            else:
                await self._application(scope, exchange.receive, exchange.send)
        except Exception:
            # Of a client that does not take its answer there is nothing more to say.
            if not exchange.is_left:
                raise
        finally:
            self._count(scope, exchange.status)

    def _refusal(self, scope: Scope) -> ErrorDetails | None:
        """Return why a request is not looked at, from its headers."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._digests and scope["path"] not in OPEN_PATHS and not self._is_known(headers.get(b"authorization", b"")):
            return error_details(
                "unauthorized",
                401,
                "a request must bear a token of this service in the header `Authorization: Bearer TOKEN`.",
            )
        length = headers.get(b"content-length", b"0")
        most = self._settings.limits.body_bytes
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            shown = length[:20].decode("ascii", "replace")
            return error_details("too-large", 413, f"a request must have at most {most:,} bytes. Got {shown}.")
        return None

    def _is_known(self, authorization: bytes) -> bool:
        """Return whether a header bears one of the tokens, in a time that does not depend on which characters agree."""
        scheme, _, token = authorization.partition(b" ")
        given = _digest(token.strip())
        agreements = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(agreements)

    def _count(self, scope: Scope, status: int) -> None:
        # The template of the path, not the path: a number of values that clients cannot raise.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in {"GET", "POST", "HEAD", "OPTIONS"} else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()


class _Exchange:
    """One request and its answer: bytes are counted, and nobody is waited for longer than the settings allow."""

    def __init__(self, receive: Receive, send: Send, settings: ServiceSettings) -> None:
        self._receive = receive
        self._send = send
        self._settings = settings
        self._num_bytes = 0
        self._has_body = False
        self._body_deadline_s = asyncio.get_running_loop().time() + settings.body_s
        self._failure: ErrorDetails | None = None
        self._is_refused = False
        self.is_left = False
        self.status = 0

    async def receive(self) -> Message:
        """Return the next part of the body; after it, what comes when the client goes away."""
        if self._has_body:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._body_deadline_s):
                message = await self._receive()
        except TimeoutError:
            within = f"{self._settings.body_s:g} s"
            self._fail("too-slow", 408, f"the body of a request must come within {within}. This one did not.")
        self._num_bytes += len(message.get("body", b""))
        most = self._settings.limits.body_bytes
        if self._num_bytes > most:
            self._fail("too-large", 413, f"a request must have at most {most:,} bytes. This one has more.")
        self._has_body = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; a client that takes none of it for long is left."""
        if self._failure is not None and not self._is_refused:
            await self.refuse(self._failure)
        if self._is_refused:
            return
        await self._send_in_time(message)

    def _fail(self, kind: str, status: int, detail: str) -> NoReturn:
        """Give up reading; what the application answers to that is replaced by the reason."""
        self._failure = error_details(kind, status, detail)
        raise ConnectionError(detail)

    async def _send_in_time(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            async with asyncio.timeout(self._settings.send_s):
                await self._send(message)
        except TimeoutError:
            self.is_left = True
            raise ConnectionError("a client did not take its answer") from None

    async def refuse(self, details: ErrorDetails) -> None:
        """Answer with an error, if no answer has begun, and end the connection: the rest of the body is not read."""
        if self.status:
            return
        headers = [(b"content-type", MEDIA_TYPE.encode("ascii")), (b"connection", b"close")]
        if details.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="placer"'))
        body = encoded(details)
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        self._is_refused = True
        await self._send_in_time({"type": "http.response.start", "status": details.status, "headers": headers})
        await self._send_in_time({"type": "http.response.body", "body": body})


def _digest(token: bytes) -> bytes:
    # Of one length, whatever the token's is.
    return hashlib.sha256(token).digest()
