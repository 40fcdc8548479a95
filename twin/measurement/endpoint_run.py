"""One segment against a server: send on time, watch the server and the client itself, record everything."""

from __future__ import annotations

import asyncio
import json
import math
import time
from contextlib import suppress
from typing import Any, Literal

from twin.measurement.endpoint_client import Answer, EndpointClient, ModelCard
from twin.measurement.interrupts import StopRequest
from twin.measurement.manifest import EndpointSettings
from twin.measurement.prompts import prompt_text, prompt_token_ids
from twin.measurement.records import OK, SENT, UNFINISHED, ShardWriter, seconds
from twin.measurement.session import Progress, SegmentTask
from twin.measurement.streaming import CompletionStream
from twin.workload import NANOSECONDS

# So that everything is set up when the first request is due.
LEAD_S = 0.2
CLIENT_INTERVAL_S = 1.0
TIMER_S = 0.02
PROBE_INTERVAL_S = 0.5
DRAIN_INTERVAL_S = 0.25
METRICS_TIMEOUT_S = 10.0
NOT_FOUND = 404
LONGEST_BACKOFF_S = 10.0
# Overdue requests that are sent in one go.
BURST = 32
# Another attempt may succeed after these; after other refusals it cannot.
RETRIED_STATUSES = ("timeout", "unreachable", "disconnected")
RETRIED_ANSWERS = (408, 429)


