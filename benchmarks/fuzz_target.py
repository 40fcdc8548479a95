"""A reader of files from outside, and how its files are made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.fuzz_mutations import Mutate

SEEDS = Path(__file__).resolve().parent / "fuzz_seeds"
ROOT = SEEDS.parent.parent
PROFILE = "llama-3.1-8b-h100-64gb"
NUM_ROWS = 12


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes
    ----------
    name
        What it reads.
    file
        Name of the file that is damaged; others of the folder stay whole.
    prepare
        Writes a valid file, and whatever else the reader needs, into an empty folder.
    mutate
        Damages the content of the file.
    read
        Reads from the folder.
    """

    name: str
    file: str
    prepare: Callable[[Path], object]
    mutate: Mutate
    read: Callable[[Path], object]


def copied(name: str, to: str | None = None) -> Callable[[Path], object]:
    """Return what copies a file of `SEEDS`."""
    return lambda folder: shutil.copy(SEEDS / name, folder / (to or name))


def text_file(name: str, content: str) -> Callable[[Path], object]:
    """Return what writes a file of text."""
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def frame_file(name: str, columns: Mapping[str, Any]) -> Callable[[Path], object]:
    """Return what writes a Parquet file."""
    return lambda folder: pd.DataFrame(dict(columns)).to_parquet(folder / name, index=False)


def both(*prepare: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what does all of these."""
    return lambda folder: [one(folder) for one in prepare]
