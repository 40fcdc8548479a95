"""`placer serve`: the HTTP service."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_note, print_warning, reports_errors
from placer.cli.options import VerboseOption

if TYPE_CHECKING:
    from placer.service.settings import JobLimits

# One message between the service and a worker has at most as much.
_MOST_BODY_MIB = 1024.0
_TOKEN_VARIABLE = "PLACER_TOKENS"  # noqa: S105 - the name of a variable


@reports_errors
def serve(
    *,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: any that is free.")] = 8080,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Folder of the database of jobs.")] = Path("placer-data"),
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Jobs at a time; default: one per core.", show_default=False)
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Jobs that may wait.")] = 100,
    keep_jobs: Annotated[int, typer.Option("--keep-jobs", min=1, help="Finished jobs that are kept.")] = 10_000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help=f"File with a token per line, one of which requests must bear; or the variable {_TOKEN_VARIABLE}.",
            show_default=False,
        ),
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Listen on addresses of a network without any token.")
    ] = False,
    max_body_mib: Annotated[float, typer.Option("--max-body-mib", help="MiB of a request.")] = 16.0,
    max_adapters: Annotated[int, typer.Option("--max-adapters", min=1, help="Adapters of a problem.")] = 10_000,
    max_trace_requests: Annotated[
        int, typer.Option("--max-trace-requests", min=1, help="Requests of a trace.")
    ] = 200_000,
    max_scenarios: Annotated[int, typer.Option("--max-scenarios", min=1, help="Scenarios of a study.")] = 200,
    max_budget: Annotated[float, typer.Option("--max-budget", help="Seconds for a solver.")] = 300.0,
    max_horizon: Annotated[float, typer.Option("--max-horizon", help="Simulated seconds.")] = 7200.0,
    max_deadline: Annotated[float, typer.Option("--max-deadline", help="Seconds that an answer may take.")] = 600.0,
    job_cpu: Annotated[float, typer.Option("--job-cpu", help="Seconds of processor time of a job.")] = 900.0,
    job_wall: Annotated[float, typer.Option("--job-wall", help="Seconds of a job.")] = 900.0,
    job_memory_mib: Annotated[
        int, typer.Option("--job-memory-mib", min=512, help="MiB of data of a worker process.")
    ] = 4096,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for running jobs when the service ends.")] = 20.0,
    log_level: Annotated[str, typer.Option("--log-level", help="critical, error, warning, info or debug.")] = "info",
    verbose: VerboseOption = False,
) -> int:
    """Serve solve, replan, verify and whatif over HTTP, as jobs that survive the service."""
    del verbose
    from placer.service.published import require_extra
    from placer.service.settings import MIB, JobLimits, ServiceSettings
    from twin.errors import InputError
    from twin.parallel import available_cores

    require_extra()
    if not 0.0 < max_body_mib <= _MOST_BODY_MIB:
        raise InputError(
            f"`--max-body-mib` must be above 0 and at most {_MOST_BODY_MIB:g}. Got {max_body_mib:g}.",
            field="max_body_mib",
            value=max_body_mib,
        )
    limits = JobLimits(
        body_bytes=int(max_body_mib * MIB),
        adapters=max_adapters,
        trace_bytes=int(max_body_mib * MIB),
        trace_requests=max_trace_requests,
        scenarios=max_scenarios,
        budget_s=max_budget,
        horizon_s=max_horizon,
        deadline_s=max_deadline,
        cpu_s=job_cpu,
        wall_s=job_wall,
        memory_bytes=job_memory_mib * MIB,
    )
    _check(limits, grace, log_level)
    tokens = _tokens(token_file)
    _check_address(host, has_tokens=bool(tokens), is_allowed=allow_anyone)
    num_workers = workers or available_cores()
    settings = ServiceSettings(
        data_dir=data_dir.absolute(),
        workers=num_workers,
        threads=max(1, available_cores() // num_workers),
        queue=queue,
        keep_jobs=keep_jobs,
        tokens=tokens,
        grace_s=grace,
        limits=limits,
    )
    from placer.service.server import serve as serve_http

    if not tokens:
        print_warning("requests need no token: whoever reaches this address can use the service.")
    print_note(f"jobs are kept in {settings.data_dir}")
    serve_http(settings, host=host, port=port, log_level=log_level, announce=print_note)
    return OK


def _check(limits: JobLimits, grace_s: float, log_level: str) -> None:
    """Raise InputError for limits that let nothing through, and for an unknown level."""
    from dataclasses import asdict

    from twin.errors import InputError

    for name, value in asdict(limits).items():
        # Not a number is not above 0, either; nor does the kernel know infinite seconds.
        if not 0.0 < value < 1e15:
            raise InputError(f"limits must be above 0 and finite. Got {value:g} ({name}).", field=name, value=value)
    if not 0.0 <= grace_s <= 3600.0:
        raise InputError(f"`--grace` must be between 0 and 3600 s. Got {grace_s:g}.", field="grace", value=grace_s)
    levels = ("critical", "error", "warning", "info", "debug")
    if log_level not in levels:
        raise InputError(
            f"`--log-level` must be one of {', '.join(levels)}. Got {log_level!r}.", field="log_level", value=log_level
        )


def _tokens(file: Path | None) -> tuple[str, ...]:
    """Return the tokens of the file, or of the variable."""
    from twin.errors import InputError

    try:
        text = os.environ.get(_TOKEN_VARIABLE, "") if file is None else file.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise InputError(
            f"`--token-file` must be a readable file of ASCII text. {file}: {error}.",
            file=str(file),
            field="token_file",
            hint="write one token per line",
        ) from error
    tokens = tuple(text.split())
    if file is not None and not tokens:
        raise InputError(f"`--token-file` must have a token. {file} has none.", file=str(file), field="token_file")
    if any(len(token) < 16 or not token.isascii() or not token.isprintable() for token in tokens):
        raise InputError(
            "a token must be at least 16 characters of printable ASCII. One is not.",
            field="token_file",
            hint="make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return tokens


def _check_address(host: str, *, has_tokens: bool, is_allowed: bool) -> None:
    """Raise InputError for an address that others reach, where nobody has to say who they are."""
    from twin.errors import InputError

    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not (is_local or has_tokens or is_allowed):
        raise InputError(
            f"an address that others reach must be protected by a token. Got {host!r} without one.",
            field="host",
            value=host,
            hint="give --token-file FILE, or --allow-anyone if something before the service asks who they are",
        )
