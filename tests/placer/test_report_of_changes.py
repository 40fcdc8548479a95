"""`placer report` of what-if studies and migrations: what the pages hold, and what they do in a browser."""

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from placer.cli.application import app
from placer.replan_document import MigrationStep, Replan, StepCheck
from placer.report.timeline import MARK_SHARE, MARK_STEP, is_short, marks_of, timeline_of
from placer.whatif.document import WhatIf
from tests.placer.pages import BROWSER, data_of, needs_browser, opened

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "chat-llama-32.yaml"
QUICK = ("--solver", "bfd", "--max-evaluations", "500", "--horizon", "120", "--warmup", "20")
SAFE = StepCheck(basis="unchanged", is_safe=True)
UNSAFE = StepCheck(basis="simulated", is_safe=False, newly_starved=("x",))


def _run(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    assert result.exit_code in {0, 5}, result.output


def _step(number: int, kind: Any, replica: str, seconds: float = 0.0, group: int = 0, **more: Any) -> MigrationStep:
    common: Any = {"gpu_type": "g", "gpus_in_use": 1, "check": SAFE, **more}
    return MigrationStep(number=number, kind=kind, replica=replica, seconds=seconds, group=group, **common)


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def migration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Replan]:
    """Return the page of a migration of the example under other rates, with figures beside it, and the migration."""
    folder = tmp_path_factory.mktemp("migration")
    text = EXAMPLE.read_text(encoding="utf-8")
    (folder / "now.yaml").write_text(text.replace("rate_rps: 0.2", "rate_rps: 2"))
    # One adapter is gone, one is new, and the busiest ask for three times as much.
    later = re.sub(r"(name: a(?:3|9|17),.*?rate_rps: )0\.2", r"\g<1>6", text).replace("name: a0,", "name: b0,")
    (folder / "later.yaml").write_text(later.replace("rate_rps: 0.2", "rate_rps: 2"))
    _run("solve", folder / "now.yaml", *QUICK, "-o", folder / "now.json")
    _run(
        "replan", folder / "now.json", folder / "later.yaml", *QUICK, "--handover-horizon", "0", "-o", folder / "r.json"
    )
    _run("report", folder / "r.json", "-o", folder / "r.html", "--figures", folder / "figures")
    return folder / "r.html", Replan.model_validate_json((folder / "r.json").read_bytes())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WhatIf]:
    """Return the page of a study of the example with a scenario that cannot be planned, and the study."""
    folder = tmp_path_factory.mktemp("study")
    _run("whatif", EXAMPLE, "--scale-rates", "1,10,400", *QUICK, "-o", folder / "rates")
    _run("report", folder / "rates", "-o", folder / "s.html", "--figures", folder / "figures")
    return folder / "s.html", WhatIf.model_validate_json((folder / "rates" / "whatif.json").read_bytes())


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def _assert_printable(tab: Any) -> None:
    """Nothing is wider than a sheet of A4 with its margins, and filters are left out."""
    tab.set_viewport_size({"width": 720, "height": 1000})
    tab.emulate_media(media="print")
    assert tab.locator("form.filters:visible").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 720


def test_the_page_of_a_migration_has_its_steps(migration: tuple[Path, Replan]) -> None:
    """Kinds, seconds, GPUs and checks are those of the document, and the last step ends when all is over."""
    page, made = migration
    data = data_of(page)
    assert [step.kind for step in made.migration.steps] == [step["kind"] for step in data["steps"]]
    assert [step.check.is_safe for step in made.migration.steps] == [step["safe"] for step in data["steps"]]
    assert [step.gpus_in_use for step in made.migration.steps] == [step["gpus"] for step in data["steps"]]
    assert data["total_s"] == pytest.approx(made.migration.total_s, abs=0.01)
    assert max(step["start"] + step["seconds"] for step in data["steps"]) == pytest.approx(data["total_s"], abs=0.01)
    assert {gpu.name: list(gpu.adapters) for gpu in made.plan.gpus} == {
        gpu["name"]: gpu["adapters"] for gpu in data["gpus"]
    }
    assert re.findall(r"https?://[^\s\"'<]*", page.read_text(encoding="utf-8")) == ["http://www.w3.org/2000/svg"]


