"""The program `placer`: its commands, and what happens with arguments that it does not understand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from placer.cli.advise import advise
from placer.cli.calibrate import calibrate
from placer.cli.compare import compare
from placer.cli.dataset import dataset
from placer.cli.exits import BAD_INPUT, OK, print_error
from placer.cli.explain import explain
from placer.cli.export import export, import_export
from placer.cli.measure import measure
from placer.cli.observe import observe
from placer.cli.replan import replan
from placer.cli.report import report
from placer.cli.routing import routing
from placer.cli.schema import schema
from placer.cli.serve import serve
from placer.cli.simulate import simulate
from placer.cli.solve import solve
from placer.cli.solvers import solvers
from placer.cli.surrogate import surrogate
from placer.cli.train import train
from placer.cli.train_configuration import train_configuration
from placer.cli.validate import validate
from placer.cli.verify import verify
from placer.cli.whatif import whatif
from placer.cli.workload import workload

# Typer brings its own copy of Click or uses the installed one, depending on its version; this is the class in either.
_UsageError: Any = typer.BadParameter.__base__


class PlacerGroup(TyperGroup):
    """A group of commands that reports wrong usage as `placer` reports every error: in two lines, exit code 2."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Run a command and leave the process with its exit code."""
        options["standalone_mode"] = False
        try:
            code = super().main(args, *arguments, **options)
        except _UsageError as error:
            usage: Any = error
            path = usage.ctx.command_path if usage.ctx is not None else "placer"
            print_error(usage.format_message(), hint=f"see `{path} --help`")
            sys.exit(BAD_INPUT)
        except typer.Abort:
            sys.exit(BAD_INPUT)
        sys.exit(code if isinstance(code, int) else OK)


app = typer.Typer(
    cls=PlacerGroup,
    name="placer",
    help="Place many LoRA adapters on as few vLLM GPUs as serve their traffic, checked by a digital twin.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    solve,
    verify,
    replan,
    compare,
    whatif,
    report,
    export,
    explain,
    simulate,
    advise,
    routing,
    validate,
    calibrate,
    measure,
    dataset,
    train,
    train_configuration,
    surrogate,
    workload,
    observe,
    solvers,
    schema,
    serve,
)
for command in COMMANDS:
    app.command()(command)
# `import` is a word of Python.
app.command("import")(import_export)


def _print_version(value: bool) -> None:  # noqa: FBT001 - the signature that Typer calls
    if value:
        from placer.provenance import placer_version

        typer.echo(f"placer {placer_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def describe(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Place many LoRA adapters on as few vLLM GPUs as serve their traffic, checked by a digital twin."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(BAD_INPUT)
