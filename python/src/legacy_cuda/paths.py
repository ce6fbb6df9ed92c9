"""Where things are kept, following the XDG Base Directory Specification."""

from __future__ import annotations

import os
from pathlib import Path

TOOLKIT_VARIABLES = ("CUDA_HOME", "CUDA_PATH")
TOOLKITS = ("/usr/local/cuda", "/opt/cuda", "/usr")
"""Where installed CUDA toolkits are: NVIDIA's installer, Arch's package, Debian's."""


def cache_directory() -> Path:
    """Downloads that can be had again: LEGACY_CUDA_CACHE, or legacy-cuda below XDG_CACHE_HOME.

    Without links: compilers write real paths, which are to be found again in what they write.
    """
    chosen = os.environ.get("LEGACY_CUDA_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(chosen) if chosen else base / "legacy-cuda").resolve()


def environments_directory() -> Path:
    """Environments: LEGACY_CUDA_HOME, or legacy-cuda/environments below XDG_DATA_HOME."""
    chosen = os.environ.get("LEGACY_CUDA_HOME")
    if chosen:
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "legacy-cuda" / "environments"