def test_the_figures_of_a_migration_are_kept(migration: tuple[Path, Replan]) -> None:
    """Both figures, as numbers and as pictures; a row for each step."""
    page, made = migration
    files = {path.name for path in (page.parent / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in ("timeline", "steps") for suffix in ("csv", "png", "svg")}
    rows = _rows(page.parent / "figures" / "timeline.csv")
    assert [str(step.number) for step in made.migration.steps] == [row["step"] for row in rows]


def test_the_page_of_a_study_has_its_cells(study: tuple[Path, WhatIf]) -> None:
    """GPUs, bounds and reasons are those of the document; all cells are on the line of the plan."""
    page, made = study
    data = data_of(page)
    for name, field in (("label", "label"), ("num_gpus", "gpus"), ("lower_bound", "bound"), ("reason", "reason")):
        assert [getattr(cell, name) for cell in made.cells] == [cell[field] for cell in data["cells"]]
    assert [cell["x"] for cell in data["cells"]] == [1.0, 10.0, 400.0]
    assert [not cell["planned"] for cell in data["cells"]] == [False, False, True]


def test_the_figures_of_a_study_are_kept(study: tuple[Path, WhatIf]) -> None:
    """GPUs and cost, as numbers and as pictures; a row for each scenario."""
    page, made = study
    files = {path.name for path in (page.parent / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in ("gpus", "cost") for suffix in ("csv", "png", "svg")}
    rows = _rows(page.parent / "figures" / "gpus.csv")
    assert [cell.label for cell in made.cells] == [row["label"] for row in rows]


@pytest.mark.parametrize(
    ("options", "title", "cards", "figures"),
    [
        (("--study", "risk", "--draws", "4", "--probability", "0.9"), "Risk", 2, {"risk"}),
        (("--study", "sensitivity", "--candidates", "2"), "Savings", 3, {"savings"}),
    ],
)
def test_the_pages_of_other_studies(
    tmp_path: Path, options: tuple[str, ...], title: str, cards: int, figures: set[str]
) -> None:
    """Their own table is on the page with the document's rows, and their own figure beside it."""
    _run("whatif", EXAMPLE, *options, *QUICK, "--no-improve", "-o", tmp_path / "study")
    _run("report", tmp_path / "study", "-o", tmp_path / "s.html", "--figures", tmp_path / "figures")
    made = WhatIf.model_validate_json((tmp_path / "study" / "whatif.json").read_bytes())
    data = data_of(tmp_path / "s.html")
    assert len(data["cards"]) >= cards
    (table,) = [table for table in data["tables"] if table["title"] == title]
    rows = made.savings if title == "Savings" else made.cells
    assert [row[0] for row in table["rows"]] == [row.label for row in rows]
    assert len(data["savings"]) == len(made.savings)
    risks = [cell.risk for cell in made.cells if cell.risk is not None]
    assert [cell["risk"][0] for cell in data["cells"] if cell["risk"]] == [risk.probability for risk in risks]
    assert figures <= {path.stem for path in (tmp_path / "figures").glob("*.csv")}


def test_the_page_of_a_break_even(tmp_path: Path) -> None:
    """Fleets of either type, and the price at which they cost the same, as in the document."""
    text = EXAMPLE.read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +- \{name: h100-64gb.*$", text, re.MULTILINE)
    other = line.replace("h100-64gb,", "cheap,", 1).replace("cost_per_hour: 3.0", "cost_per_hour: 2.0")
    (tmp_path / "two.yaml").write_text(text.replace(line, f"{line}\n{other}"))
    _run("whatif", tmp_path / "two.yaml", "--study", "break-even", *QUICK, "--no-improve", "-o", tmp_path / "study")
    _run("report", tmp_path / "study", "-o", tmp_path / "s.html", "--figures", tmp_path / "figures")
    made = WhatIf.model_validate_json((tmp_path / "study" / "whatif.json").read_bytes())
    data = data_of(tmp_path / "s.html")
    assert [entry["at"] for entry in data["break_even"]] == [record.break_even_price for record in made.break_even]
    assert [entry["type"] for entry in data["break_even"]] == ["h100-64gb"]
    assert (tmp_path / "figures" / "break-even.csv").exists()


def test_a_broken_document_is_refused(tmp_path: Path) -> None:
    """What has the keys of a document and does not follow its schema: the field is named."""
    for text, words in (
        ('{"study": "sweep", "cells": 3}', "of a what-if study"),
        ('{"migration": {}, "before": {}, "plan": {}}', "of a migration"),
    ):
        (tmp_path / "x.json").write_text(text)
        result = CliRunner().invoke(app, ["report", str(tmp_path / "x.json"), "-o", str(tmp_path / "x.html")])
        assert result.exit_code == 2
        assert words in result.stderr
        assert not (tmp_path / "x.html").exists()


def test_a_successor_is_a_gpu_of_its_own() -> None:
    """What is done to NAME after its stop happens on the GPU of NAME+next, which was in use from its start on."""
    timeline = timeline_of(
        [
            _step(1, "load", "a", 5.0, 0, adapters=("x",)),
            _step(2, "start", "a+next", 20.0, 1),
            _step(3, "shift", "a+next", 0.0, 2, shifts=({"source": "a", "target": "a+next", "adapters": ("x",)},)),
            _step(4, "stop", "a", 0.0, 3),
            _step(5, "load", "a", 1.0, 4, adapters=("y",)),
        ]
    )
    assert [timed.lanes for timed in timeline.steps] == [(0,), (1,), (1,), (0,), (1,)]
    assert timeline.steps[2].sources == (0,)
    assert [timed.start_s for timed in timeline.steps] == [0.0, 5.0, 25.0, 25.0, 25.0]
    assert [(lane.name, lane.first_s, lane.last_s) for lane in timeline.lanes] == [
        ("a", 0.0, 25.0),
        ("a+next, then a", 5.0, 26.0),
    ]


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 100.0)), max_size=12))
def test_steps_of_a_group_begin_together(drawn: list[tuple[bool, float]]) -> None:
    """And no group begins before every step of the one before it is over."""
    steps, group = [], 0
    for number, (is_next, seconds) in enumerate(drawn, start=1):
        group += is_next
        steps.append(_step(number, "restart", f"r{number}", seconds, group))
    timed = timeline_of(steps).steps
    for one in timed:
        for other in timed:
            if one.step.group == other.step.group:
                assert one.start_s == other.start_s
            elif one.step.group < other.step.group:
                assert one.start_s + one.step.seconds <= other.start_s + 1e-9


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["load", "unload", "stop", "restart"]),
            st.integers(0, 3),
            st.floats(0.0, 50.0),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_marks_of_short_steps_never_cover_each_other(drawn: list[tuple[str, int, float, bool]]) -> None:
    """However many steps there are: each short one has a mark, and no two marks of a GPU are at the same place."""
    steps = [
        _step(number, kind, f"r{lane}", seconds, number, check=SAFE if is_safe else UNSAFE)
        for number, (kind, lane, seconds, is_safe) in enumerate(drawn, start=1)
        if kind != "stop" or seconds == 0.0
    ]
    timeline = timeline_of(steps)
    marks = marks_of(timeline)
    short = [timed.step for timed in timeline.steps if is_short(timed, timeline)]
    assert sorted(number for mark in marks for number in mark.numbers) == [step.number for step in short]
    unsafe = [step.number for step in short if not step.check.is_safe]
    assert sorted(number for mark in marks for number in mark.unsafe) == unsafe
    for one, other in itertools.combinations(marks, 2):
        if one.lane == other.lane:
            is_apart = abs(one.at_s - other.at_s) > MARK_SHARE * timeline.total_s
            assert is_apart or abs(one.offset - other.offset) > 0.99 * MARK_STEP