class EndpointRun:
    """Sends the requests of a task to a server, and records what came back.

    Parameters
    ----------
    settings, task, client, writer
        How, what, through what, and where to record.
    base
        Model that requests without an adapter ask.

    Attributes
    ----------
    reason, cause
        Why it ended early; ``None``: it did not.
    last_page
        Of metrics; ``None``: there was none.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        task: SegmentTask,
        client: EndpointClient,
        writer: ShardWriter,
        base: ModelCard,
    ) -> None:
        self.reason: str | None = None
        self.cause: Literal["interrupted", "failed"] | None = None
        self.last_page: str | None = None
        self._settings = settings
        self._task = task
        self._client = client
        self._writer = writer
        self._base = base
        self._ended = asyncio.Event()
        self._suspicion = asyncio.Event()
        self._requests: set[asyncio.Task[None]] = set()
        self._zero = 0.0
        self._sent = self._finished = self._failed = 0
        self._fault: BaseException | None = None

    async def serve(self, stop: StopRequest) -> float:
        """Send every request when it is due, wait for the answers, and return the time at the end."""
        loop = asyncio.get_running_loop()
        self._zero = loop.time() + LEAD_S - self._task.start_s
        watchers = [asyncio.create_task(watch()) for watch in (self._watch_client, self._watch_server, self._scrape)]
        for watcher in watchers:
            watcher.add_done_callback(self._note_fault)

        def interrupt() -> None:
            loop.call_soon_threadsafe(self._end, stop.reason, "interrupted")

        with stop.listener(interrupt):
            try:
                await self._send_all()
                await self._drain()
            finally:
                end_s = max(self._now(), self._task.start_s)
                for task in (*watchers, *self._requests):
                    task.cancel()
                await asyncio.gather(*watchers, *self._requests, return_exceptions=True)
        if self._settings.metrics_interval_s > 0 and self.cause is None:
            await self._scrape_once()
        if self._fault is not None:
            raise self._fault
        return end_s

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._zero

    def _end(self, reason: str | None, cause: Literal["interrupted", "failed"]) -> None:
        if self.reason is None:
            self.reason, self.cause = reason, cause
        self._ended.set()

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        """End the segment when recording itself fails, such as on a full disk."""
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._end(f"recording failed: {self._fault}", "failed")

    async def _ends_within(self, delay_s: float) -> bool:
        """Wait for a while; return True at once if the segment has to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._ended.wait()
        return self._ended.is_set()

    async def _send_all(self) -> None:
        table = self._task.requests
        for row, number in enumerate(self._task.rows.tolist()):
            arrival_s = int(table.arrival_ns[row]) / NANOSECONDS
            wait_s = arrival_s - self._now()
            # What is overdue goes at once, but now and then the others get their turn.
            if (wait_s > 0 or row % BURST == 0) and await self._ends_within(max(wait_s, 0.0)):
                return
            task = asyncio.create_task(self._serve_request(row, number, arrival_s))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
            task.add_done_callback(self._note_fault)
            self._sent += 1

    async def _drain(self) -> None:
        until_s = self._task.horizon_s + self._settings.drain_s
        while self._requests and self._now() < until_s:
            # Whoever waits for the first of thousands looks at all of them each time that one is done.
            await asyncio.wait(self._requests, timeout=min(until_s - self._now(), DRAIN_INTERVAL_S))
            if self._ended.is_set():
                return

    async def _serve_request(self, row: int, number: int, arrival_s: float) -> None:
        """Send a request, again if that is wanted and it failed, and record each attempt."""
        for attempt in range(self._settings.retries + 1):
            answer = await self._attempt(row, number, arrival_s, attempt)
            if answer.status == OK:
                self._finished += 1
                return
            self._suspicion.set()
            is_worth_it = answer.status in RETRIED_STATUSES or (answer.http_status or 0) in RETRIED_ANSWERS
            if not is_worth_it and (answer.http_status or 0) < 500:
                break
            if attempt < self._settings.retries and await self._ends_within(min(0.5 * 2**attempt, LONGEST_BACKOFF_S)):
                break
        self._failed += 1

    async def _attempt(self, row: int, number: int, arrival_s: float, attempt: int) -> Answer:
        table = self._task.requests
        adapter = int(table.adapter[row])
        prompt_tokens, output_tokens = int(table.prompt_tokens[row]), int(table.output_tokens[row])
        if self._base.max_model_len is not None:
            # vLLM refuses what it would have to cut off.
            output_tokens = min(output_tokens, self._base.max_model_len - prompt_tokens)
        name = self._task.workload.adapters[adapter].name if adapter >= 0 else None
        body = self._body(number, name or self._base.name, prompt_tokens, output_tokens)
        stream = CompletionStream()
        sent_s = self._now()
        record = {
            "request": number,
            "attempt": attempt,
            "adapter": name,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "arrival_s": seconds(arrival_s),
            "sent_s": seconds(sent_s),
        }
        self._writer.write(SENT, record)
        answer = Answer(UNFINISHED)
        try:
            answer = await self._client.complete(body, stream, self._now, self._settings.timeout_s)
        except asyncio.CancelledError:
            answer = Answer(UNFINISHED, self.reason)
            raise
        finally:
            outcome = {"status": answer.status, "error": answer.error, "http_status": answer.http_status}
            finish_s = stream.chunk_times[-1] if answer.status == OK and stream.chunk_times else self._now()
            self._writer.write(
                "requests", {**record, **stream.record(sent_s), **outcome, "finish_s": seconds(finish_s)}
            )
        return answer

    def _body(self, number: int, model: str, prompt_tokens: int, output_tokens: int) -> bytes:
        """Return a completion request of exactly so many tokens, as far as the server allows to ask for that."""
        settings, seed = self._settings, self._task.seed
        is_text = settings.prompt == "text"
        options: dict[str, Any] = {"include_usage": True}
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt_text(seed, number, prompt_tokens)
            if is_text
            else prompt_token_ids(seed, number, prompt_tokens, settings.vocab_size),
            "max_tokens": output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": options,
        }
        if not settings.has_standard_fields_only:
            body["ignore_eos"] = True
            options["continuous_usage_stats"] = True
        return json.dumps(body).encode()

    async def _watch_client(self) -> None:
        """Record how late this process is, and tell how far it is."""
        loop = asyncio.get_running_loop()
        while True:
            begin, cpu, lag_s = loop.time(), time.process_time(), 0.0
            while loop.time() - begin < CLIENT_INTERVAL_S:
                napped = loop.time()
                await asyncio.sleep(TIMER_S)
                lag_s = max(lag_s, loop.time() - napped - TIMER_S)
            self._writer.write(
                "client",
                {
                    "time_s": seconds(self._now()),
                    "lag_s": seconds(lag_s),
                    "cpu_share": round((time.process_time() - cpu) / (loop.time() - begin), 4),
                    "in_flight": len(self._requests),
                },
            )
            self._task.on_progress(
                Progress(None, self._now(), self._task.horizon_s, self._sent, self._finished, self._failed)
            )

    async def _watch_server(self) -> None:
        """After a failure, ask whether the server is still there; end the segment if it is not for too long."""
        while True:
            await self._suspicion.wait()
            self._suspicion.clear()
            since = self._now()
            while not await self._client.is_alive():
                gone_s = self._now() - since
                if gone_s >= self._settings.give_up_s:
                    self._end(f"the endpoint did not answer any more from about {since:.1f} s on", "failed")
                    return
                await asyncio.sleep(PROBE_INTERVAL_S)
            # A server that answers errors is asked in moderation.
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _scrape(self) -> None:
        """Record pages of metrics at regular times."""
        interval_s = self._settings.metrics_interval_s
        due_s = self._now()
        while interval_s > 0:
            if not await self._scrape_once():
                return
            # The next time that is still to come, however long the page took.
            due_s += interval_s * max(1, math.ceil((self._now() - due_s) / interval_s))
            await asyncio.sleep(due_s - self._now())

    async def _scrape_once(self) -> bool:
        """Record a page of metrics, or why there is none; return False where there will never be one."""
        asked_s = self._now()
        page = await self._client.metrics(METRICS_TIMEOUT_S)
        record = {"time_s": seconds(asked_s), "duration_s": seconds(self._now() - asked_s)}
        if isinstance(page, str):
            self.last_page = page
            # The help texts are half of a page; tables are made from the rest when there is time for that.
            text = "".join(line for line in page.splitlines(keepends=True) if not line.startswith("# HELP"))
            self._writer.write("metrics", {**record, "text": text})
            return True
        self._writer.write("metrics", {**record, "error": f"{page.status}: {page.error}"})
        return page.http_status != NOT_FOUND or self.last_page is not None
