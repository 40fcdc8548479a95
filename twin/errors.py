"""The error tree of placer.

Every message states what must hold, what was given and what to do. The offending file, field and value are
attributes, so that a caller (the command line, an HTTP service) can present them without parsing text.
"""

from __future__ import annotations

# Of a message: values in files from outside can be of any length.
MOST_CHARACTERS = 2000


class PlacerError(Exception):
    """Base of every error that placer raises on purpose.

    Parameters
    ----------
    message
        What must hold, what was given, what to do. The middle of one of more than `MOST_CHARACTERS` is left out.
    file, field, value
        Where the offence is: path of the file, dotted name of the field, offending value. ``None`` when it does not
        apply.
    hint
        One sentence that can be acted on, shown on its own line.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        field: str | None = None,
        value: object = None,
        hint: str | None = None,
    ) -> None:
        if len(message) > MOST_CHARACTERS:
            half = MOST_CHARACTERS // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)
        self.message = message
        self.file = file
        self.field = field
        self.value = value
        self.hint = hint


class InputError(PlacerError):
    """What the user gave cannot be used: a file, a field, a value, a combination of them."""


class ProfileError(PlacerError):
    """A performance profile is unreadable, or describes another model or GPU than the one asked for."""


class SurrogateError(PlacerError):
    """A surrogate file has no metadata, another feature schema, or is asked outside its domain."""


class SolverError(PlacerError):
    """A solver is unknown, unavailable on this machine, or failed natively."""


class TwinError(PlacerError):
    """The simulation cannot go on: a replica that does not start was simulated, or a step made no progress."""


class VllmError(TwinError):
    """vLLM is missing, too old or incompatible, or its process failed: nothing was learned about the replica."""


class ClusterError(TwinError):
    """The cluster that was to run simulations is missing, unreachable or gave up."""


class NoSolutionError(PlacerError):
    """Nothing was found within the budget, which proves nothing, and there is no document that could say so."""
