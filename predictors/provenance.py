"""Which numbers of a profile a surrogate depends on."""

from __future__ import annotations

import hashlib
import json

from twin.profile import PerformanceProfile


def profile_fingerprint(profile: PerformanceProfile) -> str:
    """Return a SHA-256 (first 16 hex digits) of what the twin computes with: not of the name or the provenance."""
    content = profile.model_dump(mode="json", include={"step_time", "load_times", "memory", "model", "gpu_memory_gib"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def profile_identity(profile: PerformanceProfile) -> dict[str, str]:
    """Return name and fingerprint, as data sets and surrogates state what they were made with."""
    return {"name": profile.name, "fingerprint": profile_fingerprint(profile)}
