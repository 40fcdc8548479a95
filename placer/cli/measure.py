"""`placer measure`: run a workload against a real vLLM, and write down what the twin would report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placer.cli.exits import BACKEND_FAILED, INTERRUPTED, OK, print_error, print_hint, print_note, reports_errors
from placer.cli.options import JsonOption, VerboseOption

if TYPE_CHECKING:
    from placer.measure_demo import Demo
    from placer.measurement import MeasurementOutcome
    from twin.measurement.session import Progress

# Options that go with one way of measuring only, by what they are called in the settings.
IN_PROCESS_OPTIONS = ("model", "adapter_directory", "clock", "warmup_requests")
ENDPOINT_OPTIONS = (
    "base_model",
    "load_adapters",
    "prompt",
    "vocab_size",
    "standard_fields_only",
    "timeout",
    "retries",
    "wait",
    "give_up",
    "metrics_url",
    "metrics_interval",
)
DEMO_OPTIONS = ("adapters", "ranks")
# Names in the settings, where they are others than the options'.
FIELD_OF = {
    "load_adapters": "adapter_directory",
    "standard_fields_only": "has_standard_fields_only",
    "timeout": "timeout_s",
    "wait": "wait_s",
    "give_up": "give_up_s",
    "metrics_interval": "metrics_interval_s",
}
DEFAULT_HORIZON_S = 60.0


@reports_errors
def measure(
    workload: Annotated[
        Path | None, typer.Argument(help="Problem file; GPU types may be left out.", show_default=False)
    ] = None,
    *,
    in_process: Annotated[bool, typer.Option("--in-process", help="Run vLLM's engine, and see every step.")] = False,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="URL of an OpenAI-compatible server to measure.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; new or empty.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on with an interrupted measurement in this folder.")
    ] = None,
    finish: Annotated[
        Path | None, typer.Option("--finish", help="Make the tables of a measurement that was killed.")
    ] = None,
    demo: Annotated[
        Path | None, typer.Option("--demo", help="Make a tiny model and adapters in this folder, and measure them.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Measure one GPU of this plan.json (with --gpu).")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU of the plan.")] = None,
    horizon: Annotated[
        float | None, typer.Option("--horizon", min=0.001, help="Seconds in which requests arrive; 60, demo 20.")
    ] = None,
    drain: Annotated[float | None, typer.Option("--drain", min=0, help="Seconds after that to finish; 60.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of arrivals, lengths and prompts; 0.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="In process: folder of the model; default: the file's.")
    ] = None,
    adapter_directory: Annotated[
        Path | None, typer.Option("--adapter-directory", help="In process: a folder per adapter; default: adapters.")
    ] = None,
    clock: Annotated[
        str | None, typer.Option("--clock", help="In process: wall, or on a CPU also cpu or steady.")
    ] = None,
    warmup_requests: Annotated[
        int | None, typer.Option("--warmup-requests", min=0, help="In process: served before, unrecorded; 4.")
    ] = None,
    max_loras: Annotated[int | None, typer.Option("--max-loras", help="As vLLM's.")] = None,
    max_lora_rank: Annotated[int | None, typer.Option("--max-lora-rank", help="As vLLM's.")] = None,
    max_cpu_loras: Annotated[int | None, typer.Option("--max-cpu-loras", help="As vLLM's.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", help="As vLLM's.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option("--max-num-batched-tokens", help="As vLLM's.")] = None,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", help="As vLLM's.")] = None,
    block_size: Annotated[int | None, typer.Option("--block-size", help="As vLLM's.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option("--gpu-memory-utilization", help="As vLLM's.")] = None,
    engine_argument: Annotated[
        list[str] | None, typer.Option("--engine-argument", help="Any other of vLLM's, NAME=VALUE; may be repeated.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="Endpoint: its model without adapter; default: the first.")
    ] = None,
    load_adapters: Annotated[
        str | None, typer.Option("--load-adapters", help="Endpoint: load adapters from this folder of the server's.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Endpoint: tokens (default) or text.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=2, help="Endpoint: token ids are below it; default: the model's.")
    ] = None,
    standard_fields_only: Annotated[
        bool | None, typer.Option("--standard-fields-only", help="Endpoint: leave out vLLM's own request fields.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.001, help="Endpoint: seconds of one attempt; 600.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", min=0, help="Endpoint: further attempts, each of them recorded; 0.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=0, help="Endpoint: seconds to wait until it is ready; 30.")
    ] = None,
    give_up: Annotated[
        float | None, typer.Option("--give-up", min=0, help="Endpoint: seconds without an answer until it is gone; 30.")
    ] = None,
    metrics_url: Annotated[
        str | None, typer.Option("--metrics-url", help="Endpoint: page of metrics; default: its /metrics.")
    ] = None,
    metrics_interval: Annotated[
        float | None, typer.Option("--metrics-interval", min=0, help="Endpoint: seconds between pages; 5, 0: none.")
    ] = None,
    adapters: Annotated[int | None, typer.Option("--adapters", min=1, help="Demo: how many adapters; 16.")] = None,
    ranks: Annotated[str | None, typer.Option("--ranks", help="Demo: dealt to the adapters; 8,16.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Run WORKLOAD against vLLM's engine (--in-process) or a server (--endpoint), and record requests and steps."""
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    from placer.cli.measure_progress import MeasureProgress

    _require_one_subject(given)
    was_complete = _is_complete(resume or finish)
    with MeasureProgress() as display:
        if resume is not None:
            from placer.measurement import resume_measurement

            outcome = resume_measurement(resume, display)
        elif finish is not None:
            from placer.measurement import finish_measurement

            outcome = finish_measurement(finish)
        elif demo is not None:
            result = _run_demo(given, display)
            if result.outcome is None:
                return OK
            outcome = result.outcome
        else:
            outcome = _measure_new(given, display=display)
    return _report(outcome, was_complete=was_complete, is_json=json_output)


