"""The arena's statement about the published greedy: counted from runs, and said as it is."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.arena import PUBLISHED, SHORT_INSTANCES, duel, main, statement, tables
from benchmarks.document_tables import print_or_update
from placer.comparison_document import Comparison, InstanceRecord, RunRecord
from placer.comparison_run import RunSettings
from placer.comparison_summary import summarise
from placer.instances.catalog import select

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "arena.md"
SIZES = {"papers-mixed-r8-n64": 64, "papers-high-r8-n96": 96, "papers-mixed-r8-n96": 96, "sizes-zipf-n100": 100}
# GPUs of the greedy as published, as intended, and of a better solver; None: no placement.
WINNING: Mapping[str, tuple[int | None, ...]] = {
    "papers-mixed-r8-n64": (2, 2, 2),
    "papers-high-r8-n96": (6, 5, 4),
    "papers-mixed-r8-n96": (None, 4, 3),
    "sizes-zipf-n100": (None, None, 2),
}


def comparison_of(gpus: Mapping[str, tuple[int | None, ...]]) -> Comparison:
    """Return a comparison in which the solvers need so many GPUs."""
    solvers = (*PUBLISHED, "ours")
    instances = tuple(
        InstanceRecord(
            name=name,
            family=name.partition("-")[0],
            what="",
            num_adapters=SIZES[name],
            fingerprint="",
            bound=None,
            planted_gpus=None,
            cheapest_gpu_per_hour=1.0,
        )
        for name in gpus
    )
    runs = tuple(
        RunRecord(
            instance=name,
            solver=solver,
            seed=0,
            status="no placement" if count is None else "placed",
            num_gpus=count,
        )
        for name, counts in gpus.items()
        for solver, count in zip(solvers, counts, strict=True)
    )
    summaries = summarise(solvers, instances, runs, reference="greedy", is_cost=False)
    return Comparison(configuration={}, reference="greedy", instances=instances, solvers=summaries, runs=runs)


def test_a_duel_is_against_the_better_padding() -> None:
    """No placement is more than any number of GPUs; a saving needs two placements."""
    comparison = comparison_of(WINNING)
    everywhere = duel(comparison, "ours", only_promised=False)
    assert (everywhere.fewer, everywhere.equal, everywhere.more) == (3, 1, 0)
    assert everywhere.savings == (0.0, 1 - 4 / 5, 1 - 3 / 4)
    promised = duel(comparison, "ours", only_promised=True)
    assert (promised.fewer, promised.total) == (2, 2)
    assert promised.mean_saving == pytest.approx((0.2 + 0.25) / 2)


def test_the_statement_holds_where_it_does() -> None:
    """With the counts and the mean saving."""
    text = "\n".join(statement(comparison_of(WINNING), "ours"))
    assert "2 runs with mixed or high rates and at least 96 adapters: fewer GPUs on 2, as many on 0, more on 0" in text
    assert "4 runs in all: fewer GPUs on 3, as many on 1, more on 0" in text
    assert "mean saving 15.0 % (22.5 % on those with high rates)" in text
    assert text.endswith("**holds**.")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"papers-high-r8-n96": (6, 5, 5)}, id="as many where fewer are promised"),
        pytest.param({"papers-mixed-r8-n64": (2, 2, 3)}, id="more somewhere"),
        pytest.param({"papers-mixed-r8-n64": (2, 2, None)}, id="no placement"),
    ],
)
def test_the_statement_does_not_hold_otherwise(change: dict[str, tuple[int | None, ...]]) -> None:
    """One instance is enough; those with more GPUs are named."""
    text = "\n".join(statement(comparison_of({**WINNING, **change}), "ours"))
    assert text.endswith("**does not hold**.")
    if "papers-mixed-r8-n64" in change:
        assert "more on 1 (papers-mixed-r8-n64)" in text


def test_nothing_compared_is_nothing_shown() -> None:
    """A solver that did not run has proven nothing."""
    assert "\n".join(statement(comparison_of(WINNING), "theirs")).endswith("**does not hold**.")


@pytest.mark.parametrize("part", ["arena", "large arena"])
def test_the_document_has_a_place_for_every_table(tmp_path: Path, part: str) -> None:
    """One command puts all of them there, one more those of large instances."""
    copy = tmp_path / "arena.md"
    copy.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    print_or_update(tables(comparison_of(WINNING), "ours", "command", part=part), copy)
    assert "| ours | 3 | 1 | 0 | 15.0 % | 2 of 2 | 22.5 % |" in copy.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], ["--short"]])
def test_every_arena_looks_for_a_way_without_the_gpus_that_repair_opened(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short one shows in seconds what the whole one does."""
    seen: list[RunSettings] = []

    def compared(*_: object, settings: RunSettings, **__: object) -> Comparison:
        seen.append(settings)
        return comparison_of(WINNING)

    monkeypatch.setattr("benchmarks.arena.compare", compared)
    monkeypatch.setattr("sys.argv", ["arena", *arguments])
    main()
    assert [settings.is_regaining for settings in seen] == [True]


def test_the_short_arena_knows_its_instances() -> None:
    """None of them needs data, and all are small."""
    entries = select(patterns=SHORT_INSTANCES)
    assert len(entries) == len(SHORT_INSTANCES)
    assert all(entry.num_adapters <= 240 and not entry.unavailable() for entry in entries)
