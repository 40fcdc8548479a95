"""Serve HTTP until a signal: then accept nothing more, let jobs finish for a while, and put the others back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from placer.service.app import make_app
from placer.service.service import Service
from placer.service.settings import ServiceSettings
from twin.errors import InputError

# To write the last answers, once nothing runs any more.
_CLOSE_S = 5
# Without a whole request. Connections that are kept for another one are ended sooner.
_SILENCE_S = 20.0
# Of what was sent and is not taken.
_UNTAKEN_MS = 60_000
# Connections, with those that say nothing.
_MOST_CONNECTIONS = 2_000


class _ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that ends connections on which no request comes, whole or in pieces."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to look whether requests come."""
        super().connection_made(transport)
        self._look_again(None)

    def _look_again(self, seen: object) -> None:
        self.loop.call_later(_SILENCE_S, self._look, seen)

    def _look(self, seen: object) -> None:
        """End the connection when there was no new request since the last look, and none is answered."""
        if self.transport.is_closing():
            return
        # There is none before the first request.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is seen and (cycle is None or cycle.response_complete):
            self.transport.close()
        else:
            self._look_again(cycle)


class _Server(uvicorn.Server):
    """Uvicorn, which at the first signal goes on answering until the service has stopped.

    From the second one on no job is waited for.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._num_signals = 0
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; called by the signals' handler."""
        self._num_signals += 1
        if self._num_signals > 2 or self._loop is None or not self.started:
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self._begin_to_drain if self._num_signals == 1 else self._service.hurry)

    def _begin_to_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.stop()
        finally:
            # Without the signal: an end that was asked for is no failure.
            self.should_exit = True


def serve(settings: ServiceSettings, *, host: str, port: int, log_level: str, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Parameters
    ----------
    settings
        How the service runs.
    host, port
        Where it listens; port 0: any that is free.
    log_level
        Of uvicorn.
    announce
        Told where it listens.

    Raises
    ------
    InputError
        When the folder of the database, or the address, cannot be used.
    """
    service = Service(settings)
    service.lock()
    listener = _listener(host, port)
    shown = f"[{host}]" if ":" in host else host
    announce(f"listens on http://{shown}:{listener.getsockname()[1]}")
    config = uvicorn.Config(
        make_app(service),
        log_level=log_level,
        http=_ImpatientProtocol,
        lifespan="on",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_CLOSE_S,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
    )
    _Server(config, service).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"`--host` and `--port` must be an address that is free. {host}:{port}: {error.strerror or error}.",
            field="port",
            value=port,
            hint="give another --port, or 0 for any that is free",
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Connections inherit it: the kernel ends those whose client takes nothing, with all that is kept for it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN_MS)
    return listener
