"""Nix for the tests: a store of its own, the flake by itself, and stubs for its inputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
CONFIG = """\
experimental-features = nix-command flakes
build-users-group =
sandbox = false
substituters =
"""


def without_store(value: Any) -> Any:
    """A document with the paths in Nix's store cut down to their names: ``uv/bin/uv``."""
    if isinstance(value, str):
        return re.sub(r"/[^ :]*/store/[0-9a-z]{32}-", "", value)
    if isinstance(value, list):
        return [without_store(item) for item in value]
    if isinstance(value, dict):
        return {key: without_store(item) for key, item in value.items()}
    return value


def as_nix(path: Path) -> str:
    """A path as a Nix expression, whatever characters it has."""
    return f"(/. + {json.dumps(str(path))})"


@dataclass(frozen=True)
class Nix:
    """Nix with a store of its own, so that it works for any user and beside any installation."""

    folder: Path

    def instantiate(self, expression: str) -> subprocess.CompletedProcess[str]:
        """Evaluate an expression in which ``nix`` is this repository's folder of that name."""
        whole = f"let nix = {as_nix(ROOT / 'nix')}; in {expression}"
        return self.run("nix-instantiate", "--eval", "--strict", "--json", "--expr", whole)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "NIX_CONFIG": CONFIG,
            "NIX_CONF_DIR": str(self.folder / "etc"),
            "NIX_LOCALSTATE_DIR": str(self.folder),
            "NIX_LOG_DIR": str(self.folder / "log"),
            "NIX_REMOTE": "local",
            "NIX_STATE_DIR": str(self.folder / "state"),
            "NIX_STORE_DIR": str(self.folder / "store"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    def evaluate(self, expression: str) -> Any:
        """The value of such an expression."""
        done = self.instantiate(expression)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def flake(self, *arguments: str) -> str:
        """``nix ARGUMENTS`` without a network; flake.nix and flake.lock must agree."""
        done = self.run("nix", "--offline", *arguments, "--no-write-lock-file")
        assert done.returncode == 0, done.stderr
        return done.stdout
