"""Python objects of a user's own, named as ``module:object``: solvers and surrogates that are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def names_object(choice: str) -> bool:
    """Return whether a choice is of the form ``module:object``."""
    module, colon, name = choice.rpartition(":")
    return bool(colon) and bool(module) and name.isidentifier()


def load_named_object(choice: str) -> Any:
    """Return the object that ``module:object`` names; a class is called without arguments.

    The module is looked for in the current folder, too, and may be the path of a Python file.

    Raises
    ------
    ImportError
        When the module cannot be imported.
    Exception
        Whatever the module, or the class, raises.
    """
    module, _, name = choice.rpartition(":")
    loaded: Any = getattr(_load_module(module), name)
    return loaded() if isinstance(loaded, type) else loaded


def _load_module(name: str) -> ModuleType:
    """Import a module, also from the current folder, or run a Python file as one."""
    if not name.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(name)
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
