"""How large the page of a large fleet is, and how soon a browser has it open.

``python -m benchmarks.report_size [--gpus 1000] [--adapters 10000] [--runs 5] [--browser PATH] [--output FILE]``

The plan is made up: one GPU of a small plan, again and again, with the adapters in order and time series of its own.
The browser is Chromium, driven by Playwright; without one, only the size is said. "Open" is from the request for the
file until the page has said that it is ready and the browser has painted it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from placer.files import ProblemFromFile, load_problem, read_document
from placer.plan_document import Plan
from placer.planning import plan
from placer.report.page import render
from placer.report.plan_page import plan_page
from placer.report.series import NUM_PARTS, GpuSeries

# Whose model, GPU type and settings are taken.
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "azure-llama-400.yaml"
RANKS = (8, 16, 32, 64)
WAIT_MS = 60_000


def large_plan(num_gpus: int, num_adapters: int, folder: Path) -> tuple[Plan, ProblemFromFile, dict[str, GpuSeries]]:
    """Return a plan of `num_gpus` GPUs, its problem, and time series for each GPU; the same in every run.

    Parameters
    ----------
    num_gpus, num_adapters
        The adapters are divided evenly among the GPUs, at least one on each.
    folder
        Gets the problem's file.
    """
    rng = np.random.default_rng(0)
    rates = rng.lognormal(-2.0, 1.0, num_adapters)
    adapters = [
        {
            "name": f"customer-{index:05d}",
            "rank": RANKS[index * len(RANKS) // num_adapters],
            "rate_rps": float(f"{rate:.4g}"),
            "prompt_tokens": {"mean": 220},
            "output_tokens": {"mean": 200},
        }
        for index, rate in enumerate(rates)
    ]
    data, _ = read_document(EXAMPLE)
    data |= {"adapters": adapters}
    file = folder / "problem.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    problem = load_problem(file)
    return _spread(problem, num_gpus, rng)


def _spread(
    problem: ProblemFromFile, num_gpus: int, rng: np.random.Generator
) -> tuple[Plan, ProblemFromFile, dict[str, GpuSeries]]:
    """Return a plan whose GPUs are those of a small plan, again and again, with the adapters in order."""
    base = plan(_first(problem, 8), solver="bfd", verify=False, improve=False)
    template = base.gpus[0]
    ends = np.linspace(0, len(problem.adapters), num_gpus + 1).astype(int)
    gpus, series = [], {}
    for index, (first, end) in enumerate(pairwise(ends)):
        own = problem.adapters[first:end]
        name = f"h100-64gb-{index}"
        rank = max(adapter.rank for adapter in own)
        engine = template.engine.with_slots(min(len(own), 16), max_lora_rank=rank, num_adapters=len(own))
        update: dict[str, Any] = {
            "name": name,
            "adapters": tuple(adapter.name for adapter in own),
            "engine": engine,
            "offered_tps": sum(adapter.offered_tps for adapter in own),
            "headroom": round(float(rng.uniform(-0.05, 0.4)), 2),
        }
        gpus.append(template.model_copy(update=update))
        series[name] = _walk(rng, len(own))
    return base.model_copy(update={"gpus": tuple(gpus), "num_gpus": num_gpus}), problem, series


def _first(problem: ProblemFromFile, count: int) -> ProblemFromFile:
    """Return the problem of the first adapters only."""
    return replace(problem, workload=problem.workload.subset(list(range(min(count, len(problem.adapters))))))


def _walk(rng: np.random.Generator, num_adapters: int) -> GpuSeries:
    """Return time series as long and as varied as those of a busy GPU."""

    def column(most: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, most, NUM_PARTS).tolist())

    return GpuSeries(
        horizon_s=1800.0,
        warmup_s=300.0,
        seed=0,
        scenario=None,
        running=column(256),
        waiting=column(900),
        kv_permille=column(1000),
        loads=column(300),
        tokens=column(200_000),
        served_permille=tuple(rng.integers(900, 1001, num_adapters).tolist()),
        adapter_loads=tuple(rng.integers(0, 400, num_adapters).tolist()),
        verdict="accepted",
        reasons=(),
    )


def opening_times_s(page: Path, browser: str, num_runs: int) -> list[float]:
    """Return the seconds until the page is ready and painted, of each run with a fresh tab.

    Raises
    ------
    RuntimeError
        When the page reports an error.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - the size can be asked for without it

    times_s, errors = [], []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for _ in range(num_runs):
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            tab.on("console", lambda message: errors.append(message.text))
            tab.on("pageerror", lambda error: errors.append(str(error)))
            started_s = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=WAIT_MS)
            tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            times_s.append(time.perf_counter() - started_s)
            tab.close()
        chromium.close()
    if errors:
        raise RuntimeError(f"the page reports: {errors[0]}")
    return times_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--output", type=Path, help="keep the page")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made, problem, series = large_plan(options.gpus, options.adapters, Path(folder))
        started_s = time.perf_counter()
        html = render(plan_page(made, problem, name="plan.json", series=series))
        render_s = time.perf_counter() - started_s
        page = options.output or Path(folder) / "report.html"
        page.write_text(html, encoding="utf-8")
        times_s = opening_times_s(page.resolve(), options.browser, options.runs) if options.browser else []
    found = {
        "gpus": options.gpus,
        "adapters": options.adapters,
        "page_mb": round(len(html.encode()) / 1e6, 2),
        "render_s": round(render_s, 2),
        "open_median_s": round(statistics.median(times_s), 2) if times_s else None,
        "open_most_s": round(max(times_s), 2) if times_s else None,
    }
    if options.json:
        json.dump(found, sys.stdout, sort_keys=True)
        print()
        return
    print(f"{options.gpus:,} GPUs, {options.adapters:,} adapters: page {found['page_mb']} MB, made in {render_s:.2f} s")
    if times_s:
        print(f"open after {found['open_median_s']} s (median of {len(times_s)}), {found['open_most_s']} s at most")


if __name__ == "__main__":
    main()
