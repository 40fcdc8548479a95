"""nginx: upstreams, a map from the header that names the adapter to its upstream, and a server that uses them.

nginx does not read bodies of requests before it routes them, so the adapter must be named in a header. Strings of a map
are compared without case (ngx_http_map_module): names that differ in nothing else are regular expressions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from placer.export.annotation import COMMENT, annotations_in, read_annotation
from placer.export.fleet_table import FleetTable, ReplicaRow, Route
from placer.export.header_value import adapter_of, header_value
from placer.export.routed import routed_replicas
from placer.export.routing_weights import whole_weights
from placer.export.target import Files, Imported, Target, imported
from twin.errors import InputError

MAPS, SERVER = "maps.conf", "server.conf"
UPSTREAM = "$placer_upstream"
ANNOTATED = (
    f"names of replicas and GPU types, all settings, and shares beyond their two decimals are from the comments "
    f"`{COMMENT.strip()}`"
)
_SPLIT = "$placer_split_"
# split_clients takes per cents with two decimals.
_HUNDREDTHS = 10_000
_SPECIAL = frozenset({"default", "hostnames", "include", "volatile"})
_TOKEN = re.compile(r"""\s+|\#[^\n]*|([{};])|"((?:[^"\\]|\\.)*)"|([^\s{};"#]+)""", re.DOTALL)
# Of ngx_hash.c: what an entry takes beside its key, on 64 bits; and nginx's own sizes.
_POINTER = 8
_LEAST_BUCKET = 64
_LEAST_TABLE = 2048
_FEW = 100
# Of as many buckets as keys, none has more than so many, but for one in millions.
_MOST_IN_BUCKET = 12


def quote(text: str) -> str:
    """Return text as a quoted parameter of nginx."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a configuration has without its comments: a mark, ``{``, ``}`` or ``;``, or no mark and a parameter.

    Raises
    ------
    ValueError
        When a quote does not end.
    """
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"a quote does not end, from character {position} on")
        position = match.end()
        mark, quoted, plain = match.groups()
        if quoted is not None:
            yield "", re.sub(r"\\([\\\"'])", r"\1", quoted)
        elif mark or plain:
            yield mark or "", plain or ""


def _write(table: FleetTable) -> dict[str, str]:
    return {MAPS: _maps(table), SERVER: _server(table)}


def _maps(table: FleetTable) -> str:
    routes = table.routes()
    folded = Counter(header_value(name).lower() for name in routes)
    keys = {name: _key(header_value(name), is_alone=folded[header_value(name).lower()] == 1) for name in routes}
    divided = {name: number for number, name in enumerate(n for n, own in routes.items() if len(own) > 1)}
    header = table.options.header
    lines = [f"# Routes of a plan of placer by the header {header}: include this in `http`."]
    lines += _hash_sizes(list(keys.values()))
    for row in table.rows:
        lines += _upstream(table, row)
    for name, number in divided.items():
        lines += _split(number, routes[name])
    lines += ["", f"map $http_{header.lower().replace('-', '_')} {UPSTREAM} {{", '    default "";']
    for name, own in routes.items():
        target = f"{_SPLIT}{divided[name]}" if name in divided else own[0].replica.resource
        lines.append(f"    {quote(keys[name])} {target};")
    return "\n".join([*lines, "}", ""])


def _upstream(table: FleetTable, row: ReplicaRow) -> list[str]:
    return [
        "",
        f"{COMMENT}{table.whole_annotation(row).text()}",
        f"upstream {row.resource} {{",
        f"    server {row.host}:{row.port};",
        "    keepalive 64;",
        # vLLM closes idle connections after five seconds; one that is used just then would be a lost request.
        "    keepalive_timeout 4s;",
        "}",
    ]


def _split(number: int, routes: tuple[Route, ...]) -> list[str]:
    weights = whole_weights([route.share for route in routes], _HUNDREDTHS)
    parts = [f"{weight // 100}.{weight % 100:02d}%" for weight in weights[:-1]]
    pairs = zip([*parts, "*"], routes, strict=True)
    return [
        "",
        f"split_clients $request_id {_SPLIT}{number} {{",
        *(f"    {part} {route.replica.resource};" for part, route in pairs),
        "}",
    ]


