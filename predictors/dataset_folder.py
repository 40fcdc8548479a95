"""The folder of a data set: shards in Parquet, and a manifest that says what they are and proves that all are there."""

from __future__ import annotations

import hashlib
import io
import json
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twin.atomic_write import write_atomically
from twin.bounded_read import read_bounded
from twin.errors import InputError
from twin.tables import READ_ERRORS

MANIFEST_NAME = "manifest.json"
SCENARIOS_PER_SHARD = 8
MOST_SHARDS = 1_000_000
_SHARD_FILE = re.compile(r"shard-(\d{5,})\.parquet")


class ShardEntry(BaseModel):
    """One finished shard.

    Attributes
    ----------
    rows
        All of its rows.
    unstartable_rows
        Those among them that have no labels, because the replica does not start.
    sha256
        Of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int = Field(ge=0, lt=MOST_SHARDS)
    rows: int = Field(ge=0)
    unstartable_rows: int = Field(ge=0)
    sha256: str


class Settings(BaseModel):
    """What the rows depend on; a folder is continued only with the settings it was begun with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sampler_version: int
    feature_schema_version: int
    profile: dict[str, str]
    seed: int
    seeds: int
    horizon_s: float
    warmup_s: float
    families: tuple[str, ...]
    scenarios_per_shard: int
    # Of data sets from before it could be chosen.
    loads: tuple[int, int] = (14, 8)


class Manifest(BaseModel):
    """What a data set is made of.

    Attributes
    ----------
    num_shards
        Shards of the complete data set, numbered from 0.
    versions
        Software that sampled it, by name: one entry for each different set of versions.
    shards
        The finished ones, in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 2
    settings: Settings
    num_shards: int = Field(ge=1, le=MOST_SHARDS)
    versions: tuple[dict[str, str], ...]
    shards: tuple[ShardEntry, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the finished shards."""
        return sum(entry.rows for entry in self.shards)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the manifest of a folder; None where there is none.

        Raises
        ------
        InputError
            When it is unreadable or no manifest of this version.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_bounded(path))
        except (OSError, ValidationError) as error:
            reason = _first_problem(error) if isinstance(error, ValidationError) else error.strerror
            raise InputError(
                f"{path} must be the manifest of a data set. {reason}.",
                file=str(path),
                hint="give another folder, or delete this one to begin anew",
            ) from error

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2) + "\n"
        write_atomically(folder / MANIFEST_NAME, text)

    def with_shard(self, entry: ShardEntry) -> Manifest:
        """Return the manifest with one more finished shard, or with this entry in place of its old one."""
        entries = {old.shard: old for old in self.shards} | {entry.shard: entry}
        return self.model_copy(update={"shards": tuple(entries[shard] for shard in sorted(entries))})


@dataclass(frozen=True)
class DatasetCheck:
    """Whether a data set is complete.

    Attributes
    ----------
    num_shards, num_rows, num_scenarios
        What was found, in shards that are as the manifest says.
    problems
        What is wrong, a sentence each; none: the data set is complete.
    """

    num_shards: int
    num_rows: int
    num_scenarios: int
    problems: tuple[str, ...]


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.parquet"


def write_shard(folder: Path, shard: int, table: pd.DataFrame, *, num_unstartable: int) -> ShardEntry:
    """Write a shard whole or not at all, and return its entry."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    content = buffer.getvalue()
    write_atomically(folder / shard_name(shard), content)
    return ShardEntry(
        shard=shard,
        rows=len(table),
        unstartable_rows=num_unstartable,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def open_folder(folder: Path, settings: Settings, *, num_shards: int, versions: dict[str, str]) -> Manifest:
    """Create a data set's folder, or continue what is in it; return its manifest, without shards that have gone.

    Raises
    ------
    InputError
        When the folder holds a data set of other settings, or cannot be written.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        manifest = Manifest(settings=settings, num_shards=num_shards, versions=(versions,))
    _require_same(manifest.settings, settings, folder)
    present = tuple(entry for entry in manifest.shards if (folder / shard_name(entry.shard)).is_file())
    manifest = manifest.model_copy(
        update={
            "num_shards": max(num_shards, manifest.num_shards),
            "versions": manifest.versions if versions in manifest.versions else (*manifest.versions, versions),
            "shards": present,
        }
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`output` must be a folder that can be written. {folder}: {error.strerror}.",
            field="output",
            value=str(folder),
        ) from error
    manifest.write(folder)
    return manifest


