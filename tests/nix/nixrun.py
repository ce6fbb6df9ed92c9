"""Nix for the tests: a store of its own, the flake by itself, and stubs for its inputs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
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

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
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
            command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S
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


INPUTS = ("nixpkgs", "nixpkgs-25_11", "cuda-legacy")

# What is in nixos-25.11, for the stub.
NIXOS_25_11 = """\
{
  name = "25.11";
  linux = "linux_6_12";
  torch = "2.9.1";
  triton = "3.5.1";
  drivers = { legacy_470 = "470.256.02"; legacy_580 = "580.119.02"; };
}
"""

# Modules of NixOS that ours build on.
UPSTREAM = {
    "container-toolkit": "nixos/modules/services/hardware/nvidia-container-toolkit/default.nix",
    "grafana": "nixos/modules/services/monitoring/grafana.nix",
    "llama-cpp": "nixos/modules/services/misc/llama-cpp.nix",
    "litellm": "nixos/modules/services/misc/litellm.nix",
    "nix-remote-build": "nixos/modules/config/nix-remote-build.nix",
    "nix-serve": "nixos/modules/services/networking/nix-serve.nix",
    "nvidia": "nixos/modules/hardware/video/nvidia.nix",
    "ollama": "nixos/modules/services/misc/ollama.nix",
    "open-webui": "nixos/modules/services/misc/open-webui.nix",
    "prometheus": "nixos/modules/services/monitoring/prometheus/default.nix",
}


def _take_from(checkout: Path, folder: Path) -> None:
    # copied, because a flake may read nothing outside of itself
    for name in ("nixpkgs", "nixpkgs-25_11"):
        shutil.copytree(checkout / "lib", folder / name / "lib")
        (folder / name / "lib.nix").write_text("import ./lib\n")
        there = {name: file for name, file in UPSTREAM.items() if (checkout / file).exists()}
        for file in map(Path, there.values()):
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            # a folder's module with the files beside it
            beside = (checkout / file).parent.iterdir() if file.name == "default.nix" else []
            for source in [checkout / file, *(one for one in beside if one.is_file())]:
                shutil.copy(source, folder / name / file.parent)
        upstream = " ".join(f"{module} = ./{file};" for module, file in there.items())
        (folder / name / "upstream.nix").write_text(f"{{ {upstream} }}\n")


def make_inputs(folder: Path) -> Path:
    """Put a stub for each input of the flake into a folder, by its name.

    LEGACY_CUDA_NIXPKGS may name a checkout of nixpkgs, or as much of one as is to be had: its lib
    and its modules then take the place of the stub's.
    """
    here = Path(__file__).parent
    for name in INPUTS:
        source = "cuda-legacy-stub" if name == "cuda-legacy" else "nixpkgs-stub"
        shutil.copytree(here / source, folder / name)
    (folder / "nixpkgs-25_11" / "release.nix").write_text(NIXOS_25_11)
    checkout = os.environ.get("LEGACY_CUDA_NIXPKGS")
    if checkout:
        _take_from(Path(checkout).resolve(), folder)
    return folder


@dataclass(frozen=True)
class Outputs:
    """The flake's outputs with the stubs, evaluated in place: nothing is copied to a store."""

    nix: Nix
    inputs: Path

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in which ``flake`` are the outputs."""
        return self.nix.evaluate(self._with_flake(expression))

    def fails(self, expression: str) -> str:
        """What Nix says of such an expression that has no value."""
        done = self.nix.instantiate(self._with_flake(expression))
        assert done.returncode != 0, done.stdout
        return done.stderr

    def _with_flake(self, expression: str) -> str:
        outputs = f"import {as_nix(Path(__file__).parent / 'outputs.nix')} {as_nix(self.inputs)}"
        return f"let flake = {outputs}; in {expression}"
