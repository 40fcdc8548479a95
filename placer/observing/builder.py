"""From what sources say, and a problem that is known, to the problem of today and the evidence for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from placer.observing.base_problem import BaseProblem, rank_of
from placer.observing.document import (
    LengthSource,
    ObservedAdapter,
    ObservedSource,
    ObservedWorkload,
    RankSource,
    RateSource,
)
from placer.observing.evidence import AdapterTraffic, Observation
from placer.observing.variation import pooled_variation
from placer.workload_builder import ProblemDocument
from solvers.problem import parse_problem
from twin.derive import adapters_to_records
from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.workload import Adapter, Workload

Unseen = Literal["zero", "keep", "drop"]
UNSEEN: tuple[Unseen, ...] = ("zero", "keep", "drop")
# Two-sided 95 %.
_Z = 1.959963984540054
# Sources that count the same requests should not be further apart.
_DISAGREEMENT = 0.1
_SHOWN = 5


@dataclass(frozen=True)
class BuildSettings:
    """How a problem is made.

    Attributes
    ----------
    rank
        Of adapters whose rank is not known otherwise; ``None``: they are an error.
    adapter_folder
        See `rank_of`.
    unseen
        Adapters of the problem without a request in the window: their rate becomes 0 or stays, or they are left out.
    probability
        With which each GPU shall do for the rates as uncertain as they are; ``None``: nothing is written about that.
    """

    rank: int | None = None
    adapter_folder: Path | None = None
    unseen: Unseen = "zero"
    probability: float | None = None

    def __post_init__(self) -> None:
        """Refuse a rank that vLLM has not."""
        if self.rank is not None and self.rank not in SUPPORTED_RANKS:
            raise InputError(
                f"`rank` must be one of {', '.join(map(str, SUPPORTED_RANKS))}. Got {self.rank}.",
                field="rank",
                value=self.rank,
            )


@dataclass(frozen=True)
class Built:
    """A problem of today, as a file will have it, and the evidence for it."""

    problem: ProblemDocument
    evidence: ObservedWorkload


@dataclass(frozen=True)
class _Rates:
    """Requests of adapters in a window, and how they are known."""

    window_s: float
    adapters: Mapping[str, AdapterTraffic]
    source: RateSource


def parse_unseen(text: str) -> Unseen:
    """Read what becomes of adapters without requests (InputError for anything else)."""
    for known in UNSEEN:
        if text == known:
            return known
    raise InputError(f"`unseen` must be one of {', '.join(UNSEEN)}. Got {text!r}.", field="unseen", value=text)


def build_observed(
    observations: Sequence[Observation], base: BaseProblem, settings: BuildSettings, *, output: Path, command: str
) -> Built:
    """Return the problem of today.

    Rates are those of the source that tells adapters apart best: a log, counters by adapter, adapters met at scrapes; a
    total is divided as in the problem. Lengths are the adapter's own, else those of all requests, else the problem's;
    those of a problem are scaled so that their mean is that of all requests.

    Parameters
    ----------
    observations
        At least one, at most one of each kind.
    base
        What is not observed.
    settings
        Ranks, and adapters without requests.
    output
        Where the file will be; relative paths in it start from its folder.
    command
        For the header of the file.

    Raises
    ------
    InputError
        When no source tells adapters apart and there is no problem, a length or a rank is not known, or the result is
        no valid problem.
    """
    warnings = [warning for observation in observations for warning in observation.warnings]
    assumed = [text for observation in observations for text in observation.assumed] + list(base.remarks)
    rates = _rates(observations, base, assumed)
    warnings += _disagreements(observations)
    known_records = {adapter.name: adapter for adapter in base.adapters}
    names = [name for name in known_records if name in rates.adapters or settings.unseen != "drop"]
    names += sorted(set(rates.adapters) - set(known_records))
    scale = _length_scale(observations, base, rates)
    made = [
        _adapter(name, rates, known_records.get(name), observations, scale=scale, settings=settings) for name in names
    ]
    if not made:
        raise InputError("a workload must have adapters. None was seen.", field="unseen", value=settings.unseen)
    _tell_ranks(made, settings, assumed)
    _tell_unseen(made, settings, warnings)
    common_cv = next((seen.common_cv for seen in observations if seen.common_cv is not None), None)
    variances = (
        (entry.rate_rps, _variance(rates, entry.name) / rates.window_s**2) for _, entry in made if entry.num_requests
    )
    evidence = ObservedWorkload(
        sources=tuple(_source(observation) for observation in observations),
        adapters=tuple(entry for _, entry in made),
        rate_rps=sum(adapter.rate_rps for adapter, _ in made),
        offered_tps=sum(adapter.offered_tps for adapter, _ in made),
        rate_cv=pooled_variation(variances),
        common_cv=common_cv,
        known=tuple(text for observation in observations for text in observation.known),
        unknown=_still_unknown(observations, rates, made),
        assumed=(*assumed, "arrivals are Poisson, or as bursty as the problem says: sources do not tell"),
        warnings=tuple(warnings),
    )
    problem = _problem(base, [adapter for adapter, _ in made], evidence, settings, command)
    parse_problem(problem.content, file=str(output), base_directory=output.parent)
    return Built(problem, evidence)


def _rates(observations: Sequence[Observation], base: BaseProblem, assumed: list[str]) -> _Rates:
    """Return the rates by the source that tells adapters apart best, counted ones first."""
    for basis in ("counted", "presence"):
        for observation in observations:
            if observation.adapters and observation.basis == basis:
                return _Rates(observation.window_s, observation.adapters, basis)
    total = observations[0]
    shares = {adapter.name: adapter.rate_rps for adapter in base.adapters if adapter.rate_rps > 0.0}
    if not shares:
        raise InputError(
            f"one source must tell adapters apart. {total.kind} {total.names[0]} does not.",
            field="source",
            hint="add an access log, or --problem whose rates say how requests divide",
        )
    assumed.append("requests divide among the adapters as in the problem")
    scale = total.num_requests / sum(shares.values())
    divided = {name: AdapterTraffic(rate * scale, rate * scale) for name, rate in shares.items()}
    return _Rates(total.window_s, divided, "shares of the problem")


def _adapter(
    name: str,
    rates: _Rates,
    known: Adapter | None,
    observations: Sequence[Observation],
    *,
    scale: tuple[float, float] | None,
    settings: BuildSettings,
) -> tuple[Adapter, ObservedAdapter]:
    traffic = rates.adapters.get(name)
    num_requests = 0.0 if traffic is None else traffic.num_requests
    rate_source: RateSource = rates.source if traffic is not None else "not seen"
    rate_rps = num_requests / rates.window_s
    if traffic is None and known is not None and settings.unseen == "keep":
        rate_rps, rate_source = known.rate_rps, "problem"
    lengths, length_source = _lengths(name, traffic, known, observations, scale)
    rank, rank_source = _rank(name, known, settings)
    old = {} if known is None else known.model_dump()
    adapter = Adapter.model_validate(
        old
        | {
            "name": name,
            "rank": rank,
            "rate_rps": rate_rps,
            "prompt_tokens": lengths[0],
            "output_tokens": lengths[1],
        }
    )
    low, high = count_interval(num_requests, _variance(rates, name))
    entry = ObservedAdapter(
        name=name,
        rank=rank,
        rate_rps=rate_rps,
        low_rps=low / rates.window_s,
        high_rps=high / rates.window_s,
        num_requests=num_requests,
        prompt_tokens=lengths[0].effective_mean,
        output_tokens=lengths[1].effective_mean,
        rate_from=rate_source,
        lengths_from=length_source,
        rank_from=rank_source,
        before_rps=None if known is None else known.rate_rps,
    )
    return adapter, entry


def count_interval(num_requests: float, variance: float) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a count.

    Parameters
    ----------
    num_requests
        What was counted, >= 0.
    variance
        Of it; that of a Poisson count is the count, a larger one stands for fewer independent events.

    Notes
    -----
    The score interval of a Poisson mean: those m with ``(n - m)**2 <= z**2 * m``.
    """
    unit = variance / num_requests if num_requests > 0.0 and variance > 0.0 else 1.0
    events = num_requests / unit
    center, half = events + 0.5 * _Z**2, _Z * math.sqrt(events + 0.25 * _Z**2)
    return max(center - half, 0.0) * unit, (center + half) * unit


