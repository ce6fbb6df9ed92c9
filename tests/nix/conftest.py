"""Fixtures of the Nix tests. Where Nix is missing, they fail and say how to get it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.nix.nixrun import INPUTS, ROOT, Nix, Outputs, make_inputs


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


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stub for each input of the flake, by its name."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def stub(inputs: Path) -> tuple[str, ...]:
    """The arguments that put the stubs in the place of the inputs."""
    return tuple(
        argument
        for name in INPUTS
        for argument in ("--override-input", name, f"path:{inputs / name}")
    )


@pytest.fixture(scope="session")
def outputs(nix: Nix, inputs: Path) -> Outputs:
    return Outputs(nix, inputs)
