"""Where things are kept, following the XDG Base Directory Specification."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Downloads that can be had again: LEGACY_CUDA_CACHE, or legacy-cuda below XDG_CACHE_HOME."""
    chosen = os.environ.get("LEGACY_CUDA_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legacy-cuda"


def environments_directory() -> Path:
    """Environments: LEGACY_CUDA_HOME, or legacy-cuda/environments below XDG_DATA_HOME."""
    chosen = os.environ.get("LEGACY_CUDA_HOME")
    if chosen:
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "legacy-cuda" / "environments"
