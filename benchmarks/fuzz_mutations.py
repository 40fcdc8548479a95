"""Damage documents: fields, types, numbers, nesting, encodings and bytes, in the formats that placer reads.

Every choice is drawn from the `random.Random` that is given, so that a seed, or Hypothesis, decides the input.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Mutate = Callable[[bytes, Random], bytes]

_DEEP_LIST: list[Any] = []
for _ in range(60):
    _DEEP_LIST = [_DEEP_LIST]

# What a field is replaced by: other types, ends of ranges, numbers that overflow, texts that mean something elsewhere.
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e-308, 1e308, -1e308, 0.5, -0.0,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "-1", "1e999", "nan", "true", "null", "\x00", "\x1b[31m",
    "\ud800", "\u202e", "ß" * 50, "x" * 5000, "../../../../etc/passwd", "/dev/null", "/", ".", "file:/etc/passwd",
    "zipf:nan", "dirichlet:-1", "2001-99-99", "12:34:56:78", "%s%n", "${HOME}", "{0.__class__}", "regex:(a+)+$", "*",
    [], {}, [[]], [None], {"": None}, {"name": {}}, list(range(300)), _DEEP_LIST,
)  # fmt: skip
_NAMES = ("name", "rank", "rate_rps", "mean", "std", "max", "seed", "file", "profile", "kind", "id", "__class__", "<<")

# YAML that means more, or does more, than its length says.
_YAML_PARTS: tuple[str, ...] = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "m0: &m0 {k: v}\n" + "".join(f"m{n + 1}: &m{n + 1} {{<<: [{', '.join([f'*m{n}'] * 9)}]}}\n" for n in range(8)),
    "model: &model [*model]\n",
    "adapters: &adapters\n  - *adapters\n",
    "model: !!python/object/apply:os.system ['exit 1']\n",
    "model: !!python/name:os.system\n",
    "model: !unknown {a: 1}\n",
    "model: !!binary '@@@'\n",
    "model: !!timestamp 2001-99-99\n",
    "model: 2001-02-30\n",
    "model: !!int 'x'\n",
    "model: !!float ''\n",
    "model: !!int ''\n",
    "model: !!bool maybe\n",
    "model: !!set {a, b}\n",
    "model: !!omap [a: 1, a: 2]\n",
    "model: " + "9" * 5000 + "\n",
    "model: 190:20:30:" + "9" * 400 + "\n",
    "? [a, b]\n: 1\n",
    "? {a: 1}\n: 1\n",
    "? &k [*k]\n: 1\n",
    "<<: [1, 2]\n",
    "<<: text\n",
    "=: 1\n",
    "model: *nowhere\n",
    "%YAML 9.9\n---\nmodel: x\n",
    "--- 1\n--- 2\n",
    "model: " + "[" * 3000 + "\n",
    "model: " + "{a: " * 3000 + "\n",
    "a:\n" + "".join(" " * n + "- \n" for n in range(1, 400)),
    "- " * 3000 + "\n",
    "\tmodel: x\n",
    "model: 'never closed\n",
    "model: |9\n  x\n",
    'model: "\\ud800"\n',
    'model: "\\x00"\n',
)
_YAML_MARKS = ("&x ", "*x", "!!set ", "- ", ": ", "? ", "|\n", "\t", "#", "'", "{", "]")
JSON_PARTS: tuple[str, ...] = (
    "[" * 100_000,
    '{"a":' * 100_000,
    "9" * 5000,
    '"\\ud800"',
    "NaN",
    "-Infinity",
    "1e999",
    "{}",
    "[]",
    "null",
    '""',
    '{"schema_version": 1}',
)


_STRANGE_BYTES = (b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\r", b"\x85")
_STRANGE_FILES = (b"", b"\x00" * 1000, b"\n", b"\xef\xbb\xbf", bytes(range(256)), b"PAR1PAR1", b"\x1f\x8b")


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Return `content` cut off, with bytes changed, inserted, removed or repeated, or in another encoding."""
    at, length = random.randrange(len(content) + 1), random.randrange(1, 64)
    before, part, after = content[:at], content[at : at + length], content[at + length :]
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: before,
        lambda: before + after,
        lambda: before + bytes(random.randrange(256) for _ in range(length)) + after,
        lambda: before + part * random.choice((2, 100)) + after,
        lambda: before + random.choice(_STRANGE_BYTES) + part + after,
        lambda: _in_other_encoding(content, random),
        lambda: random.choice(_STRANGE_FILES),
        lambda: _with_other_bits(content, random),
    )
    return random.choice(changes)()


