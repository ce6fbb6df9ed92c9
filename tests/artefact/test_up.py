"""``legacy-cuda up`` with the published wheels: made, proven, the same as the recorded evidence.

Downloads gigabytes unless uv's cache has them (UV_CACHE_DIR), and needs 5 GB of disk at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda import environment, evidence, fetch
from legacy_cuda.catalog import find_gpu
from legacy_cuda.catalog.locks import load_lock

pytestmark = pytest.mark.large

GPUS = ("k80", "p40", "v100")  # one for each lock
UNREACHABLE = "the package index cannot be reached"  # the one failure that is not ours
SECOND_RUN = 5.0  # seconds in which an unchanged environment is recognised


@dataclass
class Made:
    """An environment that ``up`` made, and what it said about it."""

    gpu: str
    home: Path
    document: dict[str, Any]

    @property
    def target(self) -> Path:
        return self.home / self.gpu


def up(gpu: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "legacy_cuda", "up", gpu, "--json", *arguments],
        env={**os.environ, "LEGACY_CUDA_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module", params=GPUS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    home = tmp_path_factory.mktemp("up")
    try:
        done = up(request.param, home)
        if done.returncode == 3 and UNREACHABLE in done.stderr:
            pytest.skip(f"no index: {done.stderr.strip()}")
        assert done.returncode == 0, done.stdout + done.stderr
        yield Made(request.param, home, json.loads(done.stdout))
    finally:
        shutil.rmtree(home)


def test_it_is_proven(made: Made) -> None:
    document = made.document
    capability = str(find_gpu(made.gpu).capability)
    (verdict,) = document["audit"]
    assert verdict["capability"] == capability
    assert verdict["outcome"] in ("runs", "runs-through-jit", "runs-with-limits")
    assert document["good"] and document["altered"] == []
    flags = document["arch_flags"]
    assert flags["agree"] and flags["said"] == flags["held"] != []
    if not Path("/dev/nvidiactl").exists():
        assert document["gpu_run"] == "not run"


def test_its_libraries_are_those_of_the_evidence(made: Made) -> None:
    """What was read out of the installed files is what was read out of the wheels."""
    expected: dict[str, Any] = {}
    lock = load_lock(made.document["lock"]["name"])
    for file in lock.select(made.document["python"]):
        recorded = evidence.find(file.package, file.name, file.sha256)
        assert recorded is not None, f"no evidence for {file.name}"
        for library in recorded.libraries:
            expected[library.path] = (
                library.size,
                [[group.count, group.linkage, list(group.code)] for group in library.groups],
            )
    found = {
        item["path"]: (
            item["size"],
            [[group["count"], group["linkage"], group["code"]] for group in item["groups"]],
        )
        for item in made.document["libraries"]
    }
    assert found == expected


def test_every_file_is_that_of_its_wheel(made: Made) -> None:
    (site,) = made.target.glob("lib/python3*/site-packages")
    versions = made.document["packages"]
    lock = load_lock(made.document["lock"]["name"])
    published = {name: version.partition("+")[0] for name, version in versions.items()}
    assert published == {package.name: package.version for package in lock.packages}
    assert environment.altered(site, versions) == []


def test_dependencies_are_satisfied_and_patched_wheels_are_as_recorded(made: Made) -> None:
    python = made.target / "bin" / "python"
    for command in (
        [fetch.uv_binary(), "pip", "check", "--python", python],
        [python, "-m", "pip", "check"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for item in made.document["patched"]:
        assert item["checked"], item["package"]
        assert made.document["packages"][item["package"]] == item["version"]


def test_a_second_run_does_nothing_quickly(made: Made) -> None:
    begin = time.monotonic()
    done = up(made.gpu, made.home)
    seconds = time.monotonic() - begin
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "unchanged since it was made"
    assert seconds < SECOND_RUN


def test_torch_works_on_the_cpu(made: Made) -> None:
    """Through the activation script, as a person would."""
    program = (
        "import os, torch; a = torch.arange(6.0).reshape(2, 3); "
        "print(torch.__version__.split('+')[0], (a @ a.T).tolist(), os.environ['CUDAARCHS'])"
    )
    done = subprocess.run(
        ["sh", "-c", f". '{made.target}/activate' && python -c \"$0\"", program],
        capture_output=True,
        text=True,
        check=False,
    )
    number = str(find_gpu(made.gpu).capability).replace(".", "")
    version = made.document["packages"]["torch"].partition("+")[0]
    assert done.stdout == f"{version} [[5.0, 14.0], [14.0, 50.0]] {number}\n", done.stderr


def test_the_audit_of_the_whole_environment_agrees(made: Made) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "legacy_cuda", "audit", made.target, "--gpu", made.gpu, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (subject,) = json.loads(done.stdout)["subjects"]
    (verdict,) = subject["verdicts"]
    (own,) = made.document["audit"]
    assert subject["kind"] == "environment"
    assert (verdict["outcome"], verdict["driver"]) == (own["outcome"], own["driver"])
