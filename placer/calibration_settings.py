"""Find the file that says what metrics and results of benchmarks do not: the server's settings and its adapters."""

from __future__ import annotations

from pathlib import Path

from placer.files import read_document
from twin.calibration.evidence_files import is_measurement
from twin.calibration.serving_settings import ServingSettings, parse_settings
from twin.engine import EngineConfig
from twin.measurement.folder import MANIFEST, open_folder

SUFFIXES = (".yaml", ".yml")
# In the folder of the measurements.
SHARED_NAME = "settings"


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
        return settings_of_measurement(folder) if is_measurement(folder) else ServingSettings()


def settings_of_measurement(folder: Path) -> ServingSettings:
    """Return what the manifest of a measurement says about its server (InputError for a damaged one)."""
    manifest = open_folder(folder).manifest
    declared, known = manifest.settings.engine, manifest.server.engine
    # In process, vLLM said all of them; of a server over HTTP, only what was declared is known.
    names = set(EngineConfig.model_fields) & set(declared)
    values = {name: declared[name] for name in names}
    if known is not None:
        told = EngineConfig.model_fields if manifest.settings.kind == "in_process" else names
        values |= {name: value for name in told if (value := getattr(known, name)) is not None}
    adapters = [adapter.model_dump(mode="json") for adapter in manifest.workload.adapters]
    # Of a recorded trace, requests are known and rates are not.
    has_rates = any(adapter.rate_rps > 0 for adapter in manifest.workload.adapters)
    content = {"engine": values, "adapters": adapters if has_rates else None}
    return parse_settings(content, file=str(folder / MANIFEST))