def _in_other_encoding(content: bytes, random: Random) -> bytes:
    try:
        return content.decode("utf-8").encode(random.choice(("utf-16", "utf-32", "latin-1", "utf-7")))
    except UnicodeError:
        return content[::-1]


def _with_other_bits(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.randrange(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def mutate_value(value: Any, random: Random, *, most: int = 3) -> Any:
    """Return a copy of plain values with up to `most` of them replaced, removed, renamed, repeated or moved."""
    changed = [copy.deepcopy(value)]
    for _ in range(random.randrange(1, most + 1)):
        owner, key = random.choice(_places(changed))
        _mutate_at(owner, key, random, changed)
    return changed[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Return (container, key) of all values, the outermost first; deeply nested ones are left out."""
    places: list[tuple[Any, Any]] = [(root, 0)]
    position = 0
    while position < len(places) and len(places) < 4000:
        owner, key = places[position]
        inner = owner[key]
        if isinstance(inner, dict):
            places += [(inner, name) for name in inner]
        elif isinstance(inner, list):
            places += [(inner, index) for index in range(len(inner))]
        position += 1
    return places


def _mutate_at(owner: Any, key: Any, random: Random, root: list[Any]) -> None:
    kind = random.randrange(10)
    value = owner[key]
    if kind <= 3:
        owner[key] = copy.deepcopy(random.choice(HOSTILE_VALUES))
    elif kind == 4 and owner is not root:
        del owner[key]
    elif kind == 5 and isinstance(owner, dict):
        owner[random.choice((*_NAMES, str(key)[:-1], f"{key}s", str(key).upper()))] = owner.pop(key)
    elif kind == 6 and isinstance(value, int | float) and abs(value) < 1e18:
        owner[key] = value * random.choice((-1, 0, 1e-9, 1e9, 1e300, 1000))
    elif kind == 7 and isinstance(value, list):
        owner[key] = value * random.choice((0, 2, 40))
    elif kind == 8 and isinstance(value, dict):
        value[random.choice(_NAMES)] = copy.deepcopy(random.choice(HOSTILE_VALUES))
    elif kind == 9:
        other, name = random.choice(_places(root))
        owner[key] = copy.deepcopy(other[name])
    else:
        owner[key] = str(value) if not isinstance(value, str) else [value]


def mutate_json(content: bytes, random: Random) -> bytes:
    """Return a damaged JSON document."""
    kind = random.randrange(12)
    if kind == 0:
        return mutate_bytes(content, random)
    if kind == 1:
        return random.choice(JSON_PARTS).encode()
    text = json_text(mutate_value(json.loads(content), random))
    if kind == 2:
        text = _with_repeated_key(text, random)
    if kind == 3:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(JSON_PARTS[2:]) + text[at:]
    return text.encode("utf-8", errors="surrogatepass")


def mutate_json_lines(content: bytes, random: Random) -> bytes:
    """Return a damaged document of one JSON value a line."""
    lines = content.splitlines(keepends=True)
    if random.randrange(5) == 0 or not lines:
        return mutate_bytes(content, random)
    for _ in range(random.randrange(1, 3)):
        at = random.randrange(len(lines))
        try:
            lines[at] = mutate_json(lines[at].strip(), random) + b"\n"
        except (ValueError, RecursionError):
            # What the round before made of the line.
            lines[at] = mutate_bytes(lines[at], random)
    return b"".join(lines)


def mutate_yaml(content: bytes, random: Random) -> bytes:
    """Return a damaged YAML document."""
    kind = random.randrange(10)
    if kind == 0:
        return mutate_bytes(content, random)
    if kind == 1:
        part = random.choice(_YAML_PARTS)
        return part.encode() if random.randrange(2) else content + b"\n" + part.encode()
    value = mutate_value(yaml.safe_load(content), random)
    if kind <= 6:
        return json_text(value).encode("utf-8", errors="surrogatepass")
    text = yaml.safe_dump(value, allow_unicode=bool(random.randrange(2)), sort_keys=False)
    if kind == 7:
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(_YAML_MARKS) + text[at:]
    return text.encode("utf-8", errors="surrogatepass")


def mutate_csv(content: bytes, random: Random) -> bytes:
    """Return a damaged table of text."""
    kind = random.randrange(8)
    if kind == 0:
        return mutate_bytes(content, random)
    rows = [line.split(",") for line in content.decode("utf-8").splitlines()]
    for _ in range(random.randrange(1, 4)):
        row = random.choice(rows)
        at = random.randrange(len(row))
        if kind <= 4:
            row[at] = _cell(random.choice(HOSTILE_VALUES))
        elif kind == 5:
            row[at : at + random.randrange(2)] = [row[at]] * random.randrange(3)
            row += [] if row else [""]
        elif kind == 6:
            rows[random.randrange(len(rows))] = list(random.choice(rows))
        else:
            rows[0][random.randrange(len(rows[0]))] = random.choice(_NAMES)
    separator = random.choice((",",) * 6 + (";", "\t"))
    return "\n".join(separator.join(row) for row in rows).encode("utf-8", errors="surrogatepass") + b"\n"


def mutate_text(content: bytes, random: Random) -> bytes:
    """Return text with lines changed, moved, repeated or removed."""
    lines = content.splitlines(keepends=True)
    if random.randrange(4) == 0 or not lines:
        return mutate_bytes(content, random)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(lines))
        kind = random.randrange(4)
        if kind == 0:
            lines[at] = mutate_bytes(lines[at], random)
        elif kind == 1:
            words = lines[at].split(b" ")
            words[random.randrange(len(words))] = _cell(random.choice(HOSTILE_VALUES)).encode(errors="surrogatepass")
            lines[at] = b" ".join(words) + b"\n"
        elif kind == 2:
            lines[at], lines[random.randrange(len(lines))] = lines[random.randrange(len(lines))], lines[at]
        elif len(lines) > 1:
            del lines[at]
    return b"".join(lines)


def mutate_parquet(content: bytes, random: Random) -> bytes:
    """Return a damaged Parquet file, or a whole one with other columns, types and values."""
    if random.randrange(2):
        return mutate_bytes(content, random)
    table = pq.read_table(io.BytesIO(content))
    for _ in range(random.randrange(1, 4)):
        if table.num_columns:
            table = _changed_table(table, random)
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer, compression=random.choice(("snappy", "zstd", "none")))
    except (pa.ArrowException, ValueError):
        # Such as names that Parquet cannot hold twice.
        return mutate_bytes(content, random)
    return buffer.getvalue()


def _changed_table(table: pa.Table, random: Random) -> pa.Table:
    at, kind = random.randrange(table.num_columns), random.randrange(7)
    name, count = table.column_names[at], table.num_rows
    if kind == 0:
        return table.remove_column(at)
    if kind == 1:
        names = [*table.column_names[:at], random.choice((*_NAMES, "")), *table.column_names[at + 1 :]]
        return table.rename_columns(names)
    if kind == 2:
        return table.slice(0, random.choice((0, 1)))
    columns: list[Callable[[], pa.Array]] = [
        lambda: pa.nulls(count),
        lambda: pa.array([None if random.randrange(3) == 0 else row for row in range(count)], type=pa.int64()),
        lambda: pa.array([random.choice((float("nan"), float("inf"), -1.0, 1e308, 0.0)) for _ in range(count)]),
        lambda: pa.array(["x"] * count),
        lambda: pa.array([[1, 2]] * count),
        lambda: pa.array([{"a": 1}] * count),
        lambda: pa.array([b"\xff"] * count),
        lambda: pa.array([-1] * count, type=pa.int64()),
        lambda: pa.array([2**63 - 1] * count, type=pa.int64()),
        lambda: pa.array([True] * count),
        lambda: pa.array([0] * count, type=pa.timestamp("ns")),
        lambda: pa.array(["a"] * count).dictionary_encode(),
        lambda: pa.array([0] * count, type=pa.duration("s")),
    ]
    return table.set_column(at, name, random.choice(columns)())


def json_text(value: Any) -> str:
    """Return plain values as JSON, and as what looks like it where they are none."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _with_repeated_key(text: str, random: Random) -> str:
    at = text.find("{", random.randrange(len(text) + 1))
    return text if at < 0 else f'{text[: at + 1]}"name": 1, "name": 2, {text[at + 1 :]}'.replace(", }", "}")


def _cell(value: Any) -> str:
    return str(value)[:2000].replace("\n", " ")
