"""How requests spread over adapters, and which ranks the adapters have."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.tables import read_csv_table
from twin.trace import Trace, purpose_generator

POPULARITY_FORMS = "uniform, zipf:EXPONENT, dirichlet:CONCENTRATION or file:PATH"


class Popularity(Protocol):
    """A model of how often each of a number of adapters is asked for."""

    def probabilities(self, num_adapters: int, *, seed: int = 0) -> NDArray[np.float64]:
        """Return each adapter's share of the requests: float64 [num_adapters], descending, summing to 1."""
        ...


@dataclass(frozen=True)
class UniformPopularity:
    """Every adapter is asked for equally often."""

    def probabilities(self, num_adapters: int, *, seed: int = 0) -> NDArray[np.float64]:  # noqa: ARG002 - no chance in it
        """Return equal shares."""
        _check_count(num_adapters)
        return np.full(num_adapters, 1.0 / num_adapters)


@dataclass(frozen=True)
class ZipfPopularity:
    """The k-th most popular adapter is asked for in proportion to ``k ** -exponent``; `exponent` is finite and >= 0."""

    exponent: float

    def __post_init__(self) -> None:
        """Check the exponent."""
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise InputError(
                f"a Zipf exponent must be finite and not negative. Got {self.exponent}.",
                field="popularity",
                value=self.exponent,
            )

    def probabilities(self, num_adapters: int, *, seed: int = 0) -> NDArray[np.float64]:  # noqa: ARG002 - no chance in it
        """Return the shares of the first `num_adapters` places."""
        _check_count(num_adapters)
        return _normalised(np.arange(1, num_adapters + 1, dtype=np.float64) ** -self.exponent)


@dataclass(frozen=True)
class DirichletPopularity:
    """Shares drawn from a symmetric Dirichlet law (the papers use 0.5); `concentration` is finite and > 0.

    The smaller the concentration, the more the requests gather on few adapters.
    """

    concentration: float

    def __post_init__(self) -> None:
        """Check the concentration."""
        if not (math.isfinite(self.concentration) and self.concentration > 0):
            raise InputError(
                f"a Dirichlet concentration must be finite and above 0. Got {self.concentration}.",
                field="popularity",
                value=self.concentration,
            )

    def probabilities(self, num_adapters: int, *, seed: int = 0) -> NDArray[np.float64]:
        """Draw the shares under `seed`, largest first."""
        _check_count(num_adapters)
        concentrations = np.full(num_adapters, self.concentration)
        return _normalised(np.sort(purpose_generator("popularity", seed).dirichlet(concentrations))[::-1])


@dataclass(frozen=True)
class CountedPopularity:
    """Shares in proportion to requests that were counted, the most asked for first.

    Attributes
    ----------
    requests
        Requests per adapter, descending; finite, not negative, with a sum above 0.
    source
        Where they were counted, for messages.
    """

    requests: tuple[float, ...]
    source: str

    def probabilities(self, num_adapters: int, *, seed: int = 0) -> NDArray[np.float64]:  # noqa: ARG002 - no chance in it
        """Return the shares of the `num_adapters` most popular among themselves."""
        _check_count(num_adapters)
        if num_adapters > len(self.requests):
            raise InputError(
                f"{self.source} must count the requests of at least as many adapters as are asked for. "
                f"It counts {len(self.requests)}, and {num_adapters} are asked for.",
                file=self.source,
                field="num_adapters",
                value=num_adapters,
                hint=f"ask for at most {len(self.requests)} adapters, or use another popularity such as zipf:0.9",
            )
        return _normalised(np.array(self.requests[:num_adapters], dtype=np.float64))


def read_popularity(path: str | Path, *, column: str = "requests") -> CountedPopularity:
    """Read requests per adapter from a CSV file with one row per adapter and their number in `column`.

    Raises
    ------
    InputError
        When the file is unreadable, has no such column, a value that is no count, or no requests at all.
    """
    table = read_csv_table(Path(path))
    table.require([column])
    requests = np.sort(table.numbers(column))[::-1]
    if requests[0] <= 0:
        raise InputError(
            f"`{column}` must count at least one request. All rows of {path} are 0.",
            file=str(path),
            field=column,
            value=0,
        )
    return CountedPopularity(tuple(float(count) for count in requests), str(path))


