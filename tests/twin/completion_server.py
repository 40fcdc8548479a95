"""A small server of the OpenAI completions protocol, in a thread, that fails in whatever way a test asks for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from aiohttp import web

Fault = Literal["500", "400", "drop", "half a line", "stall", "garbage", "html", "error event", "no end"]

METRICS = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 3.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",gpu_memory_utilization="0.9",num_gpu_blocks="1000",engine="0"} 1.0
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a0",waiting_lora_adapters=""} 1.7e+09
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0"} 12.0
"""


@dataclass
class Behaviour:
    """What the server does.

    Attributes
    ----------
    models
        Names of adapters that it has from the start.
    faults
        By the ordinal of the completion request, from 0: what goes wrong with it.
    token_s
        Time per token.
    tokens_per_chunk
        How many tokens a chunk has.
    usage
        ``continuous`` if it is asked for, only at the ``end``, or ``never``.
    refusals
        How often `/v1/models` answers 503 before the server is ready.
    dies_after
        Completion requests after which the server is gone; -1: never.
    metrics
        Pages in turn, the last one for ever; ``None``: no such page.
    loadable
        Adapters that can be loaded.
    key
        That clients must have.
    listing
        What `/v1/models` answers instead of models.
    longest
        Tokens after which an answer ends, whatever was asked for.
    """

    models: Sequence[str] = ("a0", "a1", "a2")
    faults: Mapping[int, Fault] = field(default_factory=dict)
    token_s: float = 0.002
    tokens_per_chunk: int = 1
    usage: Literal["continuous", "end", "never"] = "continuous"
    refusals: int = 0
    dies_after: int = -1
    metrics: Sequence[str | None] = (METRICS,)
    loadable: Sequence[str] = ()
    key: str | None = None
    max_model_len: int | None = 512
    listing: bytes | None = None
    longest: int = 1 << 30


class CompletionServer:
    """The server; a context manager that listens on a free port.

    Attributes
    ----------
    requests
        Bodies of the completion requests, in order.
    calls
        Of adapters: action and name.
    """

    def __init__(self, behaviour: Behaviour | None = None, *, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.requests: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.url = ""
        self._port = port
        self._models = list(self.behaviour.models)
        self._num_refused = self._num_pages = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.BaseTransport] = set()

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"

    async def _die(self) -> None:
        """Close the port and break every connection."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in tuple(runner.sites):
            await site.stop()
        for transport in tuple(self._transports):
            if isinstance(transport, asyncio.Transport):
                transport.abort()
        await runner.cleanup()

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        if self._num_refused < self.behaviour.refusals:
            self._num_refused += 1
            return web.Response(status=503, text="loading")
        if self.behaviour.key is not None and request.headers.get("Authorization") != f"Bearer {self.behaviour.key}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        if self.behaviour.listing is not None:
            return web.Response(body=self.behaviour.listing, headers={"Content-Type": "text/plain; charset=utf-8"})
        cards: list[dict[str, Any]] = [
            {"id": "base", "parent": None, "max_model_len": self.behaviour.max_model_len},
            *({"id": name, "parent": "base"} for name in self._models),
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _version(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response({"version": "0.32.0"})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        del request
        pages = self.behaviour.metrics
        page = pages[min(self._num_pages, len(pages) - 1)]
        self._num_pages += 1
        return web.Response(status=404) if page is None else web.Response(text=page)

    async def _load(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls.append(("load", body["lora_path"]))
        if body["lora_name"] not in self.behaviour.loadable:
            message = f"LoRA rank 64 is greater than max_lora_rank 16 in {body['lora_path']}"
            return web.json_response({"error": {"message": message}}, status=400)
        self._models.append(body["lora_name"])
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls.append(("unload", body["lora_name"]))
        self._models.remove(body["lora_name"])
        return web.Response(text="Success")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        ordinal = len(self.requests)
        self.requests.append(body)
        assert request.transport is not None
        self._transports.add(request.transport)
        if ordinal == self.behaviour.dies_after:
            self._end_of_life = asyncio.ensure_future(self._die())
            await asyncio.sleep(10.0)
        fault = self.behaviour.faults.get(ordinal)
        if fault == "500":
            return web.json_response({"error": {"message": "the engine is dead"}}, status=500)
        if fault == "400":
            return web.json_response({"message": "max_tokens is too large"}, status=400)
        if fault == "html":
            return web.Response(text="<html>bad gateway</html>", content_type="text/html")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await self._stream(request, response, body, fault)
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, body: dict[str, Any], fault: Fault | None
    ) -> None:
        wanted, total = min(int(body["max_tokens"]), self.behaviour.longest), 0
        usage = {"prompt_tokens": len(body["prompt"]), "total_tokens": 0}
        is_continuous = body["stream_options"].get("continuous_usage_stats") and self.behaviour.usage == "continuous"
        while total < wanted:
            await asyncio.sleep(self.behaviour.token_s)
            count = min(self.behaviour.tokens_per_chunk, wanted - total)
            total += count
            if fault is not None and total > wanted // 2:
                await self._fail(request, response, fault)
                return
            finish = "length" if total == wanted else None
            event: dict[str, Any] = {"choices": [{"index": 0, "text": " t" * count, "finish_reason": finish}]}
            if is_continuous:
                event["usage"] = {**usage, "completion_tokens": total}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if self.behaviour.usage != "never":
            last = {"choices": [], "usage": {**usage, "completion_tokens": total}}
            await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")

    async def _fail(self, request: web.Request, response: web.StreamResponse, fault: Fault) -> None:
        """Break off a stream in the middle."""
        if fault == "stall":
            await asyncio.sleep(10.0)
        elif fault == "garbage":
            await response.write(b"data: {'choices': ]\n\n")
        elif fault == "error event":
            await response.write(b'data: {"error": {"message": "the engine died", "code": 500}}\n\ndata: [DONE]\n\n')
        elif fault == "half a line":
            await response.write(b'data: {"choices": [{"ind')
        if fault in {"drop", "half a line"} and request.transport is not None:
            await asyncio.sleep(0.01)
            request.transport.close()
