"""Facts about the machine and the software that a measurement's numbers depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

DISTRIBUTION = "lora-placer"


def machine_facts() -> dict[str, Any]:
    """Return what is known about this machine without asking a GPU: system, processor, cores, memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def client_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of placer, of Python, and of libraries that are installed here."""
    versions = {"python": platform.python_version()}
    for key, name in (("placer", DISTRIBUTION), *((library, library) for library in libraries)):
        try:
            versions[key] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
