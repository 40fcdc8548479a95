"""Pages of reports in tests: their data, and a browser that keeps what they complain about."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


def data_of(page: Path) -> Any:
    """Return what the page draws."""
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(text)


def opened(chromium: Any, page: Path, **options: Any) -> tuple[Any, list[str]]:
    """Return a tab with the page, and the list in which what it complains about is kept."""
    tab, complaints = chromium.new_page(**options), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]", timeout=60_000)
    return tab, complaints
