"""`placer observe`: from what runs today to a problem file, with the evidence for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_hint, print_note, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from placer.observing.document import ObservedWorkload

# The rest are in the file and in --json.
_SHOWN_ADAPTERS = 20


@reports_errors
def observe(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Prometheus (http://HOST:9090), servers' pages to watch (http://HOST:8000/metrics), access logs "
            "(JSON lines), saved metrics, results of `vllm bench serve`.",
            show_default=False,
        ),
    ],
    *,
    problem: Annotated[
        Path | None,
        typer.Option("--problem", help="Problem whose rates are updated, and that says the rest.", show_default=False),
    ] = None,
    window: Annotated[
        float | None, typer.Option("--window", help="Seconds to look at; default: a log's all, an hour of Prometheus.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", help="End of the window: ISO 8601 or unix seconds.", show_default=False)
    ] = None,
    every: Annotated[float, typer.Option("--every", help="Seconds between scrapes of pages that are watched.")] = 1.0,
    selector: Annotated[str, typer.Option("--selector", help='PromQL matchers, such as job="vllm".')] = "",
    request_counter: Annotated[
        str, typer.Option("--request-counter", help="Counter of requests, such as a gateway's by adapter.")
    ] = "vllm:request_success_total",
    adapter_label: Annotated[
        str, typer.Option("--adapter-label", help="Label of that counter with the adapter's name.")
    ] = "model_name",
    fields: Annotated[
        str | None, typer.Option("--fields", help="Log's names by role, such as time=ts,model=req.model,prompt=...")
    ] = None,
    base_model: Annotated[
        list[str] | None, typer.Option("--base-model", help="Name that is no adapter; may be repeated.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Rank of adapters whose rank is not known.", show_default=False)
    ] = None,
    adapter_folder: Annotated[
        Path | None,
        typer.Option("--adapter-folder", help="Folder with NAME/adapter_config.json, for ranks.", show_default=False),
    ] = None,
    unseen: Annotated[
        str, typer.Option("--unseen", help="The problem's adapters without a request: zero, keep or drop.")
    ] = "zero",
    probability: Annotated[
        float | None,
        typer.Option("--probability", help="Write `uncertainty`: with it GPUs keep their limits.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model, without --problem.")] = "llama-3.1-8b",
    token_env: Annotated[
        str | None, typer.Option("--token-env", help="Variable with a bearer token; default: PROMETHEUS_TOKEN.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with a bearer token.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for an answer.")] = 30.0,
    max_mib: Annotated[float, typer.Option("--max-mib", min=0.001, help="Largest answer in MiB.")] = 64.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Problem file to write; - is standard output.", show_default=False),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Read the traffic of adapters from SOURCES: a problem file of today, what is known of it, and what is assumed."""
    del verbose
    import shlex

    from placer.files import write_atomically
    from placer.observing.base_problem import no_problem, read_problem
    from placer.observing.builder import BuildSettings, build_observed, parse_unseen
    from placer.observing.http_source import MIB, HttpAccess
    from placer.observing.sources import SourceSettings, observe_sources, parse_end, parse_fields, read_token
    from placer.output_paths import check_outputs, has_standard_output
    from placer.workload_builder import dump_problem

    inputs: dict[str, str | Path] = {source: source for source in sources if "://" not in source}
    if problem is not None:
        # The problem may be updated in place.
        inputs = {name: path for name, path in inputs.items() if Path(path) != problem}
    check_outputs({"--output": output}, inputs=inputs, prints_json=json_output)
    settings = SourceSettings(
        window_s=window,
        end_s=parse_end(end),
        every_s=every,
        selector=selector,
        request_counter=request_counter,
        adapter_label=adapter_label,
        fields=parse_fields(fields),
        base_models=tuple(base_model or ()),
        access=HttpAccess(read_token(token_env, token_file), timeout, int(max_mib * MIB)),
    )
    build = BuildSettings(rank, adapter_folder, parse_unseen(unseen), probability)
    target = Path("workload.yaml") if output is None or has_standard_output(output) else output
    base = no_problem(model) if problem is None else read_problem(problem, folder=target.parent)
    seen = observe_sources(sources, settings, known_adapters=[adapter.name for adapter in base.adapters])
    shown = [source if "://" in source else Path(source).name for source in sources]
    shown += [] if problem is None else ["--problem", problem.name]
    command = shlex.join(["placer", "observe", *shown, "-o", target.name])
    built = build_observed(seen, base, build, output=target, command=command)
    if output is not None:
        write_atomically(output, dump_problem(built.problem))
        print_written(output)
    if not has_standard_output(output):
        _print(built.evidence, is_json=json_output)
    for warning in built.evidence.warnings:
        print_warning(warning)
    if output is None:
        print_hint("-o workload.yaml writes the problem file for `placer solve` and `placer replan`")
    return OK


def _print(evidence: ObservedWorkload, *, is_json: bool) -> None:
    if is_json:
        import json

        typer.echo(json.dumps(evidence.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False))
        return
    from placer.cli.tables import print_table

    shown = sorted(evidence.adapters, key=lambda adapter: -adapter.rate_rps)[:_SHOWN_ADAPTERS]
    rows = [
        (
            adapter.name,
            str(adapter.rank),
            f"{adapter.rate_rps:.4g}",
            f"{adapter.low_rps:.3g} to {adapter.high_rps:.3g}",
            "-" if adapter.before_rps is None else f"{adapter.before_rps:.4g}",
            f"{adapter.prompt_tokens:.0f} + {adapter.output_tokens:.0f}",
            adapter.rate_from,
            adapter.lengths_from,
        )
        for adapter in shown
    ]
    columns = ("adapter", "rank", "requests/s", "95 %", "before", "tokens", "rate", "lengths")
    print_table([(name, name in {"rank", "requests/s", "95 %", "before", "tokens"}) for name in columns], rows)
    if len(shown) < len(evidence.adapters):
        typer.echo(f"and {len(evidence.adapters) - len(shown)} more adapters")
    typer.echo(
        f"\n{len(evidence.adapters)} adapters, {evidence.rate_rps:.4g} requests/s, {evidence.offered_tps:,.0f} tokens/s"
    )
    for title, texts in (
        ("known", evidence.known),
        ("not known", evidence.unknown),
        ("assumed", evidence.assumed),
    ):
        for text in texts:
            typer.echo(f"{title}: {text}")
    common = "" if evidence.common_cv is None else f" --common-cv {evidence.common_cv:.3g}"
    options = f"--rate-cv {evidence.rate_cv:.3g}{common}"
    print_note(f"how far chance may move rates: placer whatif FILE --study risk {options}, or --probability 0.95 here")