def test_steps_that_are_not_safe_are_told_everywhere(migration: tuple[Path, Replan], tmp_path: Path) -> None:
    """The page, its figures and its table say which step is not safe, who starves, and why."""
    _, made = migration
    number = next(step.number for step in made.migration.steps if step.kind == "shift")
    bad = StepCheck(basis="simulated", is_safe=False, newly_starved=("b0",), reasons=("gpu-0: too much load",))
    steps = tuple(
        step.model_copy(update={"check": bad}) if step.number == number else step for step in made.migration.steps
    )
    way = made.migration.model_copy(update={"steps": steps, "is_safe": False})
    unsafe = made.model_copy(update={"verdict": "unsafe", "migration": way})
    (tmp_path / "r.json").write_text(unsafe.model_dump_json())
    _run("report", tmp_path / "r.json", "-o", tmp_path / "r.html", "--figures", tmp_path / "figures")
    data = data_of(tmp_path / "r.html")
    (told,) = [step for step in data["steps"] if not step["safe"]]
    assert told["number"] == number
    assert told["check"] == "not safe: gpu-0: too much load; b0 starves"
    assert ["verdict of the twin", "unsafe", "some step is not safe"] in data["cards"]
    (row,) = [row for row in _rows(tmp_path / "figures" / "timeline.csv") if row["is_safe"] == "no"]
    assert row["step"] == str(number)
    assert f"{number}!" in (tmp_path / "figures" / "timeline.svg").read_text(encoding="utf-8")


