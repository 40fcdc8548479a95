"""systemd units: a service for each replica, and a target for those of a host (systemd.service, systemd.syntax)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from placer.export.annotation import read_annotation
from placer.export.fleet_table import FleetTable, ReplicaRow
from placer.export.target import Files, Imported, Target, imported, replica_of_arguments
from twin.errors import InputError

ANNOTATED = (
    "names of replicas and GPU types, shares, and settings that are no arguments of vLLM are from the section "
    "`X-Placer`, which systemd ignores"
)
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "$": "$$", "%": "%%", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "s": " ", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_EXEC = "ExecStart="
_NOTE = "Plan="


def quote_words(words: Iterable[str]) -> str:
    """Return words as a command line of a unit, which expands neither specifiers nor variables in them."""
    return " ".join(word if _PLAIN.fullmatch(word) else f'"{"".join(map(_escape, word))}"' for word in words)


def split_words(line: str) -> list[str]:
    """Return the words of a command line of a unit.

    Raises
    ------
    ValueError
        When a quote or an escape does not end.
    """
    words: list[str] = []
    position = 0
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        word, position = _next_word(line, position)
        words.append(word.replace("%%", "%").replace("$$", "$"))
    return words


def _write(table: FleetTable) -> dict[str, str]:
    prefix = table.options.name_prefix
    hosts = dict.fromkeys(row.host for row in table.rows)
    if table.options.in_cluster:
        raise InputError(
            "units must be for hosts. `in_cluster` gives replicas the names of Services.",
            field="in_cluster",
            hint="export units on their own, with `hosts`",
        )
    files = {f"{row.host}/{row.resource}.service": _unit(table, row) for row in table.rows}
    for host in hosts:
        services = " ".join(f"{row.resource}.service" for row in table.rows if row.host == host)
        files[f"{host}/{prefix}.target"] = "\n".join(
            [
                "[Unit]",
                "Description=All vLLM replicas of a plan on this host",
                f"Wants={services}",
                "",
                "[Install]",
                "WantedBy=multi-user.target",
                "",
            ]
        )
    return files


def _unit(table: FleetTable, row: ReplicaRow) -> str:
    options = table.options
    command = quote_words((options.vllm, "serve", *table.serve_arguments(row, port=row.port)))
    return "\n".join(
        [
            "[Unit]",
            f"Description=vLLM replica {row.resource}",
            "Wants=network-online.target",
            "After=network-online.target",
            f"PartOf={options.name_prefix}.target",
            "",
            "[Service]",
            "Type=exec",
            *(f'Environment="{name}={value}"' for name, value in table.host_environment(row).items()),
            f"{_EXEC}{command}",
            "Restart=on-failure",
            "RestartSec=5",
            "",
            "[Install]",
            f"WantedBy={options.name_prefix}.target",
            "",
            "[X-Placer]",
            f"{_NOTE}{table.annotation(row).text()}",
            "",
        ]
    )


def _read(files: Files) -> Imported:
    annotations, replicas = {}, {}
    for path, text in files.items():
        if path.endswith(".target"):
            continue
        lines = text.split("\n")
        try:
            words = split_words(_value(lines, _EXEC) or "")
        except ValueError as error:
            raise InputError(f"a unit must be quoted for systemd. {path}: {error}.", file=path) from error
        if words[1:2] != ["serve"]:
            raise InputError(f"a unit of an export must start `vllm serve`. {path} does not.", file=path)
        annotations[path] = read_annotation(_value(lines, _NOTE), where=path)
        replicas[path] = replica_of_arguments(words[2:], annotations[path], where=path)
    return imported(annotations, replicas, annotated=ANNOTATED)


def _value(lines: list[str], key: str) -> str | None:
    return next((line.removeprefix(key) for line in lines if line.startswith(key)), None)


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in character.encode())


def _next_word(line: str, position: int) -> tuple[str, int]:
    """Return the word that begins at a position, and the position after it."""
    quote, content = "", bytearray()
    while position < len(line):
        character = line[position]
        position += 1
        if character == "\\":
            piece, position = _unescape(line, position)
            content += piece
        elif quote:
            quote = "" if character == quote else quote
            content += b"" if not quote else character.encode()
        elif character in "\"'":
            quote = character
        elif character.isspace():
            break
        else:
            content += character.encode()
    if quote:
        raise ValueError(f"the quote {quote} does not end")
    return content.decode(), position


def _unescape(line: str, position: int) -> tuple[bytes, int]:
    if position >= len(line):
        raise ValueError("a backslash must not be the last character")
    character = line[position]
    if character == "x":
        return bytes([int(line[position + 1 : position + 3], 16)]), position + 3
    return _ESCAPED.get(character, character).encode(), position + 1


TARGET = Target(name="systemd", write=_write, read=_read)
