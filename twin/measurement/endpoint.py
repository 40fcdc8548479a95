"""Measure a server over HTTP, open loop: requests are sent when they are due, whatever the server does.

Needs the extra ``measure`` (aiohttp, prometheus_client).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import ValidationError

from twin.engine import EngineConfig
from twin.errors import InputError, PlacerError
from twin.measurement.endpoint_client import Answer, EndpointClient, ModelCard
from twin.measurement.endpoint_run import METRICS_TIMEOUT_S, EndpointRun
from twin.measurement.interrupts import StopRequest
from twin.measurement.machine import client_versions
from twin.measurement.manifest import EndpointSettings, ServerFacts
from twin.measurement.metrics_page import engine_facts
from twin.measurement.preparation import require_lengths
from twin.measurement.records import OK, ShardWriter
from twin.measurement.session import Progress, SegmentFacts, SegmentOutcome, SegmentTask

API_KEY_VARIABLE = "OPENAI_API_KEY"
LIBRARIES = ("aiohttp", "prometheus_client")
# What the names of vLLM's metrics begin with.
VLLM_METRIC = "vllm:"


class EndpointDriver:
    """Runs segments against a server (a `twin.measurement.session.Driver`).

    Parameters
    ----------
    settings
        Where the server is, and how to ask it.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings

    def run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        """Send what is due until all is done; see `Driver.run`."""
        _allow_many_connections()
        return asyncio.run(self._run(task, stop))

    async def _run(self, task: SegmentTask, stop: StopRequest) -> SegmentOutcome:
        client = EndpointClient(self._settings, os.environ.get(API_KEY_VARIABLE))
        writer = ShardWriter(task.shards, task.number)
        task.on_progress(Progress(what=f"asking {self._settings.url}"))
        try:
            async with client:
                try:
                    cards = await client.wait_for_models(
                        lambda: task.on_progress(Progress(what=f"waiting for {self._settings.url}")),
                        lambda: stop.is_made,
                    )
                except PlacerError:
                    if not stop.is_made:
                        raise
                    return SegmentOutcome(end_s=task.start_s, reason=stop.reason, cause="interrupted")
                version = await client.version()
                async with self._adapters(client, task, writer, cards, stop) as base:
                    require_lengths(task.requests, base.max_model_len)
                    page = await self._page(client)
                    task.on_ready(self._facts(page, base, version))
                    run = EndpointRun(self._settings, task, client, writer, base)
                    end_s = await run.serve(stop)
        finally:
            writer.close()
        facts = self._facts(run.last_page or page, base, version)
        return SegmentOutcome(end_s=end_s, reason=run.reason, cause=run.cause, facts=facts)

    async def _page(self, client: EndpointClient) -> Answer | str | None:
        """Return the page of metrics, why there is none, or ``None`` where it is not asked for."""
        return await client.metrics(METRICS_TIMEOUT_S) if self._settings.metrics_interval_s > 0 else None

    def _facts(self, page: Answer | str | None, base: ModelCard, version: str | None) -> SegmentFacts:
        """Return what is known, by a page of metrics or why there is none."""
        server, warnings = self._server_facts(page if isinstance(page, str) else None, base, version)
        return SegmentFacts(
            server=server,
            versions=client_versions(*LIBRARIES) | ({} if version is None else {"vllm": version}),
            warnings=(*_use_warnings(self._settings, page), *warnings),
        )

    @asynccontextmanager
    async def _adapters(
        self,
        client: EndpointClient,
        task: SegmentTask,
        writer: ShardWriter,
        cards: tuple[ModelCard, ...],
        stop: StopRequest,
    ) -> AsyncIterator[ModelCard]:
        """Yield the base model once all adapters are there; those loaded for it are unloaded at the end."""
        known = {card.name for card in cards}
        wanted = [task.workload.adapters[index].name for index in sorted(set(task.requests.adapter.tolist()) - {-1})]
        missing = [name for name in wanted if name not in known]
        if missing and self._settings.adapter_directory is None:
            raise _unknown_adapters(missing, known)
        base = _base_model(cards, self._settings.base_model)
        loaded: list[str] = []
        try:
            for name in missing:
                if stop.is_made:
                    break
                task.on_progress(Progress(what=f"loading adapter {len(loaded) + 1} of {len(missing)}"))
                await self._load(client, writer, name)
                loaded.append(name)
            yield base
        finally:
            for name in loaded:
                answer = await _timed_call(client.unload_adapter(name), writer, name, "unload")
                if answer.status == "unreachable":
                    break

    async def _load(self, client: EndpointClient, writer: ShardWriter, name: str) -> None:
        path = f"{self._settings.adapter_directory}/{name}"
        answer = await _timed_call(client.load_adapter(name, path), writer, name, "load")
        if answer.status != OK:
            raise InputError(
                f"the server must load every adapter. It does not load {name!r} from {path}: {answer.error}.",
                field="adapter_directory",
                value=name,
                hint="the path is the server's; vLLM loads adapters at run time with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, up to the rank --max-lora-rank",
            )

    def _server_facts(
        self, page: str | None, base: ModelCard, version: str | None
    ) -> tuple[ServerFacts, tuple[str, ...]]:
        """Return what is known about the server, and where it contradicts the problem file."""
        said = engine_facts(page) if page is not None else {}
        blocks, size = said.get("num_gpu_blocks"), said.get("block_size")
        declared = dict(self._settings.engine)
        if base.max_model_len is not None:
            said["max_model_len"] = base.max_model_len
        warnings = tuple(
            f"the server has `{name}` {value}, and the problem file says {declared[name]}: the server's is recorded"
            for name, value in said.items()
            if name in declared and declared[name] != value
        )
        known = {name: value for name, value in (declared | said).items() if name in EngineConfig.model_fields}
        engine = None
        try:
            # Without the declaration, what is left are the twin's defaults, which nobody measured.
            engine = EngineConfig.model_validate(known) if declared else None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            why = f"{name + ': ' if name else ''}{str(first['msg']).removeprefix('Value error, ')}"
            warnings += (f"the server's settings are not known: what is declared and what it says do not fit. {why}",)
        details: dict[str, Any] = {"model": base.name, "said": said}
        if version is not None:
            details["version"] = version
        kv_tokens = blocks * size if blocks is not None and size is not None else None
        return ServerFacts(engine=engine, kv_tokens=kv_tokens, details=details), warnings


