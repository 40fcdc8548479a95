"""`placer report`: the page's numbers, what it is made of, and what it does in a browser."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.report_size import large_plan
from placer.cli.application import app
from placer.events import ignore
from placer.files import load_problem, save_plan
from placer.plan_document import Plan
from placer.planning import plan
from placer.report.figure_files import csv_text, safe_name
from placer.report.page import json_for_script, render
from placer.report.plan_page import plan_page
from placer.report.series import NUM_PARTS, in_parts, simulate_series
from tests.placer.pages import BROWSER, data_of, needs_browser, opened
from tests.placer.small_fleets import fair_surrogate, small_data, write_problem

EVIL = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """Return the file of a small plan that was simulated, and the plan; an adapter has a name that is markup."""
    folder = tmp_path_factory.mktemp("plan")
    data = small_data(num_adapters=6, total_rps=12.0)
    data["adapters"][2]["name"] = EVIL
    made = plan(
        load_problem(write_problem(folder, data)),
        surrogate=fair_surrogate(),
        solver="bfd",
        horizon_s=120.0,
        warmup_s=20.0,
    )
    save_plan(made, folder / "plan.json")
    return folder / "plan.json", made


@pytest.fixture(scope="module")
def page_file(planned: tuple[Path, Plan]) -> tuple[Path, Path]:
    """Return the page that the command writes of the plan, and the folder of its figures."""
    path, _ = planned
    page, figures = path.with_suffix(".html"), path.parent / "figures"
    result = CliRunner().invoke(app, ["report", str(path), "-o", str(page), "--figures", str(figures)])
    assert result.exit_code == 0, result.output
    return page, figures


def test_the_page_holds_the_plan_and_asks_for_nothing(planned: tuple[Path, Plan], page_file: tuple[Path, Path]) -> None:
    """Names, loads and verdicts are the plan's, and no address of a network is in the page."""
    _, made = planned
    page, _ = page_file
    data = data_of(page)
    assert [gpu.name for gpu in made.gpus] == data["gpus"]["name"]
    assert [name for gpu in made.gpus for name in gpu.adapters] == data["adapters"]["name"]
    firsts = data["adapters"]["first"]
    for index, gpu in enumerate(made.gpus):
        own = data["adapters"]["tps"][firsts[index] : firsts[index + 1]]
        assert sum(own) == pytest.approx(gpu.offered_tps, rel=1e-3)
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'" in html.unescape(text)
    assert re.findall(r"https?://[^\s\"'<]*", text) == ["http://www.w3.org/2000/svg"]
    assert EVIL not in text


def test_memory_is_all_of_the_gpu(page_file: tuple[Path, Path]) -> None:
    """Weights, slots, KV cache and the rest are what the GPU has."""
    gpus = data_of(page_file[0])["gpus"]
    for parts in zip(gpus["weights"], gpus["slots"], gpus["kv"], gpus["rest"], strict=True):
        assert sum(parts) == pytest.approx(63.43, abs=0.03)


def test_the_series_repeat_the_simulation_of_the_plan(planned: tuple[Path, Plan]) -> None:
    """The same seed and window: the verdict is the same, and the tokens of the parts are those that were completed."""
    path, made = planned
    series = simulate_series(made, load_problem(path.parent / "problem.yaml"), workers=1, observer=ignore)
    assert [gpu.name for gpu in made.gpus] == list(series)
    for gpu in made.gpus:
        own, twin = series[gpu.name], gpu.verification
        assert twin is not None
        assert twin.verdict == own.verdict
        assert (twin.seed, twin.horizon_s) == (own.seed, own.horizon_s)
        assert {NUM_PARTS} == {len(own.running), len(own.waiting), len(own.kv_permille), len(own.tokens)}
        first = int(NUM_PARTS * twin.warmup_s / twin.horizon_s)
        rate_tps = sum(own.tokens[first:]) / (twin.horizon_s - twin.warmup_s)
        assert rate_tps == pytest.approx(twin.throughput_tps, rel=0.02)
        assert sum(own.loads) == sum(own.adapter_loads)
        assert max(own.kv_permille) <= round(1000 * twin.kv_usage_max)


@given(
    st.lists(st.tuples(st.integers(0, NUM_PARTS - 1), st.integers(0, 9)), max_size=40, unique_by=lambda pair: pair[0])
)
def test_the_parts_of_a_counter_add_up_to_it(samples: list[tuple[int, int]]) -> None:
    """Whatever parts have a sample, nothing is lost and nothing is negative."""
    samples = sorted(samples)
    part = np.array([index for index, _ in samples], dtype=np.int64)
    counts = np.cumsum([growth for _, growth in samples], dtype=np.int64)
    total = int(counts[-1]) + 3 if samples else 5
    parts = in_parts(counts, part, total)
    assert total == parts.sum()
    assert parts.min() >= 0
    assert len(parts) == NUM_PARTS


