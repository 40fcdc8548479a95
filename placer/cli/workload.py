"""`placer workload`: from a trace to a summary and a problem file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_hint, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from twin.summary import LengthSummary, WorkloadSummary


@reports_errors
def workload(
    trace: Annotated[Path, typer.Argument(help="Trace: CSV, JSON lines or Parquet.", show_default=False)],
    *,
    trace_format: Annotated[
        str | None, typer.Option("--format", help="azure, mooncake, csv, jsonl or parquet; default: recognised.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns by role, such as time=t,prompt=in,output=out,adapter=lora.")
    ] = None,
    time_unit: Annotated[str, typer.Option("--time-unit", help="Unit of the time column: s, ms, us or ns.")] = "s",
    sort: Annotated[bool, typer.Option("--sort", help="Sort requests instead of refusing unsorted ones.")] = False,
    drop_empty: Annotated[bool, typer.Option("--drop-empty", help="Leave out requests without tokens.")] = False,
    adapters: Annotated[int | None, typer.Option("--adapters", min=1, help="Adapters to spread requests over.")] = None,
    popularity: Annotated[
        str, typer.Option("--popularity", help="given, uniform, zipf:0.9, dirichlet:0.5 or file:counts.csv.")
    ] = "given",
    ranks: Annotated[
        str, typer.Option("--ranks", help="Ranks that are dealt to the adapters, such as 8,16,32.")
    ] = "16",
    replicate: Annotated[int, typer.Option("--replicate", min=1, help="Copies of the traffic, jittered.")] = 1,
    jitter: Annotated[float, typer.Option("--jitter", min=0, help="Seconds by which copies are jittered.")] = 5.0,
    model: Annotated[str, typer.Option("--model", help="Model of the problem file.")] = "llama-3.1-8b",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of jitter, assignment and ranks.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Problem file to write; - is standard output.", show_default=False),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Summarise TRACE, give its requests to adapters, and write a problem file with their rates and lengths."""
    del verbose
    from placer.files import write_atomically
    from placer.output_paths import check_outputs, config_path, has_standard_output
    from placer.workload_builder import build_problem_document, dump_problem
    from placer.workload_options import parse_columns, parse_ranks
    from twin.summary import summarise_trace, summarise_workload
    from twin.traces import read_trace

    inputs: dict[str, str | Path] = {
        "TRACE": trace,
        "--popularity": popularity.removeprefix("file:"),
        "--model": config_path(model),
    }
    check_outputs({"--output": output}, inputs=inputs, prints_json=json_output)
    to_file = output is not None and not has_standard_output(output)
    dealt_ranks = parse_ranks(ranks)
    mapping = None if columns is None else parse_columns(columns, time_unit)
    requests = read_trace(trace, trace_format=trace_format, columns=mapping, sort=sort, drop_empty=drop_empty)
    summaries = {"trace": summarise_trace(requests)}
    if output is not None or adapters is not None or popularity != "given":
        document = build_problem_document(
            trace,
            trace_format=trace_format,
            columns=mapping,
            sort=sort,
            drop_empty=drop_empty,
            num_adapters=adapters,
            popularity=popularity,
            ranks=dealt_ranks,
            copies=replicate,
            jitter_s=jitter,
            seed=seed,
            model=model,
            output_name=str(output) if to_file else "workload.yaml",
        )
        summaries["workload"] = summarise_workload(document.workload, seed=seed)
        if output is not None:
            write_atomically(output, dump_problem(document))
            print_written(output)
        if has_standard_output(output):
            return OK
    _print_summaries(summaries, is_json=json_output)
    if output is None:
        print_hint("-o workload.yaml writes a problem file for `placer solve`")
    return OK


def _print_summaries(summaries: dict[str, WorkloadSummary], *, is_json: bool) -> None:
    if is_json:
        import json

        typer.echo(json.dumps({name: summary.to_dict() for name, summary in summaries.items()}, indent=2))
        return
    from placer.cli.tables import print_table

    cells = [_cells(summary) for summary in summaries.values()]
    rows = [(name, *(column[name] for column in cells)) for name in cells[0]]
    print_table([("", False), *((name, True) for name in summaries)], rows)


def _cells(summary: WorkloadSummary) -> dict[str, str]:
    ranks = ", ".join(f"{count}x{rank}" for rank, count in summary.adapters_per_rank)
    return {
        "requests": f"{summary.num_requests:,}",
        "seconds": f"{summary.duration_s:,.0f}",
        "requests/s": f"{summary.rate_rps:.4g}",
        "offered tokens/s": f"{summary.offered_tps:,.0f}",
        "prompt tokens (mean, p50, p95, max)": _lengths(summary.prompt_tokens),
        "output tokens (mean, p50, p95, max)": _lengths(summary.output_tokens),
        "adapters": "-" if summary.num_adapters is None else f"{summary.num_adapters:,}",
        "requests of the top 10": "-" if summary.top_10_share is None else f"{summary.top_10_share:.0%}",
        "adapters x rank": ranks or "-",
    }


def _lengths(lengths: LengthSummary | None) -> str:
    if lengths is None:
        return "-"
    return f"{lengths.mean:.0f}, {lengths.p50:.0f}, {lengths.p95:.0f}, {lengths.max:,}"
