"""How the functions of the fast engine are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function that only compiled functions call.

    Without wrappers for Python it compiles faster; without reference counts (nothing is allocated) it runs faster.
    """
    decorate: Any = numba.njit
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    result: Function = decorate(nogil=True, error_model="numpy", **options)(function)
    return result


def compiled_entry(function: Function) -> Function:
    """Compile a function that Python calls, and keep the machine code on disk."""
    decorate: Any = numba.njit
    options = {"no_cfunc_wrapper": True, "_nrt": False}
    result: Function = decorate(nogil=True, error_model="numpy", cache=True, **options)(function)
    return result
