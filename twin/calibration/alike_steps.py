"""Reduce rows of steps that are alike to measurements.

Repeated benchmarks of the same kind of step are one measurement, of their median time. The steps of a log are single
ones, and their times have a long tail where others use the machine: what a replica serves depends on their mean, and a
fit of relative errors to single times is below it. So a log becomes means over steps that are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# Contexts of one bin count as equal.
CONTEXT_BIN = 4096
# Steps in a mean of a log, at least; and the means that one kind of step becomes, at most: a log of hours of the same
# decode step says no more about it than some hundred of them, and would outweigh what is rare.
STEPS_PER_MEAN = 20
MEANS_PER_KIND = 8

# What steps of one kind have in common; they differ in their contexts.
_COUNTS = ["tokens", "requests", "adapters", "waiting", "cached_adapters"]
# What steps of different kinds must have in common to be in one mean.
_FAMILY = ["regime", "slots", "max_rank", "prefill", "changed"]


def medians_of_equal(frame: pd.DataFrame, *, is_grouped: bool) -> pd.DataFrame:
    """Return one row per kind of step (and group), with the weighted median time and the weighted mean context.

    Parameters
    ----------
    frame
        Columns as `twin.calibration.step_table.read_steps` makes them.
    is_grouped
        Whether `group` names runs, in which equal steps stay apart.
    """
    keys = [*_COUNTS, *_FAMILY, "context_bin", *(["group"] if is_grouped else [])]
    ordered = frame.assign(context_bin=frame["context_tokens"] // CONTEXT_BIN).sort_values([*keys, "time_ms"])
    grouped = ordered.groupby(keys, sort=False)
    total = grouped["weight"].transform("sum")
    # The first row at which half of the weight is reached holds the median.
    is_reached = grouped["weight"].cumsum() >= 0.5 * total
    context = (ordered["context_tokens"] * ordered["weight"]).groupby([ordered[key] for key in keys]).transform("sum")
    merged = ordered.assign(context_tokens=context / total, weight=total)[is_reached]
    return merged.drop_duplicates(keys).sort_index()


def means_of_alike(frame: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the steps of a log in another order, each with the mean time of its measurement, and the measurements.

    A kind of at least `STEPS_PER_MEAN` steps becomes one to `MEANS_PER_KIND` means, by context. Rarer kinds share a
    mean with those next to them: they differ by a token, a request or an adapter. What is rarer still, such as the only
    prefill of a log, is a mean of what there is.

    Parameters
    ----------
    frame
        Columns as `twin.calibration.step_table.read_steps` makes them; N rows. A mean may go over several groups, else
        a long log's frequent kinds would outweigh the rare ones; it belongs to that of its first row.

    Returns
    -------
    N rows, and the number of each row's measurement, int64 [N], from 0 on.
    """
    kind = [*_FAMILY, *_COUNTS]
    ordered = frame.sort_values([*kind, "context_tokens"], kind="stable").reset_index(drop=True)
    is_rare = ordered.groupby(kind, sort=False)["weight"].transform("sum") < STEPS_PER_MEAN
    # Rare kinds of a family are cut together, a frequent kind by itself.
    names = pd.Series(ordered.groupby(_FAMILY, sort=False).ngroup())
    names = names.where(is_rare, -1 - ordered.groupby(kind, sort=False).ngroup())
    parts = _parts(ordered["weight"], names, most=np.where(is_rare, np.inf, MEANS_PER_KIND))
    measurement = pd.factorize(pd.Series(list(zip(names, parts, strict=True))))[0].astype(np.int64)
    weight = ordered["weight"].to_numpy(dtype=np.float64)
    sums = np.bincount(measurement, weights=weight * ordered["time_ms"].to_numpy(dtype=np.float64))
    means = sums / np.bincount(measurement, weights=weight)
    return ordered.assign(time_ms=means[measurement]), measurement


def _parts(weight: pd.Series[Any], names: pd.Series[Any], *, most: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return int64 [N]: in which part of its name each row is; parts have the same weight, of `STEPS_PER_MEAN` or more.

    Parameters
    ----------
    most
        float64 [N], parts of the row's name at most.
    """
    grouped = weight.groupby(names)
    total = grouped.transform("sum").to_numpy(dtype=np.float64)
    before = grouped.cumsum().to_numpy(dtype=np.float64) - weight.to_numpy(dtype=np.float64)
    count = np.clip(np.floor(total / STEPS_PER_MEAN), 1.0, most)
    parts: NDArray[np.int64] = np.minimum(np.floor(before * count / total), count - 1.0).astype(np.int64)
    return parts
