"""The card of a surrogate as one HTML page with figures (extra `report`); predictors/model_card.py has its Markdown."""

from __future__ import annotations

from typing import Any

from placer.html_page import render_page, require_report_libraries
from placer.validation_tables import TextTable
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA
from predictors.model_card import (
    SUBSETS,
    commands_to_repeat,
    error_cells,
    risk_cells,
    risk_sentences,
    sentences_on_other_rows,
)
from predictors.targets import NEAR_BORDER
from predictors.training import TrainingReport

TEMPLATE = "model_card.html"


def render_card(report: TrainingReport) -> str:
    """Return the card of the surrogate that was chosen as one HTML page that refers to nothing outside of it.

    Raises
    ------
    InputError
        When jinja2 or matplotlib is not installed.
    """
    require_report_libraries()
    from placer import model_card_figures as drawings  # noqa: PLC0415 - comes with an extra
    from placer.drawing import svg_of  # noqa: PLC0415

    facts = report.facts
    figures = {
        "reliability": drawings.reliability_figure(facts["reliability"]),
        "distance": drawings.distance_figure(facts["distance"]),
        "latency": drawings.latency_figure(report.families),
    }
    if facts["thresholds"]["curve"]:
        figures["risk"] = drawings.risk_figure(facts["thresholds"])
    return render_page(
        TEMPLATE,
        {"risk": ""} | {name: svg_of(figure, name) for name, figure in figures.items()},
        profile=report.profile,
        facts=facts,
        others=sentences_on_other_rows(facts),
        near=f"{NEAR_BORDER:.0%}",
        parity=f"{max(report.best.parity.values()):.2%}",
        data=_data_table(facts),
        families=_families_table(report),
        errors=TextTable("Errors", (("", False), *((name, True) for name in SUBSETS.values())), _rows(facts)),
        risk_text=" ".join(risk_sentences(facts["thresholds"])),
        thresholds=_thresholds_table(facts["thresholds"]),
        domain=_domain_table(report.domain),
        ratios=_ratios_table(report.domain),
        commands=commands_to_repeat(report.profile.name, facts),
    )


def _rows(facts: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(error_cells(facts["errors"]))


def _data_table(facts: dict[str, Any]) -> TextTable:
    headings = ("rows", "seed", "simulations per row", "loads per replica", "horizon (s)", "warm-up (s)")
    rows = [
        (
            f"{one['rows']:,}",
            str(one["seed"]),
            str(one["seeds"]),
            ", ".join(map(str, one["loads"])),
            f"{one['horizon_s']:g}",
            f"{one['warmup_s']:g}",
            one["profile"]["name"],
            ", ".join(one["families"]),
        )
        for one in (*facts["datasets"], *facts["kin"])
    ]
    return TextTable(
        "Data",
        (*((heading, True) for heading in headings), ("labelled with", False), ("kinds of sets", False)),
        tuple(rows),
    )


def _families_table(report: TrainingReport) -> TextTable:
    headings = (
        "fits\ntried",
        "score",
        "ratio error\nnear border",
        "ratio error\npacked",
        "Brier\nnear border",
        "Brier\npacked",
        "F1",
        "1 row\n(us)",
        "100 rows\n(us)",
        "10,000 rows\n(ms)",
        "KiB",
    )
    rows = [
        (
            family.name + (" (chosen)" if family.name == report.chosen else ""),
            str(family.num_trials),
            f"{family.score:.4f}",
            f"{family.errors['near_border']['ratio_mae']:.4f}",
            f"{family.errors['packed']['ratio_mae']:.4f}",
            f"{family.errors['near_border']['brier']:.4f}",
            f"{family.errors['packed']['brier']:.4f}",
            f"{family.errors['all']['starvation_f1']:.3f}",
            f"{family.latency_us[1]:,.0f}",
            f"{family.latency_us[100]:,.0f}",
            f"{family.latency_us[10_000] / 1000.0:,.1f}",
            f"{family.size_bytes / 1024.0:,.0f}",
            ", ".join(f"{name} {value}" for name, value in family.settings.items()),
        )
        for family in report.families
    ]
    columns = (("family", False), *((heading, True) for heading in headings), ("settings", False))
    return TextTable("Families", columns, tuple(rows))


def _thresholds_table(thresholds: dict[str, Any]) -> TextTable:
    columns = (("risk", True), ("threshold", True), ("seen", True))
    return TextTable("Risk", columns, tuple(risk_cells(thresholds)))


def _domain_table(domain: Domain) -> TextTable:
    rows = [
        (name, *(f"{bound:,.6g}" for bound in domain.features[name]), unit)
        for name, unit in zip(FEATURE_SCHEMA.names, FEATURE_SCHEMA.units, strict=True)
    ]
    return TextTable("Domain", (("feature", False), ("from", True), ("to", True), ("unit", False)), tuple(rows))


def _ratios_table(domain: Domain) -> TextTable:
    rows = [
        (
            rule.name,
            f"{rule.min:,.6g}",
            f"{rule.max:,.6g}",
            f"{' + '.join(rule.numerator)} over {' + '.join(rule.denominator)}",
        )
        for rule in domain.ratios
    ]
    return TextTable("Ratios", (("ratio", False), ("from", True), ("to", True), ("of", False)), tuple(rows))