def read_shards(folder: Path, manifest: Manifest) -> pd.DataFrame:
    """Return the rows of the finished shards, in their order.

    Raises
    ------
    InputError
        When a shard is missing or cannot be read.
    """
    tables = []
    for entry in manifest.shards:
        path = folder / shard_name(entry.shard)
        try:
            tables.append(pd.read_parquet(path))
        except READ_ERRORS as error:
            raise InputError(
                f"every shard in the manifest must be a readable Parquet file. {path}: {error}.",
                file=str(path),
                hint=f"`placer dataset --check {folder}` says what is wrong; delete the shard and sample again",
            ) from error
    return pd.concat(tables, ignore_index=True)


def check_folder(folder: Path) -> DatasetCheck:
    """Compare a data set's files with its manifest: every shard, its hash, its rows and its scenarios.

    Raises
    ------
    InputError
        When the folder has no readable manifest.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        raise InputError(
            f"a data set must be a folder with {MANIFEST_NAME}. Got {folder}.",
            file=str(folder),
            hint="make one with `placer dataset`",
        )
    problems: list[str] = []
    entries = {entry.shard: entry for entry in manifest.shards}
    num_rows, scenarios = 0, []
    for shard in range(manifest.num_shards):
        if shard not in entries:
            problems.append(f"shard {shard} has not been sampled yet")
            continue
        found, problem = _check_shard(folder, entries[shard], manifest.settings.scenarios_per_shard)
        num_rows += found[0]
        scenarios += found[1]
        if problem is not None:
            problems.append(problem)
    problems += _repeated(scenarios) + _unlisted(folder, entries)
    return DatasetCheck(len(entries), num_rows, len(set(scenarios)), tuple(problems))


def _check_shard(folder: Path, entry: ShardEntry, scenarios_per_shard: int) -> tuple[tuple[int, list[int]], str | None]:
    """Return the rows and scenarios of a shard, and what is wrong with it, if anything."""
    name = shard_name(entry.shard)
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        return (0, []), f"{name} cannot be read: {error.strerror}"
    changed = None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        changed = f"{name} is not the file that was written: its SHA-256 differs"
    try:
        column = pd.read_parquet(io.BytesIO(content), columns=["scenario"])["scenario"]
        scenarios = [operator.index(number) for number in dict.fromkeys(column.tolist())]
    except READ_ERRORS + (TypeError,):  # noqa: RUF005 - a type checker follows no star here
        return (0, []), f"{name} is damaged: it is no Parquet file with whole numbers in the column `scenario`"
    found = (len(column), scenarios)
    first = entry.shard * scenarios_per_shard
    if len(scenarios) != scenarios_per_shard or sorted(scenarios) != list(range(first, first + len(scenarios))):
        return found, f"{name} must hold the scenarios {first} to {first + scenarios_per_shard - 1}, and does not"
    if len(column) != entry.rows:
        return found, f"{name} must have {entry.rows} rows, and has {len(column)}"
    return found, changed


def _repeated(scenarios: Iterable[int]) -> list[str]:
    counts = pd.Series(list(scenarios), dtype="int64").value_counts()
    return [f"scenario {number} is in {count} shards" for number, count in counts[counts > 1].sort_index().items()]


def _unlisted(folder: Path, entries: dict[int, ShardEntry]) -> list[str]:
    """Return the shards that lie in the folder without an entry: copies, or what an interruption left."""
    names = sorted(path.name for path in folder.iterdir() if _SHARD_FILE.fullmatch(path.name))
    known = {shard_name(shard) for shard in entries}
    return [f"{name} is not in the manifest" for name in names if name not in known]


def _require_same(old: Settings, new: Settings, folder: Path) -> None:
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    differing = [name for name in after if before[name] != after[name]]
    if differing:
        name, *others = differing
        further = f"; {', '.join(others)} differ too" if others else ""
        raise InputError(
            "a data set can only be continued with the settings it was begun with. "
            f"{folder} has `{name}` {before[name]}, and {after[name]} was asked for{further}.",
            file=str(folder / MANIFEST_NAME),
            field=name,
            value=after[name],
            hint="give another output folder, or the settings in the manifest",
        )


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'It'}: {first['msg']}"
