"""``vllm serve`` commands: a shell script for each replica."""

from __future__ import annotations

import shlex

from placer.export.annotation import COMMENT, annotations_in, read_annotation
from placer.export.fleet_table import FleetTable, ReplicaRow
from placer.export.target import Files, Imported, Target, imported, replica_of_arguments
from twin.errors import InputError

ANNOTATED = (
    "names of replicas and GPU types, shares, and settings that are no arguments of vLLM are from the comment "
    f"`{COMMENT.strip()}` of each file"
)


def serve_command(table: FleetTable, row: ReplicaRow) -> str:
    """Return the command of a replica, quoted for a POSIX shell."""
    return shlex.join((table.options.vllm, "serve", *table.serve_arguments(row, port=row.port)))


def _write(table: FleetTable) -> dict[str, str]:
    return {f"{row.resource}.sh": _script(table, row) for row in table.rows}


def _script(table: FleetTable, row: ReplicaRow) -> str:
    if table.options.in_cluster:
        variables = table.environment(row, allows_loading=table.options.allow_runtime_loading)
    else:
        variables = table.host_environment(row)
    return "\n".join(
        [
            "#!/bin/sh",
            f"# One replica of a plan of placer, for GPU {row.gpu} of {row.host}.",
            f"{COMMENT}{table.annotation(row).text()}",
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"exec {serve_command(table, row)}",
            "",
        ]
    )


def _read(files: Files) -> Imported:
    annotations, replicas = {}, {}
    for path, text in files.items():
        head, found, command = text.partition("\nexec ")
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"a command must be quoted for a shell. {path}: {error}.", file=path) from error
        if not found or words[1:2] != ["serve"]:
            raise InputError(f"a script of an export must end with `exec vllm serve ...`. {path} does not.", file=path)
        noted = annotations_in(head)
        annotations[path] = read_annotation(noted[0] if noted else None, where=path)
        replicas[path] = replica_of_arguments(words[2:], annotations[path], where=path)
    return imported(annotations, replicas, annotated=ANNOTATED)


TARGET = Target(name="vllm", write=_write, read=_read)
