"""What the tests need that run vLLM: an interpreter that has it, or they are skipped."""

from __future__ import annotations

import os

import pytest

from twin.errors import TwinError
from twin.vllm_engine import vllm_python
from twin.vllm_python import PYTHON_VARIABLE, VllmPython


@pytest.fixture(scope="session")
def python() -> VllmPython:
    """Return the interpreter that has vLLM; skip without one, but not when the variable names one in vain."""
    try:
        return vllm_python()
    except TwinError as error:
        if os.environ.get(PYTHON_VARIABLE):
            raise
        pytest.skip(f"{error.message} {PYTHON_VARIABLE} names the interpreter of another environment.")
