"""Talk to an OpenAI-compatible server over HTTP: models, adapters, metrics, completions.

Needs the extra ``measure`` (aiohttp).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from twin.errors import InputError, TwinError
from twin.measurement.manifest import EndpointSettings
from twin.measurement.records import OK
from twin.measurement.streaming import CompletionStream, shown

CONNECT_TIMEOUT_S = 10.0
# Of requests that a healthy server answers at once.
SHORT_TIMEOUT_S = 5.0
# vLLM reads an adapter before it answers.
LOAD_TIMEOUT_S = 300.0
RETRY_WAIT_S = 0.5
# vLLM closes idle connections after five seconds; one that is used just then would look like a failure of the server.
KEEP_ALIVE_S = 2.0
OK_STATUS = 200


@dataclass(frozen=True)
class ModelCard:
    """A model that the server names; adapters have a parent."""

    name: str
    parent: str | None
    max_model_len: int | None


@dataclass(frozen=True)
class Answer:
    """How an attempt ended: a status of `twin.measurement.records.STATUSES`, and why."""

    status: str
    error: str | None = None
    http_status: int | None = None


class EndpointClient:
    """A connection pool to one server; an asynchronous context manager.

    Parameters
    ----------
    settings
        Where the server is, and how to ask it.
    api_key
        Sent as a bearer token; ``None``: none.
    """

    def __init__(self, settings: EndpointSettings, api_key: str | None) -> None:
        self._settings = settings
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        """Open the pool: as many connections as there are requests in flight."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            headers=self._headers,
            timeout=timeout,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self._session.close()

    async def models(self) -> tuple[ModelCard, ...]:
        """Return the models that the server has.

        Raises
        ------
        InputError
            When it refuses the key, or is no OpenAI-compatible server.
        TwinError
            When it does not answer as a server that is ready does; a later try may succeed.
        """
        url = f"{self._settings.url}/v1/models"
        try:
            async with self._session.get(url, timeout=_total(SHORT_TIMEOUT_S)) as response:
                text = await response.text(errors="replace")
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TwinError(f"it does not answer ({_words(error)})", field="endpoint", value=url) from error
        if status in {401, 403}:
            raise InputError(
                f"the server must accept the API key. {url} answers {status}.",
                field="endpoint",
                value=url,
                hint="set OPENAI_API_KEY to the server's key",
            )
        if status >= 500:
            raise TwinError(f"it answers {status}", field="endpoint", value=url)
        try:
            cards = json.loads(text)["data"]
            return tuple(ModelCard(card["id"], card.get("parent"), card.get("max_model_len")) for card in cards)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(
                f"the endpoint must be an OpenAI-compatible server. {url} answers {status} and no list of models.",
                field="endpoint",
                value=self._settings.url,
                hint="give the address without /v1, such as http://localhost:8000",
            ) from error

    async def wait_for_models(
        self, on_wait: Callable[[], None], must_stop: Callable[[], bool]
    ) -> tuple[ModelCard, ...]:
        """Return the models as soon as the server is ready (InputError; TwinError after `wait_s`)."""
        begin = time.monotonic()
        while True:
            try:
                return await self.models()
            except TwinError as error:
                if must_stop() or time.monotonic() - begin >= self._settings.wait_s:
                    raise TwinError(
                        f"the endpoint must answer within {self._settings.wait_s:g} s. {self._settings.url}: "
                        f"{error.message}.",
                        field="endpoint",
                        value=self._settings.url,
                        hint="start the server, check the address, or wait for it longer: --wait",
                    ) from error
            on_wait()
            await asyncio.sleep(RETRY_WAIT_S)

    async def is_alive(self) -> bool:
        """Return whether the server answers anything at all."""
        try:
            async with self._session.get(f"{self._settings.url}/v1/models", timeout=_total(SHORT_TIMEOUT_S)):
                return True
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def version(self) -> str | None:
        """Return the version that vLLM says it has; ``None`` for servers that do not say."""
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
            async with self._session.get(f"{self._settings.url}/version", timeout=_total(SHORT_TIMEOUT_S)) as response:
                return str(json.loads(await response.text())["version"])
        return None

    async def metrics(self, timeout_s: float) -> Answer | str:
        """Return the page of metrics, or why there is none."""
        try:
            async with self._session.get(self._settings.metrics_url, timeout=_total(timeout_s)) as response:
                text = await response.text(errors="replace")
                if response.status == OK_STATUS:
                    return text
                return Answer("error", f"HTTP {response.status}: {_said(text)}", response.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Answer("unreachable", _words(error))

    async def load_adapter(self, name: str, path: str) -> Answer:
        """Ask vLLM to load an adapter (``/v1/load_lora_adapter``)."""
        return await self._post_adapter("load_lora_adapter", {"lora_name": name, "lora_path": path}, LOAD_TIMEOUT_S)

    async def unload_adapter(self, name: str) -> Answer:
        """Ask vLLM to forget an adapter (``/v1/unload_lora_adapter``)."""
        return await self._post_adapter("unload_lora_adapter", {"lora_name": name}, SHORT_TIMEOUT_S)

    async def complete(
        self, body: bytes, stream: CompletionStream, now: Callable[[], float], timeout_s: float
    ) -> Answer:
        """Send one request, and feed its stream until it ends in whatever way."""
        status: int | None = None
        try:
            async with self._session.post(
                f"{self._settings.url}/v1/completions",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            ) as response:
                status = response.status
                if status != OK_STATUS:
                    return Answer("error", _said(await response.text(errors="replace")), status)
                if response.content_type != "text/event-stream":
                    text = _said(await response.text(errors="replace"))
                    return Answer("malformed", f"{response.content_type} instead of a stream: {text}", status)
                async for data in response.content.iter_any():
                    stream.feed(data, now())
                    if stream.is_over:
                        break
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return _broken(error, stream, status, timeout_s)
        return Answer(*stream.outcome(), status)

    async def _post_adapter(self, action: str, body: dict[str, str], timeout_s: float) -> Answer:
        try:
            async with self._session.post(
                f"{self._settings.url}/v1/{action}", json=body, timeout=_total(timeout_s)
            ) as response:
                text = await response.text(errors="replace")
                if response.status == OK_STATUS:
                    return Answer(OK, None, response.status)
                return Answer("error", _said(text), response.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Answer("unreachable", _words(error))


def _total(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


def _words(error: BaseException) -> str:
    """Return what went wrong; of a connection that is not made the reason and the address."""
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error
        # Names that are not known and certificates have numbers of their own.
        has_number = (reason.errno or 0) > 0 and not isinstance(reason, ssl.SSLError)
        words = os.strerror(reason.errno or 0) if has_number else reason.strerror or str(reason)
        return f"{words[:1].lower()}{words[1:]}: {error.host}:{error.port}"
    return str(error) or type(error).__name__


def _broken(error: BaseException, stream: CompletionStream, status: int | None, timeout_s: float) -> Answer:
    """Return what became of a request whose connection failed."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return Answer("unreachable", _words(error))
    if stream.outcome()[0] == OK:
        # The end of the stream was there; what broke after it is nobody's loss.
        return Answer(OK, None, status)
    tokens = sum(stream.chunk_tokens)
    if isinstance(error, TimeoutError):
        return Answer("timeout", f"not done after {timeout_s:g} s, with {tokens} tokens", status)
    return Answer("disconnected", f"{_words(error)}, after {tokens} tokens", status)


def _said(text: str) -> str:
    """Return what a server says against something: its message, or the beginning of its answer."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        content = json.loads(text)
        return shown(content["error"] if "error" in content else content["message"])
    return shown(text)
