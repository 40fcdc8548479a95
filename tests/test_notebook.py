"""The notebook runs from top to bottom, in the folder where a reader opens it."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

pytestmark = pytest.mark.skipif(
    find_spec("nbclient") is None or find_spec("ipykernel") is None, reason="needs nbclient and ipykernel"
)


def test_there_is_a_notebook() -> None:
    """The test below runs what it finds."""
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that raises is an error here; so is one whose output would show a path of the machine that made it."""
    import nbformat
    from nbclient import NotebookClient

    # The kernel is another process: it must find the packages of this checkout, installed or not.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    kept = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in kept
    notebook: Any = nbformat.reads(kept, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    tables = [
        str(output["data"]["text/plain"])
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert sum("GPU" in table for table in tables) >= 2
