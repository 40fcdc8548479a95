"""One HTML page with its styles, its program and its data: it asks for nothing from outside of it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from placer.html_page import render_page

TEMPLATE = "report.html"
# What every page has, in the order in which it is loaded.
_COMMON_SCRIPTS = ("core.js", "charts.js", "table.js")
_LAST_SCRIPT = "start.js"


@dataclass(frozen=True)
class Page:
    """What is shown.

    Attributes
    ----------
    title, subtitle
        Of the page; plain text.
    scripts, start
        Files of `placer/report/web` that draw it, and the function of theirs that gets the page's main element.
    data
        What they draw: plain values. Texts of files are shown as they are, never as markup.
    lines
        What is said without JavaScript.
    """

    title: str
    subtitle: str
    scripts: tuple[str, ...]
    start: str
    data: Mapping[str, Any]
    lines: Sequence[str]


def render(page: Page) -> str:
    """Return a page as HTML.

    Its Content-Security-Policy allows exactly its own script and style, by their SHA-256, and no request.

    Raises
    ------
    InputError
        When the libraries of the extra `report` are not installed.
    """
    names = (*_COMMON_SCRIPTS, *page.scripts)
    script = "\n".join([*map(_web_file, names), f"const START = {page.start};", _web_file(_LAST_SCRIPT)])
    style = _web_file("page.css")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    markup = {"script": script, "style": style, "data": json_for_script(page.data)}
    return render_page(
        TEMPLATE, markup, title=page.title, subtitle=page.subtitle, policy=policy, lines=list(page.lines)
    )


def json_for_script(data: object) -> str:
    """Return compact JSON that can stand in a `script` element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _web_file(name: str) -> str:
    return (resources.files("placer") / "report" / "web" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
