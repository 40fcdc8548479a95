"""What another twin said about measured runs, and its errors beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twin.validation.cells import RUN_ID, read_cells
from twin.validation.predictions import RunPrediction
from twin.validation.quantities import LEAST_GOODPUT_RATIO
from twin.validation.scores import (
    ErrorSummary,
    Score,
    StarvationScore,
    as_floats,
    score_quantity,
    score_starvation,
    score_verdicts,
    summarise_errors,
)

REQUIRED_COLUMNS = (RUN_ID, "twin_total_throughput", "twin_itl")


@dataclass(frozen=True)
class PublishedOutput:
    """What another twin said about a run: prompt + output tokens per second, and mean time between tokens."""

    tok_per_s: float
    itl_mean_ms: float


class TwinScore(Score):
    """What is compared between two twins: errors over runs whose client kept up, starvation over all."""

    throughput: ErrorSummary
    itl_mean: ErrorSummary
    starvation: StarvationScore


class PublishedComparison(Score):
    """Our errors beside those of the published twin, on the same runs.

    Attributes
    ----------
    rows
        ``headline`` (informative, and the client kept up), or ``all`` that served.
    """

    rows: str
    num_rows: int
    ours: TwinScore
    published: TwinScore


def read_published(path: str | Path) -> dict[str, PublishedOutput]:
    """Read what another twin said, by run.

    Raises
    ------
    InputError
        When the file is unreadable, lacks one of `REQUIRED_COLUMNS`, or has a cell that is no number.
    """
    return {
        row.run_id: PublishedOutput(
            tok_per_s=row.number("twin_total_throughput", least=0.0), itl_mean_ms=row.number("twin_itl", least=0.0)
        )
        for row in read_cells(path, required=REQUIRED_COLUMNS)
    }


def compare_published(
    predictions: Sequence[RunPrediction], published: Mapping[str, PublishedOutput]
) -> tuple[PublishedComparison, ...]:
    """Return the errors of the published twin beside ours, on the headline runs and on all runs that it covers.

    Where it covers none, there is nothing to compare.

    Its verdict about starvation is that of its throughput over the measured offered load.
    """
    covered = [
        prediction for prediction in predictions if prediction.run.run_id in published and prediction.run.status == "ok"
    ]
    headline = [prediction for prediction in covered if prediction.run.is_headline]
    return tuple(
        PublishedComparison(
            rows=rows,
            num_rows=len(members),
            ours=_our_score(members),
            published=_published_score(members, [published[prediction.run.run_id] for prediction in members]),
        )
        for rows, members in (("headline", headline), ("all", covered))
        if members
    )


def _our_score(predictions: Sequence[RunPrediction]) -> TwinScore:
    served = [prediction for prediction in predictions if not prediction.run.has_client_collapsed]
    return TwinScore(
        throughput=score_quantity(served, "tok_per_s"),
        itl_mean=score_quantity(served, "itl_mean_ms"),
        starvation=score_verdicts(predictions),
    )


def _published_score(predictions: Sequence[RunPrediction], outputs: Sequence[PublishedOutput]) -> TwinScore:
    runs = [prediction.run for prediction in predictions]
    goodputs = [
        output.tok_per_s / run.offered_tps if run.offered_tps else None
        for run, output in zip(runs, outputs, strict=True)
    ]
    verdicts = [None if goodput is None else goodput < LEAST_GOODPUT_RATIO for goodput in goodputs]
    served = [(run, output) for run, output in zip(runs, outputs, strict=True) if not run.has_client_collapsed]
    return TwinScore(
        throughput=summarise_errors(
            as_floats([run.measured.tok_per_s for run, _ in served]),
            as_floats([output.tok_per_s for _, output in served]),
        ),
        itl_mean=summarise_errors(
            as_floats([run.measured.itl_mean_ms for run, _ in served]),
            as_floats([output.itl_mean_ms for _, output in served]),
        ),
        starvation=score_starvation(
            list(zip([run.is_starved for run in runs], verdicts, strict=True)),
            list(zip([run.measured.goodput_ratio for run in runs], goodputs, strict=True)),
        ),
    )
