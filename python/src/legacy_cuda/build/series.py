"""What is applied to a package: its patches in order and the modules of ours copied beside them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from legacy_cuda.build import patches
from legacy_cuda.build.patches import Patch
from legacy_cuda.catalog.patched import PatchedPackage

PACKAGE = Path(__file__).parents[1]
"""The folder of legacy_cuda: patches and copied modules lie below it."""

FORMAT = 1
"""Raised whenever repacking makes other bytes out of the same inputs."""


@dataclass(frozen=True)
class Series:
    """Patches and modules for one version of a package. ``modules`` maps the path in the wheel to
    content; ``patch_sha256`` is of each patch file, in hex."""

    facts: PatchedPackage
    patches: tuple[Patch, ...]
    patch_sha256: tuple[str, ...]
    modules: dict[str, bytes]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over all that decides what becomes of a wheel, the wheel itself aside."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """What is applied, as JSON: it goes into the wheel and into the digest."""
        return {
            "format": FORMAT,
            "package": self.facts.package,
            "version": self.facts.version,
            "local": self.facts.local,
            "patches": [
                {"name": patch.name, "sha256": sha256}
                for patch, sha256 in zip(self.patches, self.patch_sha256, strict=True)
            ],
            "modules": [
                {"path": path, "sha256": hashlib.sha256(content).hexdigest()}
                for path, content in sorted(self.modules.items())
            ],
        }


def folder(facts: PatchedPackage) -> Path:
    """Where a package's patches are."""
    return PACKAGE / "patches" / facts.package / facts.version


@cache
def load(facts: PatchedPackage) -> Series:
    """The series of a package, read from the files beside this program.

    Raises:
        PatchError: a patch is malformed.
        OSError: a file cannot be read, or a module's folder is missing.
    """
    files = sorted(folder(facts).glob("*.patch"))
    texts = [path.read_bytes() for path in files]
    return Series(
        facts=facts,
        patches=tuple(
            patches.parse(text, path.name) for path, text in zip(files, texts, strict=True)
        ),
        patch_sha256=tuple(hashlib.sha256(text).hexdigest() for text in texts),
        modules=_modules(facts),
    )


def _modules(facts: PatchedPackage) -> dict[str, bytes]:
    found = {}
    for copied in facts.modules:
        root = PACKAGE / copied.source
        paths = sorted(root.rglob("*.py"))
        if not paths:
            raise FileNotFoundError(f"no modules in {root}")
        for path in paths:
            found[f"{copied.target}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return found
