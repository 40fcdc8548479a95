"""docs/dataset.md says what a data set holds: every column and every family, with the shares that are drawn."""

import re
from pathlib import Path

from predictors.dataset import ROWS_PER_SHARD, label_shard
from predictors.features import FEATURE_SCHEMA
from predictors.labelling import SPREADS, LabelSettings
from predictors.scenarios import FAMILY_SHARES
from twin.profile import load_profile

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "dataset.md").read_text(encoding="utf-8")


def _table_rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]


def test_every_column_is_described() -> None:
    """And no column that there is not; units of features are those of the schema."""
    settings = LabelSettings(num_seeds=1, horizon_s=20.0, warmup_s=4.0, families=("few",))
    columns = set(label_shard(load_profile("llama-3.1-8b-h100-64gb"), settings, 0).columns) - set(SPREADS)
    units: dict[str, str] = {}
    for names, unit, _ in _table_rows("Columns"):
        found = re.findall(r"`([a-z0-9_]+)`", names)
        given = unit.split(", ")
        units |= dict(zip(found, given * len(found) if len(given) == 1 else given, strict=False))
    ranks = {name for name in columns if name.startswith("num_rank_")}
    assert set(units) | ranks == columns
    assert {"num_rank_8", "num_rank_512"} <= set(units)
    described = dict(zip(FEATURE_SCHEMA.names, FEATURE_SCHEMA.units, strict=True))
    for name in set(FEATURE_SCHEMA.names) - ranks:
        assert units[name] == described[name], name


def test_every_family_is_described_with_its_share() -> None:
    """The shares are those that scenarios are drawn with."""
    section = TEXT.split("\n## Scenarios\n", 1)[1].split("\n## ", 1)[0]
    shares = dict(re.findall(r"^\| `(\w+)` \| ([0-9.]+) \|", section, flags=re.MULTILINE))
    assert {name: float(share) for name, share in shares.items()} == dict(FAMILY_SHARES)


def test_the_size_of_a_shard_is_the_one_that_is_written() -> None:
    """Rows are rounded up to it."""
    assert f"whole shards, of {ROWS_PER_SHARD} with" in TEXT
