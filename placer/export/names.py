"""Names that a target allows, made of any names: the same name gives the same one, whatever stands beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# Labels and Services are limited to 63 characters; what follows a name (a pod's suffix) needs some of them.
LONGEST = 52
_VALID = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_OTHER = re.compile(r"[^a-z0-9]+")
_DIGEST = 8


def resource_names(names: Iterable[str], *, prefix: str = "") -> dict[str, str]:
    """Return an RFC 1123 name, which is one of RFC 1035, too, for each of some different names.

    A name that is valid already stays; any other gets its letters and digits, and a digest of all of it, so that names
    which differ in other characters only stay apart, and none depends on what else is named.

    Parameters
    ----------
    prefix
        Put before each, with a hyphen; itself valid, or empty.

    Returns
    -------
    dict
        By name: at most `LONGEST` characters, lower-case letters, digits and hyphens, from a letter on.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    # Valid names first: they keep what they are.
    ordered = sorted(
        dict.fromkeys(names), key=lambda name: (_made(name, prefix, _DIGEST) != _joined(prefix, name), name)
    )
    for name in ordered:
        length = _DIGEST
        while (made := _made(name, prefix, length)) in taken:
            length += 1
        taken.add(made)
        found[name] = made
    return found


def _made(name: str, prefix: str, length: int) -> str:
    joined = _joined(prefix, name)
    if len(joined) <= LONGEST and _VALID.fullmatch(joined) and length == _DIGEST:
        return joined
    digest = hashlib.sha256(name.encode()).hexdigest()[:length]
    words = _OTHER.sub("-", joined.lower()).strip("-")
    words = words if words[:1].isalpha() else f"x-{words}".rstrip("-")
    return f"{words[: LONGEST - length - 1].rstrip('-')}-{digest}"


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}-{name}" if prefix else name
