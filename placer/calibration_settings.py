"""Find the file that says what metrics and results of benchmarks do not: the server's settings and its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from placer.files import read_document
from twin.calibration.serving_settings import ServingSettings, parse_settings
from twin.engine import EngineConfig

SUFFIXES = (".yaml", ".yml")
# In the folder of the measurements.
SHARED_NAME = "settings"
# What `placer measure` writes about itself (twin/measurement/manifest.py).
MANIFEST = "manifest.json"


class SettingsReader:
    """Returns the settings of the server that a file is about.

    Of these the first that there is: a YAML file of the same name beside it, the file given, ``settings.yaml`` in its
    folder, the manifest of `placer measure`.

    Parameters
    ----------
    given
        By a user for all files; ``None``: none.
    """

    def __init__(self, given: Path | None) -> None:
        self._given = given

    def __call__(self, measurements: Path) -> ServingSettings:
        """Return the settings for a file or a folder of measurements.

        Raises
        ------
        InputError
            When a file of settings is unreadable, or a setting in it cannot be used.
        """
        folder = measurements if measurements.is_dir() else measurements.parent
        beside = [] if measurements.is_dir() else [measurements.with_suffix(suffix) for suffix in SUFFIXES]
        shared = [folder / f"{SHARED_NAME}{suffix}" for suffix in SUFFIXES]
        given = [] if self._given is None else [self._given]
        for path in (*beside, *given, *shared):
            if path.is_file() or path in given:
                return parse_settings(read_document(path)[0], file=str(path))
        manifest = folder / MANIFEST
        if manifest.is_file():
            return _of_manifest(read_document(manifest)[0], str(manifest))
        return ServingSettings()


def _of_manifest(content: Any, file: str) -> ServingSettings:
    """Return what a measurement's manifest says; nothing if the file is something else."""
    parts = content if isinstance(content, dict) else {}
    workload, server, settings = (
        part if isinstance(part, dict) else {}
        for part in (parts.get(name) for name in ("workload", "server", "settings"))
    )
    if "adapters" not in workload:
        return ServingSettings()
    known = server.get("engine") or {}
    declared = settings.get("engine") or {}
    # In process, vLLM said all of them; of a server over HTTP, only what was declared is known.
    is_told = settings.get("kind") == "in_process"
    names = set(EngineConfig.model_fields) & set(known if is_told else declared)
    engine = {name: value for name in sorted(names) if (value := known.get(name, declared.get(name))) is not None}
    return parse_settings({"engine": engine, "adapters": workload["adapters"]}, file=file)
