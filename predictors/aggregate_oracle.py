"""A surrogate made of a function of a set's sums, which says yes or no and how many slots: somebody else's model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA, FeatureSchema, offered_tps
from predictors.surrogate import SurrogateOutput
from twin.engine import SUPPORTED_RANKS
from twin.errors import SurrogateError

# feasible(n, sum_rate, sum_rate_sq, sum_rate_prompt, sum_rate_output, max_rank) -> (bool, slots)
FeasibleFunction = Callable[..., Any]

_SUM_NAMES = ("num_adapters", "sum_rate_rps", "sum_rate_sq", "sum_prompt_tps", "sum_output_tps")
_SUM_COLUMNS = [AGGREGATE_NAMES.index(name) for name in _SUM_NAMES]
_RANK_COLUMNS = [AGGREGATE_NAMES.index(f"num_rank_{rank}") for rank in SUPPORTED_RANKS]
_RANKS = np.array(SUPPORTED_RANKS, dtype=np.int64)
# Columns of the sums that the function is asked about, in its order, in aggregates and in features.
SUM_COLUMNS = np.array(_SUM_COLUMNS)
# Answers that are remembered; the memory is emptied when it is full.
MOST_REMEMBERED = 200_000
# Questions that are asked both ways before a function is taken to accept arrays.
NUM_PROBES = 64


@runtime_checkable
class CertifiesSums(Protocol):
    """A model of sums that can say which inequalities the sets keep that its `feasible` accepts."""

    @property
    def slot_options(self) -> Sequence[int]:
        """All numbers of slots that `feasible` may answer with."""
        ...

    def accepted_sums(
        self, slots: int, max_rank: int, lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what every set with sums in each of B boxes keeps that is accepted with these slots.

        Parameters
        ----------
        slots
            One of `slot_options`.
        max_rank
            Largest rank in the set.
        lower, upper
            Corners of the number of adapters and of the sums, in the order in which `feasible` takes them, float64
            [B, 5].

        Returns
        -------
        Gradients, float64 [B, M, 5], and limits, float64 [B, M]: ``gradients @ sums <= limits``. A proof is as right
        as these are: they must hold for sums that are rounded, too.
        """
        ...


