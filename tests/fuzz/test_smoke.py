"""The fuzz targets hold for their seeds and, where ``atheris`` is installed, for a few seconds.

``LEGACY_CUDA_FUZZ_SECONDS`` sets the seconds per target, 5 by default.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_names import NAMES

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE.parent / "unit")
    monkeypatch.syspath_prepend(HERE)
    import targets

    target = targets.TARGETS[name]
    for seed in target.seeds():
        target.run(seed)
        for size in range(0, len(seed), max(7, len(seed) // 100)):
            target.run(seed[:size])


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (extra `dev`)"
)
@pytest.mark.parametrize("name", NAMES)
def test_fuzz(name: str, tmp_path: Path) -> None:
    seconds = os.environ.get("LEGACY_CUDA_FUZZ_SECONDS", "5")
    command = [sys.executable, str(HERE), name, "--seconds", seconds]
    command += ["--artifacts", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120 + int(seconds))
    assert done.returncode == 0, done.stderr[-5000:]
    assert "nothing found" in done.stdout
    assert not list(tmp_path.iterdir())
