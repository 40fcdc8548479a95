"""The command line: one module per command. Data goes to standard output, everything else to standard error.

Importing this package loads nothing, `placer.cli.application` only what describes options; what a command needs is
loaded when it runs.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the program with the process's own arguments."""
    try:
        from placer.cli.application import app
    except KeyboardInterrupt:
        # Loading takes long enough for Ctrl-C, and what prints messages is not loaded yet.
        sys.stderr.write("error: interrupted before there was anything to report.\n")
        sys.exit(130)
    app(prog_name="placer")