def _require_one_subject(given: dict[str, Any]) -> None:
    """Refuse what does not go together."""
    from twin.errors import InputError

    subjects = [name for name in ("workload", "resume", "finish", "demo") if name in given]
    if "plan" in given and not subjects:
        raise InputError(
            "WORKLOAD must be given besides --plan. It is missing.",
            field="workload",
            hint="give the problem file that the plan was made from: placer measure WORKLOAD --plan PLAN --gpu NAME",
        )
    if len(subjects) != 1:
        names = " and ".join("WORKLOAD" if name == "workload" else f"--{name}" for name in subjects)
        raise InputError(
            f"one of WORKLOAD, --resume, --finish and --demo must be given. Got {names or 'none'}.",
            field="workload",
            hint="`placer measure --demo FOLDER` shows how it looks",
        )
    _require_fitting_options(given, subjects[0])
    if subjects == ["workload"] and "output" not in given:
        raise InputError("the folder to write must be given: --output FOLDER. It is missing.", field="output")


def _require_fitting_options(given: dict[str, Any], subject: str) -> None:
    """Refuse options that would have no effect."""
    from twin.errors import InputError

    ways = [way for way in ("in_process", "endpoint") if way in given]
    if subject == "workload" and len(ways) != 1:
        raise InputError(
            f"one of --in-process and --endpoint URL must be given. Got {'both' if ways else 'none'}.",
            field="endpoint",
            hint="--in-process runs vLLM here; --endpoint URL measures a server",
        )
    groups = {"--in-process": IN_PROCESS_OPTIONS, "--endpoint": ENDPOINT_OPTIONS, "--demo": DEMO_OPTIONS}
    chosen = _option(ways[0] if subject == "workload" else subject)
    for way, names in groups.items():
        for name in names:
            if name in given and way != chosen:
                raise InputError(f"`{_option(name)}` must come with {way}. It is given without.", field=name)
    allowed = {"demo": {"horizon", "seed", *DEMO_OPTIONS}, "resume": set(), "finish": set()}.get(subject)
    for name in sorted(given):
        if allowed is not None and name not in allowed | {subject, "json_output", "verbose"}:
            raise InputError(
                f"`{_option(name)}` must come with a new measurement. It is given with --{subject}.",
                field=name,
                value=given[name],
                hint="leave it out: a measurement goes on with its own settings"
                if subject == "resume"
                else "leave it out",
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _measure_new(given: dict[str, Any], *, display: Callable[[Progress], None]) -> MeasurementOutcome:
    from placer.measure_workload import load_measured_workload
    from placer.measurement import endpoint_settings, in_process_settings, start_measurement

    content = load_measured_workload(given["workload"], plan=given.get("plan"), gpu=given.get("gpu"))
    engine, seed = _engine_arguments(given), given.get("seed", 0)
    options = {"drain_s": given["drain"]} if "drain" in given else {}
    if "in_process" in given:
        _require_choice("clock", given.get("clock", "wall"), ("wall", "cpu", "steady"))
        options |= {name: given[name] for name in ("clock", "warmup_requests") if name in given}
        settings: Any = in_process_settings(
            content,
            model=given.get("model"),
            adapter_directory=given.get("adapter_directory"),
            engine=engine,
            seed=seed,
            options=options,
        )
    else:
        _require_choice("prompt", given.get("prompt", "tokens"), ("tokens", "text"))
        options |= {FIELD_OF.get(name, name): given[name] for name in ENDPOINT_OPTIONS if name in given}
        settings = endpoint_settings(content, url=given["endpoint"], engine=engine, options=options)
    return start_measurement(
        given["output"],
        content,
        settings,
        horizon_s=given.get("horizon", DEFAULT_HORIZON_S),
        seed=seed,
        on_progress=display,
    )


def _engine_arguments(given: dict[str, Any]) -> dict[str, Any]:
    from placer.measure_workload import parse_engine_arguments
    from twin.measurement.preparation import ENGINE_ARGUMENTS

    named = {name: given[name] for name in ENGINE_ARGUMENTS if name in given}
    return named | parse_engine_arguments(given.get("engine_argument", ()))


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    from twin.errors import InputError

    if value not in choices:
        raise InputError(f"`--{option}` must be one of {', '.join(choices)}. Got {value!r}.", field=option, value=value)


def _run_demo(given: dict[str, Any], display: Callable[[Progress], None]) -> Demo:
    from placer.measure_demo import run_demo
    from placer.workload_options import parse_ranks

    result = run_demo(
        given["demo"],
        num_adapters=given.get("adapters"),
        ranks=parse_ranks(given["ranks"]) if "ranks" in given else None,
        horizon_s=given.get("horizon"),
        seed=given.get("seed"),
        on_progress=display,
        on_made=print_note,
    )
    for hint in result.hints:
        print_hint(hint)
    return result


def _is_complete(measurement: Path | None) -> bool:
    """Return whether there is nothing left to do in a folder that is given."""
    from twin.measurement.folder import open_folder

    return measurement is not None and open_folder(measurement).manifest.status == "complete"


def _report(outcome: MeasurementOutcome, *, was_complete: bool, is_json: bool) -> int:
    from placer.measure_report import outcome_lines, outcome_tables
    from twin.measurement.manifest import manifest_to_json
    from twin.measurement.summary import served_any

    manifest = outcome.manifest
    for warning in manifest.warnings:
        from placer.cli.exits import print_warning

        print_warning(warning)
    if is_json:
        typer.echo(manifest_to_json(manifest), nl=False)
    else:
        from placer.cli.tables import print_lines, print_table

        print_lines(outcome_lines(outcome.path, manifest))
        for table in outcome_tables(manifest):
            print_lines([""])
            print_table(table.columns, table.rows)
    print_note(f"{outcome.path} is complete already" if was_complete else f"wrote {outcome.path}")
    if manifest.status != "complete":
        partial = f"the measurement is partial: {manifest.reason}. What was recorded until then is in the tables."
        hint = f"go on with `placer measure --resume {outcome.path}`"
        if outcome.cause is None:
            # Making the tables is all that was asked for.
            print_note(partial)
            print_hint(hint)
        else:
            print_error(partial, hint=hint)
    elif manifest.summary is not None and not served_any(manifest.summary):
        print_error("no request was served, so that nothing was measured", hint="look at `error` in requests.parquet")
        return BACKEND_FAILED
    if outcome.cause is None:
        return OK if manifest.status == "complete" or manifest.summary is not None else BACKEND_FAILED
    return INTERRUPTED if outcome.cause == "interrupted" else BACKEND_FAILED
