"""A fixed piece of work, by which one can see how fast the processor is at the moment.

CPU time is no steady measure of work: on a shared machine the other threads of a core, and what they leave of its
caches, make the same step take up to twice as long. What slows vLLM's steps slows this piece too, if it is of the same
kind: much different Python code and many small array operations, so that instructions and data come from the same
levels of the caches. Runs in vLLM's interpreter: only the standard library and NumPy are used here.
"""

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import difflib
import fractions
import heapq
import itertools
import json
import pprint
import re
import shlex
import statistics
import string
import textwrap
import time
from typing import TypedDict

import numpy as np

# What the piece takes on a quiet core of the processor that is taken for the steady one, in CPU seconds.
REFERENCE_S = 0.00115
# Steps lose a little more than the piece: by this power of what the piece loses. Of six measurements of vLLM 0.32 with
# 5,600 steps, three of each of two workloads, means of 40 steps scatter least with 1.2 (2.4 %), and the measurements of
# a workload agree best with 1.1 (0.5 %). A piece a quarter as long, of few objects and one product of matrices, left
# 6 % and 5 %.
SENSITIVITY = 1.15

_SHELL_LINE = "serve 'a model' --max-loras 4"
_LITERAL = "{'names': [1, 2, (3, 4)]}"
_SENTENCE = "requests of one adapter wait until a slot of the batch is free again, whoever came first"


class SpeedProbe:
    """Does the piece of work: Python code of many kinds, as an engine's, and small array operations."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._rows = generator.standard_normal((8, 128)).astype(np.float32)
        self._weights = generator.standard_normal((128, 256)).astype(np.float32)
        self._nested = _nested_entries(20, 5)
        self._small = _nested_entries(4, 3)

    def __call__(self) -> float:
        """Return the CPU time that the piece of work took, in seconds."""
        begin = time.process_time()
        self._handle_nested_data()
        self._handle_small_data()
        for _ in range(2):
            self._handle_arrays()
        return time.process_time() - begin

    def _handle_nested_data(self) -> None:
        entries = copy.deepcopy(self._nested)
        text = json.dumps(entries)
        json.loads(text)
        heap: list[tuple[int, str]] = []
        for entry in entries:
            heapq.heappush(heap, (entry["number"], entry["name"]))
        re.findall("[0-9]+", text)
        sorted(entries, key=lambda entry: -entry["number"])
        "".join(reversed(text)).split(",")
        heapq.nsmallest(3, heap)

    def _handle_small_data(self) -> None:
        # The printer and the encoder of indented JSON are written in Python.
        pprint.pformat(self._small)
        json.dumps(self._small, indent=1)
        fractions.Fraction(3, 7) + fractions.Fraction(5, 9)
        statistics.mean([1, 2, 3.5])
        string.Template("rank $rank of $name").substitute(rank=8, name="a")
        textwrap.fill(_SENTENCE, 30)
        difflib.SequenceMatcher(None, "abcdxyz", "bcdexyz").ratio()
        collections.Counter(_SENTENCE).most_common(2)
        collections.OrderedDict(first=1, second=2).move_to_end("first")
        records = [_Record(number, [number]) for number in range(10)]
        for record in records:
            dataclasses.replace(record, number=record.number + 1)
        for record in records[:3]:
            dataclasses.asdict(record)
        copy.deepcopy(records[:5])
        shlex.split(_SHELL_LINE)
        list(itertools.accumulate(range(20)))
        ast.literal_eval(_LITERAL)

    def _handle_arrays(self) -> None:
        scores = self._rows @ self._weights
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        best = np.argsort(weights, axis=1)[:, :4]
        np.take_along_axis(weights, best, axis=1)
        np.concatenate([weights[:4], weights[4:]])[:, ::2].copy()
        np.cumsum(np.array([1, 2, 3]))
        np.where(weights > 0.01, weights, 0).sum().item()
        np.einsum("ij,ij->i", weights, weights).tolist()
        np.unique(best)
        np.searchsorted(np.arange(50), best)
        np.repeat(np.arange(4), 3)
        np.zeros((4, 16), np.int32).fill(2)


@dataclasses.dataclass
class _Record:
    number: int
    places: list[int]


class _Nested(TypedDict):
    number: int
    name: str
    values: list[float]


def _nested_entries(count: int, length: int) -> list[_Nested]:
    return [{"number": number, "name": str(number), "values": [1.5] * length} for number in range(count)]