def parse_popularity(text: str, *, base_directory: Path | None = None) -> Popularity:
    """Return the model that `text` names: ``uniform``, ``zipf:0.9``, ``dirichlet:0.5``, ``file:PATH``, or the path.

    Parameters
    ----------
    text
        As typed on the command line or in a problem file.
    base_directory
        Folder that relative paths start from; the current one by default.

    Raises
    ------
    InputError
        On another form, a parameter that is no number or out of range, or an unusable file.
    """
    kind, separator, parameter = text.partition(":")
    folder = base_directory or Path()
    if kind == "file" and parameter:
        return read_popularity(folder / parameter)
    if text == "uniform":
        return UniformPopularity()
    if kind in {"zipf", "dirichlet"} and separator:
        try:
            number = float(parameter)
        except ValueError as error:
            raise InputError(
                f"the parameter of `{kind}` must be a number, such as {kind}:0.5. Got {parameter!r}.",
                field="popularity",
                value=text,
            ) from error
        return ZipfPopularity(number) if kind == "zipf" else DirichletPopularity(number)
    if _is_file(folder / text):
        return read_popularity(folder / text)
    nearest = difflib.get_close_matches(kind, ("uniform", "zipf", "dirichlet", "file"), n=1, cutoff=0.5)
    examples = {"uniform": "uniform", "zipf": "zipf:0.9", "dirichlet": "dirichlet:0.5", "file": "file:requests.csv"}
    raise InputError(
        f"a popularity must be {POPULARITY_FORMS}. Got {text!r}.",
        field="popularity",
        value=text,
        hint=f"did you mean {examples[nearest[0]]!r}?" if nearest else None,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        # Such as of a name that is longer than the system's, or has a byte that is none of a name.
        return False


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which adapter each request of a trace asks for.

    Attributes
    ----------
    adapter
        int32 [N], index into `names`.
    names
        Of the adapters, the most popular first.
    """

    adapter: NDArray[np.int32]
    names: tuple[str, ...]


def assign_by_popularity(trace: Trace, *, num_adapters: int, popularity: Popularity, seed: int = 0) -> Assignment:
    """Draw an adapter for each request independently, by the shares of `popularity`; adapter 0 is the most popular.

    The shares and the draws both follow from `seed`. An adapter may be left without requests.
    """
    shares = popularity.probabilities(num_adapters, seed=seed)
    edges = np.cumsum(shares)
    # The last share that is not zero takes what rounding leaves below 1.
    edges[np.flatnonzero(shares)[-1] :] = 1.0
    draws = purpose_generator("assign", seed).random(len(trace))
    width = len(str(num_adapters - 1))
    names = tuple(f"adapter-{index:0{width}d}" for index in range(num_adapters))
    return Assignment(np.searchsorted(edges, draws, side="right").astype(np.int32), names)


def assign_as_labelled(trace: Trace) -> Assignment:
    """Return the assignment that the trace's own labels give, the most requested adapter first (ties by name).

    Raises
    ------
    InputError
        When the trace has no labels.
    """
    if trace.adapter is None:
        raise InputError(
            f"an assignment by the trace's own adapters needs a column with their names. "
            f"{trace.name} was read without one.",
            file=trace.name,
            field="adapter",
            hint="map the column that names the adapter, or give a popularity such as zipf:0.9",
        )
    names, positions, requests = np.unique(trace.adapter.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-requests, kind="stable")
    place = np.empty(len(names), dtype=np.int32)
    place[order] = np.arange(len(names), dtype=np.int32)
    return Assignment(place[positions], tuple(str(name) for name in names[order]))


def assign_ranks(
    num_adapters: int, ranks: Sequence[int], *, weights: Sequence[float] | None = None, seed: int = 0
) -> tuple[int, ...]:
    """Return a rank per adapter: `ranks` dealt in turn, or by `weights`, then shuffled under `seed`.

    Parameters
    ----------
    num_adapters
        How many ranks to return, >= 1.
    ranks
        At least one of vLLM's; repetitions count.
    weights
        Share of the adapters per entry of `ranks`, in any unit; the numbers of adapters follow by largest remainders.
    seed
        Of the shuffle, which makes ranks independent of popularity.

    Raises
    ------
    InputError
        On a rank that vLLM does not support, or weights that do not fit the ranks.
    """
    _check_count(num_adapters)
    unsupported = [rank for rank in ranks if rank not in SUPPORTED_RANKS]
    if unsupported or not ranks:
        raise InputError(
            f"`ranks` must be one or more of {', '.join(map(str, SUPPORTED_RANKS))}. Got {list(ranks)}.",
            field="ranks",
            value=unsupported[0] if unsupported else None,
        )
    if weights is None:
        dealt = np.array([ranks[index % len(ranks)] for index in range(num_adapters)])
    else:
        dealt = np.repeat(np.array(ranks), _apportion(num_adapters, ranks, weights))
    purpose_generator("ranks", seed).shuffle(dealt)
    return tuple(int(rank) for rank in dealt)


def _apportion(total: int, ranks: Sequence[int], weights: Sequence[float]) -> NDArray[np.int64]:
    """Return integers that sum to `total` in proportion to `weights`, by largest remainders (ties: the first)."""
    values = np.array(weights, dtype=np.float64)
    if len(values) != len(ranks) or not np.all(np.isfinite(values)) or np.any(values < 0) or values.sum() <= 0:
        raise InputError(
            f"rank weights must be finite, not negative, not all 0, and one per rank ({len(ranks)}). "
            f"Got {list(weights)}.",
            field="weights",
            value=list(weights),
        )
    exact = _normalised(values) * total
    counts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: total - int(counts.sum())]] += 1
    return counts


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = values / values.sum()
    return shares


def _check_count(num_adapters: int) -> None:
    if num_adapters < 1:
        raise InputError(
            f"the number of adapters must be at least 1. Got {num_adapters}.", field="num_adapters", value=num_adapters
        )
