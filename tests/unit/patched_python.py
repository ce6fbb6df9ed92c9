"""Pythons with patched wheels in them, for tests that execute these: kept outside the tree.

They are made by the builder under test from the published wheels, installed by uv, and kept in the
cache under a name that changes with patches, modules and Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from legacy_cuda import fetch, paths
from legacy_cuda.build import make
from legacy_cuda.catalog.patched import find_patched
from legacy_cuda.fetch import uv_binary

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def with_triton(version: str, ptxas: Path) -> Path:
    """A Python that has a patched Triton and nothing else but ``ptxas``, a wheel that has one for
    Kepler.

    Raises:
        SurroundingsError: the network or the disk failed.
    """
    facts = find_patched("triton", version)
    series = make.load_series(facts)
    folder = paths.cache_directory() / "tests" / f"triton-{version}-{PYTHON}-{series.digest[:16]}"
    with fetch.locked(_parent(folder) / f".{folder.name}.lock"):
        if not (folder / "complete").exists():
            for older in folder.parent.glob(f"triton-{version}-{PYTHON}-*"):
                shutil.rmtree(older)
            wheel = make.cached(series, facts.wheel(PYTHON))
            _uv("venv", "--python", sys.executable, str(folder))
            install = ("--python", str(folder / "bin/python"), str(wheel.path), str(ptxas))
            _uv("pip", "install", "--no-deps", *install)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def _uv(*arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    command = [uv_binary(), "--quiet", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
