"""Fixtures and Hypothesis profiles that every test shares."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

DATA_VARIABLE = "PLACER_DATA"

# No deadline in either: the first call of a compiled function compiles it. `ci` draws the same examples in every run,
# so a red build can be repeated; `dev` draws new ones, so that they are found.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture(scope="session", autouse=True)
def _sigint_as_at_a_terminal() -> Iterator[None]:
    """Heed Ctrl-C: a shell starts background jobs with SIGINT ignored, which this process and its children inherit."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder with the public traces and measurements, or skip: they are not part of the repository."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{DATA_VARIABLE} is not set: it names the folder with `workloads`, `runs` and `calibration`")
    if not Path(folder).is_dir():
        pytest.skip(f"{DATA_VARIABLE} must name a folder. Got {folder!r}")
    return Path(folder)
