"""What the tests on the stand-in for NVML share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.nvml import standin
from tests.nvml.standin import Standin


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Standin]:
    """Make a machine (a name, or what a TOML file holds) the one that is found here."""

    def make(machine: Any) -> Standin:
        data = standin.read(machine) if isinstance(machine, str) else machine
        made = Standin(data, tmp_path)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        return made

    return make
