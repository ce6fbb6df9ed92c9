"""``legacy-cuda verify`` on the GPU at hand: its own code, and that of every old capability."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from legacy_cuda import catalog
from legacy_cuda.replay import gpu
from legacy_cuda.replay.inside.settings import PREFIX

OLD = sorted({str(item.capability) for item in catalog.gpus() if item.legacy})


@pytest.fixture(scope="module")
def here() -> tuple[int, int]:
    try:
        return gpu.visible()[0].capability
    except gpu.NoGpuError as error:
        pytest.skip(f"skipped: {error}")


@pytest.mark.parametrize("replay", ["", *OLD])
def test_right_numbers(replay: str, here: tuple[int, int]) -> None:
    if replay and tuple(map(int, replay.split("."))) >= here:
        pytest.skip(f"skipped: the GPU here is no newer than {replay}")
    command = [sys.executable, "-m", "legacy_cuda", "verify", "--json", "--load", "1"]
    command += ["--memory", "4096", *(["--replay", replay] if replay else [])]
    variables = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    if done.returncode == 3:
        pytest.skip(f"skipped: {document['error']}: {document['why']}")
    for found in document["gpus"]:
        for step in found["steps"]:
            fine = step["outcome"] == "passed" or step["why"].startswith("no ")
            assert fine, (found["name"], step)
        assert found["label"].startswith("replayed at" if replay else "verified on")
