"""Exit codes, and how errors leave the program: `error:` and `hint:` lines on standard error, no traceback."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from placer.plan_document import Plan
    from twin.errors import PlacerError

OK = 0
BUG = 1
BAD_INPUT = 2
INFEASIBLE = 3
NO_SOLUTION = 4
REJECTED = 5
BACKEND_FAILED = 6
INTERRUPTED = 130

P = ParamSpec("P")


def reports_errors(command: Callable[P, int]) -> Callable[P, None]:
    """Make a command that returns its exit code leave with it, and turn exceptions into messages and codes.

    With the command's option ``verbose``, the traceback comes first.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(_run(command, *args, **kwargs))

    return run


def exit_code_of(plan: Plan) -> int:
    """Return the exit code that a plan stands for."""
    if plan.termination == "interrupted":
        return INTERRUPTED
    if plan.verdict == "none":
        codes = {"proven": INFEASIBLE, "error": BACKEND_FAILED}
        return codes.get(plan.termination, NO_SOLUTION)
    return REJECTED if plan.verdict == "rejected" else OK


def print_error(message: str, *, hint: str | None = None) -> None:
    """Print an error, and what to do about it."""
    _print_labelled("error", message, typer.colors.RED)
    if hint:
        print_hint(hint)


def print_warning(message: str) -> None:
    """Print a warning."""
    _print_labelled("warning", message, typer.colors.YELLOW)


def print_hint(message: str) -> None:
    """Print what can be done."""
    _print_labelled("hint", message, typer.colors.CYAN)


def print_note(message: str) -> None:
    """Print progress, or what was done, for people."""
    typer.echo(message, err=True)


def print_written(path: Path) -> None:
    """Print that a file was written; of standard output the user sees it."""
    from twin.atomic_write import is_standard_output

    if not is_standard_output(path):
        print_note(f"wrote {path}")


def _print_labelled(label: str, message: str, color: str) -> None:
    is_colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    shown = typer.style(f"{label}:", fg=color, bold=True) if is_colored else f"{label}:"
    typer.echo(f"{shown} {message}", err=True)


def _run(command: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    is_verbose = bool(kwargs.get("verbose"))
    try:
        from twin.errors import PlacerError

        return command(*args, **kwargs)
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _print_traceback(is_shown=is_verbose)
        print_error("interrupted before there was anything to report.")
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_broken_pipe()
    except PlacerError as error:
        _print_traceback(is_shown=is_verbose)
        print_error(error.message, hint=error.hint)
        return _code_of(error)
    except MemoryError as error:
        _print_traceback(is_shown=is_verbose)
        print_error(
            f"this takes more memory than there is. {error}".rstrip(),
            hint="look for a rate in another unit than requests per second, or simulate a shorter --horizon",
        )
        return BACKEND_FAILED
    except Exception as error:  # noqa: BLE001 - the last resort of the program
        _print_traceback(is_shown=is_verbose)
        print_error(
            f"this is a bug of placer: {type(error).__name__}: {error}",
            hint="please report it with the command, the problem file and the output of the same command with -v",
        )
        return BUG


def _print_traceback(*, is_shown: bool) -> None:
    if is_shown:
        traceback.print_exc()


def _leave_broken_pipe() -> int:
    """Return quietly when the reader of standard output is gone, such as `head`."""
    # Python flushes standard output once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _code_of(error: PlacerError) -> int:
    """Return the exit code of an error: what the user can correct in the input is 2, what failed here is 6."""
    from twin.errors import NoSolutionError, SolverError, TwinError

    if isinstance(error, NoSolutionError):
        return NO_SOLUTION
    if isinstance(error, TwinError) or isinstance(error.__cause__, ImportError):
        return BACKEND_FAILED
    if isinstance(error, SolverError):
        from solvers.registry import solver_names

        is_unknown = error.field == "solver" and error.value not in solver_names()
        return BAD_INPUT if is_unknown else BACKEND_FAILED
    return BAD_INPUT
