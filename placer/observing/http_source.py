"""Get pages over HTTP: answers of Prometheus, and pages of metrics; of limited size, in limited time."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from twin.errors import InputError, TwinError

DEFAULT_TIMEOUT_S = 30.0
MIB = 2**20
DEFAULT_MOST_BYTES = 64 * MIB
_CHUNK_BYTES = 65536
_SHOWN = 200


@dataclass(frozen=True)
class HttpAccess:
    """How sources are asked.

    Attributes
    ----------
    token
        Sent as a bearer token; ``None``: none. It goes to the address that is given and nowhere else: redirections are
        not followed.
    timeout_s
        Of a whole answer, > 0.
    most_bytes
        Of an answer, > 0.
    """

    token: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    most_bytes: int = DEFAULT_MOST_BYTES


@dataclass(frozen=True)
class Page:
    """An answer, and the clock of who gave it (unix seconds; ``None``: not told)."""

    content: bytes
    server_time_s: float | None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuse redirections: a token must not go elsewhere."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        """Follow nothing."""


def get_page(url: str, access: HttpAccess, *, parameters: Mapping[str, str] | None = None) -> Page:
    """Return what an address answers; with `parameters` it is asked by POST, as long queries must be.

    Raises
    ------
    InputError
        When the address is none of http(s) or has a password, refuses the token or the question, or answers too much.
    TwinError
        When it does not answer, or not in time.
    """
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise InputError(f"an address must begin with http:// or https://. Got {url!r}.", field="source", value=url)
    if urllib.parse.urlsplit(url).username is not None:
        raise InputError(
            "an address must have no password: it would be shown.",
            field="source",
            hint="set PROMETHEUS_TOKEN, or name another variable (--token-env) or a file (--token-file)",
        )
    data = None if parameters is None else urllib.parse.urlencode(parameters).encode()
    headers = {"Accept": "application/json, text/plain"}
    if access.token is not None:
        headers["Authorization"] = f"Bearer {access.token}"
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - http(s) only, see above
    until = time.monotonic() + access.timeout_s
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=access.timeout_s) as answer:
            content = _read(answer, url, access, until)
            return Page(content, _date(answer.headers.get("Date")))
    except urllib.error.HTTPError as error:
        raise _refusal(error, url) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise TwinError(
            f"{url} must answer within {access.timeout_s:g} s. It does not: {reason or type(error).__name__}.",
            field="source",
            value=url,
            hint="check the address, or wait for it longer: --timeout",
        ) from error


def _read(answer: Any, url: str, access: HttpAccess, until: float) -> bytes:
    parts, size = [], 0
    while part := answer.read(_CHUNK_BYTES):
        size += len(part)
        if size > access.most_bytes:
            raise InputError(
                f"an answer must have at most {access.most_bytes / MIB:.3g} MiB. That of {url} has more.",
                field="source",
                value=url,
                hint="give a shorter --window, a --selector of fewer servers, or a larger --max-mib",
            )
        if time.monotonic() > until:
            raise TimeoutError("its answer is not complete")
        parts.append(part)
    return b"".join(parts)


def _refusal(error: urllib.error.HTTPError, url: str) -> InputError | TwinError:
    said = _said(error.read(_CHUNK_BYTES))
    if error.code in {401, 403}:
        return InputError(
            f"{url} must accept the token. It answers {error.code}{said}.",
            field="token",
            hint="set PROMETHEUS_TOKEN, or name another variable (--token-env) or a file (--token-file)",
        )
    if 300 <= error.code < 400:
        return InputError(
            f"{url} must answer itself. It redirects to {error.headers.get('Location')}.",
            field="source",
            value=url,
            hint="give that address, if it is to be trusted with a token",
        )
    kind = TwinError if error.code >= 500 else InputError
    return kind(f"{url} must answer. It answers {error.code}{said}.", field="source", value=url)


def _said(content: bytes) -> str:
    """Return what an error says, with a colon before it."""
    text = content.decode("utf-8", "replace").strip()
    try:
        text = str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = "" if text.startswith("<") else text
    return f": {' '.join(text.split())[:_SHOWN]}" if text else ""


def _date(header: str | None) -> float | None:
    try:
        return parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None
