"""The files of a study: the document, its cells as Parquet and CSV, and figures (extra `report`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from placer.comparison_document import as_json
from placer.html_page import require_report_libraries
from placer.whatif.document import WhatIf
from placer.whatif.tables import cell_row
from twin.atomic_write import write_atomically
from twin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

WHATIF_NAME = "whatif"


def cells_frame(study: WhatIf) -> pd.DataFrame:
    """Return the cells as a table, one row each; columns have types that allow missing values."""
    import pandas as pd  # noqa: PLC0415 - takes half a second, and JSON does without

    return pd.DataFrame([cell_row(cell) for cell in study.cells]).convert_dtypes()


def write_study(study: WhatIf, folder: Path) -> tuple[Path, ...]:
    """Write a study into a folder, with figures as PNG and SVG where matplotlib is installed.

    Returns
    -------
    The files that were written.

    Raises
    ------
    InputError
        When one cannot be written.
    """
    frame = cells_frame(study)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    contents: dict[str, str | bytes] = {
        f"{WHATIF_NAME}.json": as_json(study),
        f"{WHATIF_NAME}.csv": frame.to_csv(index=False),
        f"{WHATIF_NAME}.parquet": buffer.getvalue(),
    }
    contents |= _figures(study)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)


def _figures(study: WhatIf) -> dict[str, str | bytes]:
    """Return the figures by the names of their files; nothing where matplotlib is missing."""
    try:
        require_report_libraries()
    except InputError:
        return {}
    from placer.drawing import png_of, svg_of  # noqa: PLC0415 - comes with an extra
    from placer.whatif.figures import study_figures  # noqa: PLC0415

    files: dict[str, str | bytes] = {}
    for name, figure in study_figures(study):
        files[f"{name}.png"] = png_of(figure)
        files[f"{name}.svg"] = svg_of(figure, name)
    return files
