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


def entry_is_cached(entry: Any) -> bool:
    """Return whether a compiled entry is ready, in this process or on disk; if not, its first call compiles it.

    Asks Numba's own index, whose interface is private: should it change, the answer is False.
    """
    if entry.signatures:
        return True
    try:
        _, target, code = entry._cache._index_key(None, entry.targetctx.codegen())  # noqa: SLF001 - no public way
        return any(key[1:] == (target, code) for key in entry._cache._cache_file._load_index())  # noqa: SLF001
    except AttributeError:
        return False
