"""Reports as one HTML page that refers to nothing outside of it (extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from twin.errors import InputError


def require_report_libraries() -> None:
    """Raise InputError when the libraries of the extra `report` are not installed: asked before the work is done."""
    try:
        import jinja2  # noqa: F401, PLC0415 - only asked for
        import matplotlib  # noqa: F401, ICN001, PLC0415
    except ImportError as error:
        raise InputError(
            f"an HTML report needs the extra `report`. {error}.",
            field="report",
            hint="pip install 'lora-placer[report]'",
        ) from error


def render_page(template: str, figures: Mapping[str, str], **values: object) -> str:
    """Return the page that a template of this package makes of `values` and of `figures`, SVG elements by name.

    Raises
    ------
    InputError
        When jinja2 or matplotlib is not installed.
    """
    require_report_libraries()
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # noqa: PLC0415 - comes with an extra
    from markupsafe import Markup  # noqa: PLC0415

    def read(name: str) -> str:
        return (resources.files("placer") / "templates" / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # The figures are our own markup; everything else that reaches the page is escaped.
    markup = {name: Markup(figure) for name, figure in figures.items()}  # noqa: S704
    return environment.get_template(template).render(**values, **markup)
