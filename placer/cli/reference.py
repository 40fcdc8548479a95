"""Print docs/cli-reference.md: every command with its arguments and options, as the program itself describes them.

Usage: ``python -m placer.cli.reference > docs/cli-reference.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from placer.cli.application import app

_HEAD = """# Commands

Every command of `placer`, as `placer COMMAND --help` describes it. Made by `python -m placer.cli.reference`; do not
edit it. Data goes to standard output, everything else to standard error. Exit codes: 0 fine, 2 bad input, 3 proven
infeasible, 4 nothing within the budget, 5 the twin rejects the plan, 6 a library or backend failed or is missing,
130 interrupted.
"""


def cli_reference() -> str:
    """Return the document."""
    group: Any = typer.main.get_command(app)
    parts = [_HEAD]
    for name, command in group.commands.items():
        parts.append("\n".join(_section(name, command)))
    return "\n".join(parts)


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [entry for entry in command.params if entry.param_type_name == "argument"]
    options = [entry for entry in command.params if entry.param_type_name == "option" and entry.name != "help"]
    usage = " ".join(["placer", name, *(_usage_of(entry) for entry in arguments), "[OPTIONS]" if options else ""])
    yield f"## placer {name}\n"
    yield f"```\n{usage.strip()}\n```\n"
    yield f"{' '.join((command.help or '').split())}\n"
    if arguments or options:
        yield "| argument or option | default | what it is |\n|---|---|---|"
    for entry in arguments:
        yield _row(f"`{entry.name.upper()}`", entry)
    for entry in options:
        spellings = ", ".join(f"`{spelling}`" for spelling in [*entry.opts, *entry.secondary_opts])
        yield _row(spellings, entry)
    yield ""


def _usage_of(entry: Any) -> str:
    name = entry.name.upper()
    several = "..." if entry.nargs == -1 else ""
    return f"{name}{several}" if entry.required else f"[{name}{several}]"


def _row(shown: str, entry: Any) -> str:
    default = entry.default
    is_none = default is None or callable(default) or (isinstance(default, list | tuple) and not default)
    if isinstance(default, bool):
        value = "on" if default else "off"
    else:
        value = "" if is_none or entry.required else f"`{default}`"
    text = " ".join((entry.help or "").split()).replace("|", "\\|")
    return f"| {shown} | {value} | {text} |"


if __name__ == "__main__":
    sys.stdout.write(cli_reference())