@needs_browser
def test_a_migration_is_filtered(chromium: Any, migration: tuple[Path, Replan]) -> None:
    """Both pictures and the table have the steps of the chosen kind only, and a click says more of one."""
    page, made = migration
    tab, complaints = opened(chromium, page)
    num_steps = len(made.migration.steps)
    assert tab.inner_text("#status") == f"{num_steps} of {num_steps} steps shown"
    kinds = [step.kind for step in made.migration.steps]
    assert tab.locator("[data-figure=order] [data-step]").count() >= num_steps
    tab.select_option("#kind", "load")
    assert tab.inner_text("#status") == f"{kinds.count('load')} of {num_steps} steps shown"
    assert tab.locator("[data-figure=order] [data-step]").count() == kinds.count("load")
    first = made.migration.steps[kinds.index("load")]
    tab.locator("[data-figure=order] [data-step]").first.click()
    assert tab.inner_text(".detail h3") == f"Step {first.number}"
    tab.select_option("#kind", "")
    tab.fill("#text", "b0")
    assert tab.inner_text("#status").startswith(f"{sum('b0' in step.adapters for step in made.migration.steps)} of")
    with tab.expect_download() as kept:
        tab.locator("[data-figure=timeline] button", has_text="PNG").click()
    assert Path(kept.value.path()).read_bytes().startswith(b"\x89PNG")
    _assert_printable(tab)
    assert complaints == []
    tab.close()


@needs_browser
def test_a_study_is_filtered(chromium: Any, study: tuple[Path, WhatIf]) -> None:
    """A verdict and a value of a change leave what they say, in the curve and in the table."""
    tab, complaints = opened(chromium, study[0])
    assert tab.inner_text("#status") == "3 of 3 scenarios shown"
    assert tab.locator("[data-figure=gpus] svg.chart path.hollow").count() == 1
    tab.select_option("#verdict", "accepted")
    assert tab.inner_text("#status") == "2 of 3 scenarios shown"
    assert tab.locator("[data-figure=gpus] svg.chart path.hollow").count() == 0
    tab.select_option("#change-0", "=10.0" if "=10.0" in tab.inner_html("#change-0") else "=10")
    assert tab.inner_text("#status") == "1 of 3 scenarios shown"
    assert tab.locator("tbody").first.locator("tr").count() == 1
    _assert_printable(tab)
    assert complaints == []
    tab.close()
