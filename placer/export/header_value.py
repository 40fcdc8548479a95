"""Adapter names as values of an HTTP header, and back."""

from __future__ import annotations

from urllib.parse import quote, unquote

# RFC 9110: visible ASCII and, inside, spaces. The percent sign is what marks everything else.
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def header_value(name: str) -> str:
    """Return the header's value for an adapter: its name, with UTF-8 bytes that no header can have as ``%XX``."""
    inner = quote(name, safe=_SAFE)
    start, end = len(inner) - len(inner.lstrip(" ")), len(inner) - len(inner.rstrip(" "))
    if start == len(inner):
        return "%20" * start
    return "%20" * start + inner.strip(" ") + "%20" * end


def adapter_of(value: str) -> str:
    """Return the adapter that a header's value stands for."""
    return unquote(value, errors="strict")
