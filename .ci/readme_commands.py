"""Print a document's marked commands, word by word, so that what is documented is what runs.

A command is a fenced `bash` block right after the comment `<!-- ci: run -->`.
Usage: `python .ci/readme_commands.py README.md 1` prints the first, `python .ci/readme_commands.py TUTORIAL.md all` a
script of all of them.
"""

import re
import sys
from pathlib import Path

MARKER = "<!-- ci: run -->"
_MARKED_BLOCK = re.compile(re.escape(MARKER) + r"\s*\n```bash\n(?P<command>.*?)^```$", re.DOTALL | re.MULTILINE)


def marked_commands(text: str) -> tuple[str, ...]:
    """Extract the marked commands of a Markdown text.

    Parameters
    ----------
    text : str
        The whole document.

    Returns
    -------
    tuple of str
        The content of each marked block in document order, unchanged but for the surrounding white space.

    Raises
    ------
    ValueError
        If a marker is not followed by a `bash` block: its command would silently not be run.
    """
    commands = tuple(match["command"].strip() for match in _MARKED_BLOCK.finditer(text))
    num_markers = text.count(MARKER)
    if num_markers != len(commands):
        message = (
            f"every {MARKER!r} must stand right above a ```bash block. Got {num_markers} for {len(commands)} blocks."
        )
        raise ValueError(message)
    return commands


def main() -> None:
    """Print the command whose number, counted from 1, is the second argument, or ``all`` of them, each on its lines."""
    path, number = Path(sys.argv[1]), sys.argv[2]
    commands = marked_commands(path.read_text(encoding="utf-8"))
    print("\n".join(commands) if number == "all" else commands[int(number) - 1])


if __name__ == "__main__":
    main()
