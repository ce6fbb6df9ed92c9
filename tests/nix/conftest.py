"""Fixtures of the Nix tests. Where Nix is missing, they fail and say how to get it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.nix.nixrun import ROOT, Nix, as_nix

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


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    for program in ("nix", "nix-instantiate"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not on PATH: apt-get install nix-bin (2.8 is enough)")
    return Nix(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="session")
def flake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flake by itself: what it reads and nothing else, tracked by git or not."""
    folder = tmp_path_factory.mktemp("flake")
    for name in ("flake.nix", "flake.lock"):
        shutil.copy(ROOT / name, folder)
    leave_out = shutil.ignore_patterns("evidence", "__pycache__", "*.egg-info")
    for name in ("nix", "pkgs", "python", "tests/nix"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    return f"path:{folder}"


# Modules of NixOS that ours build on.
UPSTREAM = {
    "llama-cpp": "nixos/modules/services/misc/llama-cpp.nix",
    "litellm": "nixos/modules/services/misc/litellm.nix",
    "nvidia": "nixos/modules/hardware/video/nvidia.nix",
    "ollama": "nixos/modules/services/misc/ollama.nix",
    "open-webui": "nixos/modules/services/misc/open-webui.nix",
}


def _take_from(checkout: Path, folder: Path) -> None:
    # copied, because a flake may read nothing outside of itself
    for name in ("nixpkgs", "nixpkgs-25_11"):
        shutil.copytree(checkout / "lib", folder / name / "lib")
        (folder / name / "lib.nix").write_text("import ./lib\n")
        there = [module for module in UPSTREAM if (checkout / UPSTREAM[module]).exists()]
        for module in there:
            shutil.copy(checkout / UPSTREAM[module], folder / name / f"upstream-{module}.nix")
        upstream = " ".join(f"{module} = ./upstream-{module}.nix;" for module in there)
        (folder / name / "upstream.nix").write_text(f"{{ {upstream} }}\n")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stub for each input of the flake, by its name.

    LEGACY_CUDA_NIXPKGS may name a checkout of nixpkgs, or as much of one as is to be had: its lib
    and its modules then take the place of the stub's.
    """
    folder = tmp_path_factory.mktemp("inputs")
    here = Path(__file__).parent
    for name in INPUTS:
        source = "cuda-legacy-stub" if name == "cuda-legacy" else "nixpkgs-stub"
        shutil.copytree(here / source, folder / name)
    (folder / "nixpkgs-25_11" / "release.nix").write_text(NIXOS_25_11)
    checkout = os.environ.get("LEGACY_CUDA_NIXPKGS")
    if checkout:
        _take_from(Path(checkout).resolve(), folder)
    return folder


@pytest.fixture(scope="session")
def stub(inputs: Path) -> tuple[str, ...]:
    """The arguments that put the stubs in the place of the inputs."""
    return tuple(
        argument
        for name in INPUTS
        for argument in ("--override-input", name, f"path:{inputs / name}")
    )


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


@pytest.fixture(scope="session")
def outputs(nix: Nix, inputs: Path) -> Outputs:
    return Outputs(nix, inputs)