@given(st.text())
def test_data_in_a_script_is_the_same_and_ends_nothing(text: str) -> None:
    """What is read back is what was given, and no markup is in it."""
    written = json_for_script({"name": text})
    assert {"name": text} == json.loads(written)
    assert re.search(r"[<>&\u2028\u2029]", written) is None


@given(st.text(min_size=1))
def test_names_of_files_stay_in_their_folder(text: str) -> None:
    """No name of a GPU leaves the folder, or is hidden."""
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", safe_name(text))


def test_cells_are_no_formulas() -> None:
    """A spreadsheet must not compute with a name; numbers stay numbers."""
    assert csv_text([["=1+1", -2, None]]) == "'=1+1,-2,\n"


def test_every_figure_is_kept(planned: tuple[Path, Plan], page_file: tuple[Path, Path]) -> None:
    """Three figures of the fleet and one for each GPU, each as numbers and as pictures."""
    _, made = planned
    names = {path.name for path in page_file[1].iterdir()}
    stems = {"load", "memory", "risk"} | {f"series-{index}-{gpu.name}" for index, gpu in enumerate(made.gpus)}
    assert {f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "png", "svg")} == names
    assert len((page_file[1] / "load.csv").read_text().splitlines()) == 1 + len(made.gpus)


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    """The message says which documents there are."""
    file = tmp_path / "other.json"
    file.write_text('{"verdict": 1}')
    result = CliRunner().invoke(app, ["report", str(file), "-o", str(tmp_path / "x.html")])
    assert result.exit_code == 2
    assert "a plan (placer solve PROBLEM -o plan.json) or a comparison" in result.stderr
    assert not (tmp_path / "x.html").exists()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@needs_browser
def test_a_browser_shows_filters_and_details(chromium: Any, page_file: tuple[Path, Path]) -> None:
    """Every GPU opens, filters leave what they say, and names that are markup are text."""
    tab, complaints = opened(chromium, page_file[0])
    data = data_of(page_file[0])
    count = len(data["gpus"]["name"])
    assert tab.locator(".fleet > li:visible").count() == count
    for toggle in tab.locator(".fleet .name").all():
        toggle.press("Enter")
    assert tab.locator(".detail [data-figure]").count() == 4 * count
    assert tab.get_by_text(EVIL, exact=True).count() >= 1
    assert tab.evaluate("window.broken") is None
    tab.fill("#text", EVIL)
    assert tab.inner_text("#status").startswith("1 of")
    assert tab.locator(".fleet > li:visible").count() == 1
    tab.fill("#text", "no such name")
    assert tab.locator(".fleet > li:visible").count() == 0
    with tab.expect_download() as kept:
        tab.locator("[data-figure=fleet] button", has_text="PNG").click()
    assert Path(kept.value.path()).read_bytes().startswith(b"\x89PNG")
    assert complaints == []
    tab.close()


@needs_browser
@pytest.mark.parametrize(("scheme", "low", "high"), [("light", 700, 766), ("dark", 0, 120)])
def test_the_page_is_light_or_dark(
    chromium: Any, page_file: tuple[Path, Path], scheme: str, low: int, high: int
) -> None:
    """Its background follows what the reader prefers; on paper it is white."""
    tab, complaints = opened(chromium, page_file[0], color_scheme=scheme)
    color = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    )
    assert low <= tab.evaluate(color) <= high
    tab.emulate_media(media="print")
    assert tab.evaluate(color) == 765
    assert tab.locator("form.filters:visible").count() == 0
    assert complaints == []
    tab.close()


@needs_browser
def test_all_bars_are_on_paper(chromium: Any, tmp_path: Path) -> None:
    """On a screen, bars are drawn when they are near; printed, all of them are there."""
    made, problem, _ = large_plan(150, 300, tmp_path)
    file = tmp_path / "page.html"
    file.write_text(render(plan_page(made, problem, name="plan.json")), encoding="utf-8")
    tab, complaints = opened(chromium, file)
    assert 0 < tab.locator(".fleet .bar svg").count() < 300
    tab.emulate_media(media="print")
    tab.locator(".fleet .bar svg").nth(299).wait_for(state="attached")
    assert complaints == []
    tab.close()


@needs_browser
def test_a_comparison_is_filtered(chromium: Any, tmp_path: Path) -> None:
    """Its runs are in the table, and a solver that is chosen leaves only its own."""
    folder = tmp_path / "arena"
    arguments = [
        "compare",
        "--instance",
        "papers-high-r8-n64",
        "--solver",
        "greedy",
        "--solver",
        "random",
        "--no-verify",
    ]
    assert CliRunner().invoke(app, [*arguments, "--max-evaluations", "50", "-o", str(folder)]).exit_code == 0
    page = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(folder), "-o", str(page)]).exit_code == 0
    tab, complaints = opened(chromium, page)
    assert tab.inner_text("#status") == "2 of 2 runs shown"
    tab.select_option("#solver", "random")
    assert tab.inner_text("#status") == "1 of 2 runs shown"
    assert tab.locator("[data-figure=distance] svg path.line").count() == 2
    assert complaints == []
    tab.close()
