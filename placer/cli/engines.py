"""The engine of the twin that a command was given: whether it is there, in a version that was tested."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from placer.cli.exits import print_warning

if TYPE_CHECKING:
    from twin.simulate import EngineName


def choose_engine(name: str) -> EngineName:
    """Return the engine of that name, and warn about a version of vLLM that was not tested.

    Raises
    ------
    InputError
        When there is no such engine.
    VllmError
        When it is vLLM's, and vLLM is missing or too old.
    """
    from placer.recheck import require_engine

    engine = require_engine(name)
    if engine == "vllm":
        from twin.vllm_engine import vllm_python
        from twin.vllm_process import UntestedVersionWarning
        from twin.vllm_python import untested_warning

        warning = untested_warning(vllm_python().version)
        if warning is not None:
            print_warning(f"{warning}.")
        # Said once, and here.
        warnings.simplefilter("ignore", UntestedVersionWarning)
    return engine