def _variance(rates: _Rates, name: str) -> float:
    traffic = rates.adapters.get(name)
    return 0.0 if traffic is None else traffic.variance


def _lengths(
    name: str,
    traffic: AdapterTraffic | None,
    known: Adapter | None,
    observations: Sequence[Observation],
    scale: tuple[float, float] | None,
) -> tuple[tuple[LengthDistribution, LengthDistribution], LengthSource]:
    """Return the lengths of an adapter's prompts and answers: the most particular that there are."""
    own = [traffic, *(seen.adapters.get(name) for seen in observations)]
    for told in own:
        if told is not None and told.prompt_tokens is not None and told.output_tokens is not None:
            return (told.prompt_tokens, told.output_tokens), "own requests"
    if known is not None:
        both = (known.prompt_tokens, known.output_tokens)
        if scale is None:
            return both, "problem"
        return (both[0].scaled(scale[0]), both[1].scaled(scale[1])), "problem, scaled to all requests"
    for seen in observations:
        if seen.prompt_tokens is not None and seen.output_tokens is not None:
            return (seen.prompt_tokens, seen.output_tokens), "all requests"
    raise InputError(
        f"lengths of requests must be known. No source has them, and {name!r} is in no problem.",
        field="source",
        value=name,
        hint="log the `usage` of answers, or add the metrics of the servers, or --problem with the lengths",
    )


