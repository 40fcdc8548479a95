"""The tables of a calibration's report as text cells: the command line and the HTML report show the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from placer.calibration_document import CalibrationReport, RegimeScore
from placer.validation_tables import NO_VALUE, TextTable
from placer.wording import counted
from twin.calibration.origins import ORIGINS


def calibration_tables(report: CalibrationReport) -> tuple[TextTable, ...]:
    """Return all tables of a report; empty ones are left out."""
    tables = (
        _scores_table("Errors on what was fitted", report.regimes),
        _scores_table("Errors on a regime by a fit to all others", report.left_out),
        _parameters_table(report),
        _assumptions_table(report),
    )
    return tuple(table for table in tables if table.rows)


def summary_lines(report: CalibrationReport) -> tuple[str, ...]:
    """Return what was calibrated, and how well, in sentences."""
    subject = (
        f"{report.name}: {report.model} on {report.gpu} ({report.gpu_memory_gib:g} GiB), vLLM {report.vllm_version}"
    )
    lines = [subject]
    if report.kind == "prior":
        lines.append("PRIOR: no step was measured on this model and GPU; intervals are the bands of the prior")
    overall = [score for score in report.regimes if score.regime == "all"]
    lines += [
        f"step times: {counted(score.num_rows, 'measurement')}, error {score.mape_percent:.2f} % "
        f"(bias {score.bias_percent:+.2f} %, largest {score.max_percent:.1f} %)"
        for score in overall
    ]
    if report.left_out:
        worst = max(report.left_out, key=lambda score: score.mape_percent)
        lines.append(
            f"in a regime that was not measured: {worst.mape_percent:.1f} % in the worst of "
            f"{len(report.left_out)} left out in turn ({worst.regime})"
        )
    lines += _source_lines(report)
    if report.serving_runs is not None:
        runs, alone = report.serving_runs, report.serving_runs["steps_alone"]
        lines.append(
            f"serving runs: {len(runs['run_ids'])}, time per output token off by {runs['tpot_mape_percent']:.2f} % "
            f"(bias {runs['tpot_bias_percent']:+.2f} %); without them in the fit by {alone['tpot_mape_percent']:.1f} % "
            f"(bias {alone['tpot_bias_percent']:+.1f} %)"
        )
    if report.prior is not None:
        lines.append(f"drawn towards {report.prior}")
    lines.append(report.method)
    return tuple(lines)


def origin_lines(report: CalibrationReport) -> tuple[str, ...]:
    """Return what the origins that occur mean."""
    occurring = {entry.origin for entry in report.parameters}
    return tuple(f"{origin}: {meaning}" for origin, meaning in ORIGINS.items() if origin in occurring)


def _source_lines(report: CalibrationReport) -> list[str]:
    """Return what came of metrics and results of benchmarks."""
    lines = []
    for source in () if report.serving is None else report.serving.sources:
        dropped = "; ".join(f"{reason} ({count})" for reason, count in source.dropped.items())
        left_out = f" (left out: {dropped})" if dropped else ""
        lines.append(f"{source.kind}: {source.used} of {source.read} used{left_out}")
    return lines


def _assumptions_table(report: CalibrationReport) -> TextTable:
    assumed = () if report.serving is None else report.serving.assumed
    return TextTable("Assumed", (("what metrics and results do not tell", False),), tuple((text,) for text in assumed))


def _scores_table(title: str, scores: Sequence[RegimeScore]) -> TextTable:
    columns = (("regime", False), ("rows", True), ("MAPE %", True), ("bias %", True), ("largest %", True))
    rows = tuple(
        (
            score.regime,
            str(score.num_rows),
            f"{score.mape_percent:.2f}",
            f"{score.bias_percent:+.2f}",
            f"{score.max_percent:.1f}",
        )
        for score in scores
    )
    return TextTable(title, columns, rows)


def _parameters_table(report: CalibrationReport) -> TextTable:
    has_prior = any(entry.prior is not None for entry in report.parameters)
    columns = [("coefficient", False), ("ms", True), ("95 % interval" if report.kind != "prior" else "band", True)]
    columns += [("prior", True)] if has_prior else []
    columns += [("origin", False), ("what it is", False)]
    rows = []
    for entry in report.parameters:
        is_known = entry.low is not None and entry.high is not None
        interval = f"{entry.low:.3g} .. {entry.high:.3g}" if is_known else NO_VALUE
        prior = [NO_VALUE if entry.prior is None else f"{entry.prior:.3g}"] if has_prior else []
        rows.append((entry.name, f"{entry.value:.4g}", interval, *prior, entry.origin, entry.meaning))
    return TextTable("Coefficients of the step time", tuple(columns), tuple(rows))