def _server(table: FleetTable) -> str:
    header = table.options.header
    return f"""\
# A server that routes by the header {header}: include this in `http`, after {MAPS}.
server {{
    listen {table.options.router_port};
    # Prompts with images or many texts are larger than nginx's own 1 MiB.
    client_max_body_size 64m;

    location / {{
        if ({UPSTREAM} = "") {{
            return 404 "no replica serves the adapter that the header {header} names";
        }}
        proxy_pass http://{UPSTREAM};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # Tokens are streamed one by one.
        proxy_buffering off;
        proxy_read_timeout 3600s;
    }}
}}
"""


def _hash_sizes(keys: list[str]) -> list[str]:
    """Return the sizes of the map's hash table where nginx's own are too small: all keys of a bucket must fit."""
    longest = max((len(key) for key in keys), default=0)
    entry = _POINTER + -(-(longest + 2) // _POINTER) * _POINTER
    if len(keys) <= _FEW and entry + _POINTER <= _LEAST_BUCKET:
        return []
    return [
        f"map_hash_bucket_size {_power_of_two(_MOST_IN_BUCKET * entry + _POINTER)};",
        f"map_hash_max_size {_power_of_two(max(2 * len(keys), _LEAST_TABLE))};",
    ]


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _key(value: str, *, is_alone: bool) -> str:
    """Return the map's key for a value of the header, which is alone if no other is like it but for case."""
    if not is_alone:
        return f"~^{re.escape(value)}$"
    return f"\\{value}" if value in _SPECIAL or value[:1] in ("~", "\\") else value


def _value_of(key: str) -> str:
    if key.startswith("~^"):
        return re.sub(r"\\(.)", r"\1", key.removeprefix("~^").removesuffix("$"))
    return key.removeprefix("\\")


def _read(files: Files) -> Imported:
    if MAPS not in files:
        raise InputError(f"an export for nginx must have {MAPS}. It has {', '.join(files) or 'nothing'}.")
    text = files[MAPS]
    try:
        blocks = dict(_blocks(text))
        splits = {name: _weights(content) for name, content in blocks.items() if name.startswith(_SPLIT)}
        entries = {key: target for key, target in blocks.get(UPSTREAM, ()) if key != "default"}
        weights = {adapter_of(_value_of(key)): splits.get(target, {target: 1}) for key, target in entries.items()}
    except (ValueError, IndexError) as error:
        raise InputError(f"{MAPS} must be as `placer export` wrote it. {error}.", file=MAPS) from error
    upstreams = [name for name in blocks if not name.startswith("$")]
    notes = [read_annotation(note, where=MAPS) for note in annotations_in(text)]
    if len(notes) != len(upstreams):
        raise InputError(f"{MAPS} must have an annotation before each upstream.", file=MAPS)
    annotations = dict(zip(upstreams, notes, strict=True))
    return imported(annotations, routed_replicas(annotations, weights), annotated=ANNOTATED)


def _blocks(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the name of each block, the last parameter before its brace, with the pairs in it."""
    before: list[str] = []
    words = tokens(text)
    for mark, word in words:
        if mark == "{":
            yield before[-1], list(_pairs(words))
        before = [] if mark else [*before, word]


def _pairs(words: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    entry: list[str] = []
    for mark, word in words:
        if mark == "}":
            return
        if mark == ";":
            first, second = entry
            yield first, second
        entry = [] if mark else [*entry, word]
    raise ValueError("a block does not end")


def _weights(content: list[tuple[str, str]]) -> dict[str, int]:
    """Return the hundredths of a per cent of each upstream."""
    found: dict[str, int] = {}
    for part, target in content:
        found[target] = _HUNDREDTHS - sum(found.values()) if part == "*" else round(float(part.removesuffix("%")) * 100)
    return found


TARGET = Target(name="nginx", write=_write, read=_read)
