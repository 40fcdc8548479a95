"""The commands of the README are run by CI exactly as they are written there."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "readme_commands.py"
marked_commands: Callable[[str], tuple[str, ...]] = runpy.run_path(str(SCRIPT))["marked_commands"]


def test_only_marked_blocks_are_taken_in_their_order() -> None:
    """Examples that need the reader's own files stay out; what is marked comes out unchanged."""
    text = (
        "<!-- ci: run -->\n```bash\na && \\\n  b\n```\n\n```bash\nnot run\n```\n\n<!-- ci: run -->\n\n```bash\nc\n```\n"
    )
    assert marked_commands(text) == ("a && \\\n  b", "c")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<!-- ci: run -->\nText.\n\n```bash\na\n```\n", id="text between"),
        pytest.param("<!-- ci: run -->\n```console\na\n```\n", id="not bash"),
        pytest.param("<!-- ci: run -->\n```bash\na\n", id="never closed"),
    ],
)
def test_a_marker_without_a_block_is_refused(text: str) -> None:
    """A command that CI silently skips would be documented and untested."""
    with pytest.raises(ValueError, match="Got 1 for 0 blocks"):
        marked_commands(text)


def test_the_readme_documents_solving_and_testing() -> None:
    """The two commands that a new reader needs are the first and the second marked ones."""
    solve, test, *_ = marked_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert solve.endswith("placer solve examples/azure-llama-400.yaml")
    assert test.endswith("python -m pytest")


def test_the_script_prints_one_command() -> None:
    """CI reads the command from standard output."""
    arguments = [sys.executable, str(SCRIPT), str(ROOT / "README.md"), "2"]
    run = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == marked_commands((ROOT / "README.md").read_text(encoding="utf-8"))[1]


def test_every_marked_command_is_run() -> None:
    """The checks call for as many commands as the README marks."""
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    numbers = sorted(int(number) for number in re.findall(r"\$\(readme_command (\d+)\)", checks))
    marked = marked_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert numbers == list(range(1, len(marked) + 1))


def test_the_script_prints_all_commands(tmp_path: Path) -> None:
    """A tutorial is one script: what a step makes, the next one reads."""
    page = tmp_path / "tutorial.md"
    page.write_text(
        "<!-- ci: run -->\n```bash\na \\\n  b\n```\ntext\n<!-- ci: run -->\n```bash\nc\n```\n", encoding="utf-8"
    )
    run = subprocess.run([sys.executable, str(SCRIPT), str(page), "all"], check=True, capture_output=True, text=True)
    assert run.stdout == "a \\\n  b\nc\n"
