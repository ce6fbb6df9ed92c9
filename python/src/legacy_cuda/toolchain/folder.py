"""The folders toolchains are kept in: whole or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from legacy_cuda import fetch, paths
from legacy_cuda.errors import SurroundingsError

MANIFEST = "toolchain.json"


def place(name: str) -> Path:
    """Where the toolchain of that name is kept."""
    return paths.cache_directory() / "toolchains" / name


def read_manifest(root: Path) -> dict[str, Any]:
    """What is written in a finished toolchain."""
    content: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    return content


def script(path: Path, text: str) -> None:
    """A command: a shell script in which ``$here`` is its own folder."""
    path.write_text(f'#!/bin/sh\nhere="${{0%/*}}"\n{text}', encoding="utf-8")
    path.chmod(0o755)


def fill(target: Path, name: str, work: Callable[[Path], dict[str, Any]]) -> bool:
    """Let ``work`` fill a folder beside ``target``, then give it that name; False if it is there.

    ``work`` returns what its manifest says.

    Raises:
        SurroundingsError: the disk failed; what ``work`` raises. Nothing is left behind then.
    """
    if (target / MANIFEST).is_file():
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with fetch.locked(target.parent / ".lock"):  # they share what they download
            if (target / MANIFEST).is_file():
                return False
            for left in target.parent.glob(f".making-{target.name}-*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            prefix = f".making-{target.name}-"
            building = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                building.chmod(0o755)
                content = {"schema": "legacy-cuda/toolchain/1", "name": name, **work(building)}
                text = json.dumps(content, indent=2) + "\n"
                (building / MANIFEST).write_text(text, encoding="utf-8")
                building.rename(target)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise SurroundingsError(
            f"the toolchain {name} could not be stored",
            str(error),
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        ) from error
    return True
