"""Pages of reports in the browser: figures can be read in light and dark mode, also where the browser forces it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from placer.drawing import svg_of
from placer.html_page import render_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
FORCED = ("--enable-features=WebContentsForceDark",)
PREFERRED = ("--force-dark-mode",)
# Shares of 255, as the browser's pictures have them.
DARK, LIGHT = 0.3, 0.85


def _page() -> str:
    """Return a report's page with one large word on a figure, and no table."""
    figure = Figure(figsize=(8.0, 8.0))
    figure.text(0.5, 0.5, "WORD", fontsize=120, ha="center", va="center")
    return render_page("page.html", {}).replace("<body>", f"<body><figure>{svg_of(figure, 'x')}</figure>")


def test_the_page_declares_both_modes_and_figures_stay_light() -> None:
    """A page that declares its dark mode is not recoloured where it is wanted; figures are drawn for white paper."""
    page = _page()
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page
    (figure,) = re.findall(r"figure svg \{([^}]*)\}", page)
    assert "background: #fff" in figure


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("options", [(), PREFERRED, FORCED, (*PREFERRED, *FORCED)])
def test_figures_can_be_read_in_every_mode(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The picture that the browser makes has letters that stand out, and the page is dark where it is wanted."""
    assert BROWSER is not None
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(_page(), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,900"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", *options, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    brightness = imread(picture)[..., :3].mean(axis=2)
    inside = brightness[400:700, 50:600]
    shares = ((inside < DARK).mean(), (inside > LIGHT).mean())
    assert min(shares) > 0.02
    assert max(shares) > 0.5
    margin = brightness[:, :8]
    assert margin.max() < DARK if options else margin.min() > LIGHT
