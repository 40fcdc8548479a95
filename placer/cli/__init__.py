"""The command line: one module per command. Data goes to standard output, everything else to standard error.

Importing this package loads only what describes options; what a command needs is loaded when it runs.
"""

from placer.cli.application import app, main

__all__ = ["app", "main"]