def _use_warnings(settings: EndpointSettings, page: Answer | str | None) -> tuple[str, ...]:
    """Return what a measurement will be of no use for, by what is declared and by the page of metrics."""
    warnings = []
    if not settings.engine:
        warnings.append(
            "the workload file has no `engine`, and no option such as --max-loras is given: without the server's "
            "settings `placer validate` cannot replay this measurement, and `placer calibrate` needs them in --settings"
        )
    problem = None
    if page is None:
        problem = "no metrics are recorded (--metrics-interval 0)"
    elif isinstance(page, Answer):
        problem = f"{settings.metrics_url} has no metrics ({page.error})"
    elif VLLM_METRIC not in page:
        problem = f"{settings.metrics_url} has no metrics of vLLM"
    if problem is not None:
        warnings.append(f"{problem}: without vLLM's `placer calibrate` cannot use this measurement")
    return tuple(warnings)


async def _timed_call(call: Awaitable[Answer], writer: ShardWriter, adapter: str, action: str) -> Answer:
    """Await a call about an adapter, and record it."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    answer = await call
    record = {
        "adapter": adapter,
        "action": action,
        "seconds": round(loop.time() - begin, 6),
        "http_status": answer.http_status,
        "error": answer.error,
    }
    writer.write("adapter_calls", record)
    return answer


def _unknown_adapters(missing: list[str], known: set[str]) -> InputError:
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    has = ", ".join(sorted(known)[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    return InputError(
        f"the server must have every adapter as a model of its name. It lacks {shown}. It has {has or 'none'}.",
        field="adapters",
        value=missing[0],
        hint="start it with --lora-modules NAME=PATH, or let them be loaded: --load-adapters FOLDER",
    )


def _base_model(cards: tuple[ModelCard, ...], wanted: str | None) -> ModelCard:
    """Return the base model: the one named, or the first that is no adapter."""
    for card in cards:
        if card.name == wanted or (wanted is None and card.parent is None):
            return card
    names = ", ".join(card.name for card in cards[:5])
    raise InputError(
        f"the server must have the base model {wanted!r}. It has {names or 'none'}.",
        field="base_model",
        value=wanted,
        hint="give a name that /v1/models lists",
    )


def _allow_many_connections() -> None:
    """Raise the limit on open files as far as this process may: each request in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
