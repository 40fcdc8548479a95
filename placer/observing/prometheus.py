"""Ask a Prometheus server for the raw samples of a window, and watch pages of metrics oneself where there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from placer.observing.http_source import HttpAccess, get_page
from placer.observing.samples import COUNTERS, GAUGES, REQUESTS, TrafficSamples
from twin.calibration.metrics_files import is_prometheus_answer, read_page, read_prometheus, read_text_pages
from twin.errors import InputError, TwinError

# A clock that is further off is worth a word.
_SKEW_S = 30.0


def ask_prometheus(
    url: str,
    samples: TrafficSamples,
    *,
    window_s: float,
    end_s: float | None = None,
    selector: str = "",
    access: HttpAccess,
    now_s: float | None = None,
) -> tuple[str, ...]:
    """Take the samples of a window: raw ones, as rates and sums of it hide restarts and what was not scraped.

    Parameters
    ----------
    url
        Of the server, with any path before ``/api/v1``.
    window_s, end_s
        Seconds, and unix seconds of the end; ``None``: now, by the server's clock.
    selector
        Matchers in PromQL, such as ``job="vllm",namespace="prod"``.
    now_s
        Our clock, to see that the server's is another; ``None``: not looked at.

    Returns
    -------
    What the user should be told.

    Raises
    ------
    InputError
        When it refuses the question, answers something else, or has no such samples.
    TwinError
        When it does not answer.
    """
    names = sorted({name.partition(":")[2] for name in COUNTERS | GAUGES if name.startswith("vllm:")})
    pattern = "|".join((f"vllm[:_]({'|'.join(names)})", "process_start_time_seconds"))
    if samples.request_counter != REQUESTS:
        pattern += f"|{samples.request_counter}"
    matchers = ",".join(part for part in (f'__name__=~"{pattern}"', selector.strip().strip("{}")) if part)
    query = f"{{{matchers}}}[{max(round(window_s * 1000), 1)}ms]"
    parameters = {"query": query, "timeout": f"{access.timeout_s:g}s"}
    if end_s is not None:
        parameters["time"] = f"{end_s:.3f}"
    page = get_page(f"{url.rstrip('/')}/api/v1/query", access, parameters=parameters)
    try:
        answer = json.loads(page.content)
    except (ValueError, RecursionError):
        answer = None
    if not is_prometheus_answer(answer):
        raise InputError(
            f"the address must be that of a Prometheus server. {url} answers something else.",
            field="source",
            value=url,
            hint="give the address without /api/v1; that of a vLLM server ends in /metrics",
        )
    read_prometheus(answer, samples, file=url)
    if not samples.traffic_servers():
        raise InputError(
            f"Prometheus must have samples of vLLM's metrics. {url} has none in {window_s:g} s"
            + (f" with {selector}." if selector else "."),
            field="window",
            value=window_s,
            hint="look whether it scrapes the servers (its page /targets), or give another --window or --selector",
        )
    if page.server_time_s is not None and now_s is not None and abs(page.server_time_s - now_s) > _SKEW_S:
        off_s = page.server_time_s - now_s
        return (
            f"the clock of {url} is {abs(off_s):,.0f} s {'ahead of' if off_s > 0 else 'behind'} this one; its counts",
        )
    return ()


def read_metrics_files(paths: Sequence[Path], samples: TrafficSamples) -> None:
    """Take the samples of saved pages and saved answers of Prometheus (InputError, TwinError)."""
    for path in paths:
        try:
            answer = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"metrics must be a readable file. {path}: {error.strerror}.", file=str(path)) from error
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and is_prometheus_answer(answer):
            read_prometheus(answer, samples, file=str(path))
        else:
            read_text_pages(path, samples, is_read=samples.is_read)


def watch_pages(
    urls: Sequence[str],
    samples: TrafficSamples,
    *,
    window_s: float,
    every_s: float,
    access: HttpAccess,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Scrape pages of metrics for a while.

    Parameters
    ----------
    urls
        Of the pages, such as ``http://server:8000/metrics``.
    window_s, every_s
        Seconds to watch, and between two scrapes.
    clock, wait
        Unix seconds now, and a pause of seconds.

    Returns
    -------
    What the user should be told.

    Raises
    ------
    InputError, TwinError
        When an address does not answer the first time, or answers no page of metrics.
    """
    begin_s = clock()
    num_failed, number = 0, 0
    while True:
        for url in urls:
            at_s = clock()
            try:
                text = get_page(url, access).content.decode("utf-8", "replace")
            except TwinError:
                if number == 0:
                    raise
                num_failed += 1
                continue
            read_page(text.splitlines(), samples, url, time_s=at_s, file=url, is_read=samples.is_read)
        number += 1
        remaining_s = begin_s + number * every_s - clock()
        if clock() + max(remaining_s, 0.0) > begin_s + window_s + 0.5 * every_s:
            break
        wait(max(remaining_s, 0.0))
    return (f"{num_failed} scrapes of {number * len(urls)} were not answered",) if num_failed else ()