class AggregateOracle:
    """Ask a function about a set's number of adapters, sums of rates and loads, and largest rank.

    The function decides about the slots, too, and about memory: what it accepts is feasible with the slots that it
    names. Solvers reach it with exact sums through `solvers.feasibility`; `predict` asks with the features' float32.

    Parameters
    ----------
    feasible
        ``feasible(n, sum_rate, sum_rate_sq, sum_rate_prompt, sum_rate_output, max_rank) -> (bool, slots)`` with rates
        in requests/s and the sums of rate x tokens in tokens/s. It is asked with numbers, or with arrays where it
        answers those alike.
    rate_factor
        The function is asked as if every rate were this many times as large, > 0.
    certificates
        Who says what the function accepts, if somebody does.
    """

    def __init__(
        self, feasible: FeasibleFunction, *, rate_factor: float = 1.0, certificates: CertifiesSums | None = None
    ) -> None:
        if not (np.isfinite(rate_factor) and rate_factor > 0.0):
            raise SurrogateError(
                f"a factor on the rates must be finite and above 0. Got {rate_factor}.",
                field="rate_factor",
                value=rate_factor,
            )
        self.feasible = feasible
        self.rate_factor = rate_factor
        self.certificates = certificates
        self._remembered: dict[tuple[float, ...], tuple[bool, int]] = {}
        self._takes_arrays: bool | None = None

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return FEATURE_SCHEMA

    def scaled(self, factor: float) -> AggregateOracle:
        """Return an oracle that is asked as if every rate were `factor` times as large as for this one."""
        return AggregateOracle(self.feasible, rate_factor=self.rate_factor * factor, certificates=self.certificates)

    @property
    def slot_options(self) -> tuple[int, ...]:
        """Slots that the function may answer with, as its certificates say; without them one that stands for all."""
        return (1,) if self.certificates is None else tuple(self.certificates.slot_options)

    @property
    def sum_scale(self) -> NDArray[np.float64]:
        """Factors on the number of adapters and on the sums with which the function is asked, float64 [5]."""
        return np.array([1.0, self.rate_factor, self.rate_factor**2, self.rate_factor, self.rate_factor])

    def decide(
        self, rows: NDArray[np.float64], max_ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Ask about N sets.

        Parameters
        ----------
        rows
            Aggregates in the order of `AGGREGATE_NAMES`, float64 [N, K].
        max_ranks
            Rank at which the slots would be reserved, int64 [N].

        Returns
        -------
        Whether each is feasible, bool [N], and its slots, int64 [N] (0 where it is not feasible).

        Raises
        ------
        SurrogateError
            When the function answers anything but (bool, slots), or feasible with less than one slot.
        """
        questions = np.column_stack([rows[:, _SUM_COLUMNS] * self.sum_scale, max_ranks])
        if self._takes_arrays is None and len(rows) > 1:
            self._takes_arrays = self._accepts_arrays(questions[:NUM_PROBES])
        if self._takes_arrays and len(rows):
            answers = self._ask_arrays(questions)
            if answers is not None:
                return answers
            self._takes_arrays = False
        decided = [self._ask(question) for question in questions.tolist()]
        return (
            np.array([feasible for feasible, _ in decided], dtype=np.bool_),
            np.array([slots for _, slots in decided], dtype=np.int64),
        )

    def output(self, rows: NDArray[np.float64], max_ranks: NDArray[np.int64]) -> SurrogateOutput:
        """Return the predictions for N sets: all of the load is served, or none; nothing is known about latencies."""
        feasible, _ = self.decide(rows, max_ranks)
        served = feasible.astype(np.float32)
        offered = rows[:, _SUM_COLUMNS[3]] + rows[:, _SUM_COLUMNS[4]]
        unknown = np.zeros(len(rows), dtype=np.float32)
        return SurrogateOutput(
            throughput_ratio=served,
            starvation_probability=np.float32(1.0) - served,
            throughput_tps=(served * offered).astype(np.float32),
            itl_s=unknown,
            ttft_s=unknown,
        )

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return the predictions for `features`, float32 [N, F]; the slots that they name are not looked at."""
        rows = features[:, : len(AGGREGATE_NAMES)].astype(np.float64)
        rank = features[:, FEATURE_SCHEMA.index("max_lora_rank")].astype(np.int64)
        output = self.output(rows, np.maximum(rank, largest_ranks(rows)))
        assert output.throughput_tps.shape == offered_tps(features).shape
        return output

    def _ask(self, question: list[float]) -> tuple[bool, int]:
        key = tuple(question)
        known = self._remembered.get(key)
        if known is None:
            count, *sums, rank = question
            known = _checked(self.feasible(int(count), *sums, int(rank)))
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = known
        return known

    def _accepts_arrays(self, questions: NDArray[np.float64]) -> bool:
        """Return whether the function answers arrays as it answers the same questions one by one."""
        together = self._ask_arrays(questions)
        if together is None:
            return False
        alone = [self._ask(question) for question in questions.tolist()]
        return [(bool(feasible), int(slots)) for feasible, slots in zip(*together, strict=True)] == alone

    def _ask_arrays(self, questions: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]] | None:
        """Return the answers to all questions at once; None when the function is not made for arrays."""
        columns = questions.T
        try:
            with np.errstate(all="ignore"):
                feasible, slots = self.feasible(
                    columns[0].astype(np.int64), *columns[1:5].copy(), columns[5].astype(np.int64)
                )
        except Exception:  # noqa: BLE001 - whatever a function of somebody else's says to arrays: it wants numbers
            return None
        shape = (len(questions),)
        if np.shape(feasible) != shape or np.shape(slots) != shape:
            return None
        accepted = np.asarray(feasible, dtype=np.bool_)
        counts = np.where(accepted, slots, 0)
        if not np.all(np.isfinite(counts)) or np.any(counts[accepted] < 1):
            return None
        return accepted, counts.astype(np.int64)


def largest_ranks(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the largest adapter rank of each of N sets from their aggregates [N, K], int64 [N]; 0 without adapters."""
    largest: NDArray[np.int64] = np.where(rows[:, _RANK_COLUMNS] > 0.5, _RANKS, 0).max(axis=1, initial=0)
    return largest


def _checked(answer: Any) -> tuple[bool, int]:
    try:
        feasible, slots = answer
        count = int(slots) if feasible else 0
    except (TypeError, ValueError) as error:
        raise _bad_answer(answer) from error
    if feasible and count < 1:
        raise _bad_answer(answer)
    return bool(feasible), count


def _bad_answer(answer: Any) -> SurrogateError:
    return SurrogateError(
        f"`feasible` must return (bool, slots), with at least one slot when it is true. Got {answer!r}.",
        field="surrogate",
        value=answer,
        hint="docs/compare.md has an example",
    )