def _length_scale(observations: Sequence[Observation], base: BaseProblem, rates: _Rates) -> tuple[float, float] | None:
    """Return the factors with which the lengths of the problem have the mean of all requests; ``None``: not known."""
    seen = next((one for one in observations if one.prompt_tokens is not None and one.output_tokens is not None), None)
    counts = [
        (adapter, rates.adapters[adapter.name].num_requests)
        for adapter in base.adapters
        if adapter.name in rates.adapters
    ]
    total = sum(count for _, count in counts)
    if seen is None or total <= 0.0:
        return None
    assert seen.prompt_tokens is not None
    assert seen.output_tokens is not None
    prompt = sum(count * adapter.prompt_tokens.effective_mean for adapter, count in counts) / total
    output = sum(count * adapter.output_tokens.effective_mean for adapter, count in counts) / total
    return seen.prompt_tokens.effective_mean / prompt, seen.output_tokens.effective_mean / output


def _rank(name: str, known: Adapter | None, settings: BuildSettings) -> tuple[int, RankSource]:
    if known is not None:
        return known.rank, "problem"
    rank = rank_of(name, settings.adapter_folder)
    if rank is not None:
        return rank, "adapter_config.json"
    if settings.rank is not None:
        return settings.rank, "--rank"
    raise InputError(
        f"the rank of every adapter must be known. That of {name!r} is not: no source tells ranks.",
        field="rank",
        value=name,
        hint="give --problem with the adapter, --adapter-folder with its adapter_config.json, or --rank for such ones",
    )


def _tell_ranks(made: Sequence[tuple[Adapter, ObservedAdapter]], settings: BuildSettings, assumed: list[str]) -> None:
    guessed = [entry.name for _, entry in made if entry.rank_from == "--rank"]
    if guessed:
        assumed.append(f"rank {settings.rank} of {_listed(guessed)}: no source tells ranks")


def _tell_unseen(made: Sequence[tuple[Adapter, ObservedAdapter]], settings: BuildSettings, warnings: list[str]) -> None:
    unseen = [entry for _, entry in made if not entry.num_requests]
    if not unseen:
        return
    kept = "their rates stay" if settings.unseen == "keep" else "their rates become 0 (--unseen keep leaves them)"
    most = max(entry.high_rps for entry in unseen)
    warnings.append(
        f"{_listed([entry.name for entry in unseen])} had no request; {kept}, and may be up to {most:.3g}/s each"
    )


def _disagreements(observations: Sequence[Observation]) -> list[str]:
    """Return a warning where two sources of the same traffic count differently."""
    live = [seen for seen in observations if seen.kind != "benchmark"]
    rates = [seen.num_requests / seen.window_s for seen in live]
    if len(live) < 2 or max(rates) <= (1.0 + _DISAGREEMENT) * min(rates):
        return []
    told = ", ".join(f"{seen.kind} {rate:.4g}" for seen, rate in zip(live, rates, strict=True))
    return [f"sources disagree about the requests per second of all adapters: {told}; are their windows the same?"]


def _still_unknown(
    observations: Sequence[Observation], rates: _Rates, made: Sequence[tuple[Adapter, ObservedAdapter]]
) -> tuple[str, ...]:
    """Return what no source tells; what one source does not, another may."""
    unknown = [text for seen in observations for text in seen.unknown]
    if rates.source == "counted":
        unknown = [text for text in unknown if not text.startswith(("requests of each adapter", "adapters that"))]
    if all(entry.lengths_from == "own requests" for _, entry in made):
        unknown = [text for text in unknown if not text.startswith("lengths of each adapter")]
    return tuple(unknown)


def _problem(
    base: BaseProblem, adapters: list[Adapter], evidence: ObservedWorkload, settings: BuildSettings, command: str
) -> ProblemDocument:
    workload = Workload(tuple(adapters))
    records = [base.records.get(record["name"], {}) | record for record in adapters_to_records(workload)]
    content: dict[str, Any] = dict(base.content)
    if settings.probability is not None:
        content["uncertainty"] = {
            "rate_cv": float(f"{evidence.rate_cv:.4g}"),
            "common_cv": float(f"{evidence.common_cv or 0.0:.4g}"),
            "probability": settings.probability,
        }
    content["adapters"] = records
    common = "unknown" if evidence.common_cv is None else f"{evidence.common_cv:.3g}"
    header = (
        "What was observed, by the command below; `--json` has the evidence.",
        f"  {command}",
        *(f"known: {text}" for text in evidence.known),
        *(f"not known: {text}" for text in evidence.unknown),
        *(f"assumed: {text}" for text in evidence.assumed),
        f"rates may be off by chance: rate_cv {evidence.rate_cv:.3g}, common_cv {common}",
    )
    return ProblemDocument(content, tuple(header), workload)


def _source(observation: Observation) -> ObservedSource:
    return ObservedSource(
        kind=observation.kind,
        names=observation.names,
        begin_s=observation.begin_s,
        window_s=observation.window_s,
        num_requests=observation.num_requests,
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
