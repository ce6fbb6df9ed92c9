"""An index over published wheels: it says what audit says, and installers take the files as they
are. 18 MiB of wheels that other tests here take too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from wheels import WheelUnavailable, obtain, read_list

from legacy_cuda import catalog
from legacy_cuda.fetch import uv_binary

KEYS = ("torchvision-0.22.1", "nvjpeg-cu12", "torchao-0.11.0")
COMMAND = [sys.executable, "-m", "legacy_cuda"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels, and the index over it."""
    folder = tmp_path_factory.mktemp("wheels")
    pins, _ = read_list()
    for key in KEYS:
        try:
            path = obtain(pins[key])
        except WheelUnavailable as error:
            pytest.fail(str(error), pytrace=False)
        shutil.copyfile(path, folder / path.name)
    done = subprocess.run(
        [*COMMAND, "index", str(folder), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.json").write_text(done.stdout)
    return folder


def test_it_says_what_audit_says_of_every_gpu(shelf: Path) -> None:
    """Of each wheel by itself, read anew and not from evidence."""
    said = json.loads((shelf / "said.json").read_text())
    gpus = {str(gpu.capability): gpu.name for gpu in catalog.gpus()}
    for row in said["wheels"]:
        done = subprocess.run(
            [
                *(*COMMAND, "audit", str(shelf / row["file"]), "--json", "--rescan"),
                *("--gpu", ",".join(gpus.values())),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        (subject,) = json.loads(done.stdout)["subjects"]
        assert row["sha256"] == subject["sha256"]
        audited = {verdict["gpu"]: verdict for verdict in subject["verdicts"]}
        for verdict in row["verdicts"]:
            other = audited[gpus[verdict["capability"]]]
            assert verdict["outcome"] == other["outcome"]
            assert verdict["summary"] == other["summary"]
    listed = {row["capability"]: row["files"] for row in said["indexes"]}
    assert len(listed[None]) == 3
    assert listed.keys() == {None, "5.0", "5.2", "6.0", "6.1", "7.0"}
    for capability in listed.keys() - {None}:
        assert not [file for file in listed[capability] if file.startswith("torchao")]


def test_metadata_files_are_those_in_the_wheels(shelf: Path) -> None:
    for wheel in shelf.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(name)
        assert wheel.with_name(f"{wheel.name}.metadata").read_bytes() == metadata


def test_uv_installs_from_the_index_of_the_p40(shelf: Path, tmp_path: Path) -> None:
    (wheel,) = shelf.glob("nvidia_nvjpeg*.whl")
    done = subprocess.run(
        [
            *(uv_binary(), "pip", "install", "--target", str(tmp_path), "--no-config"),
            *("--python", sys.executable, "--default-index", f"{shelf.as_uri()}/sm61/simple"),
            "nvidia-nvjpeg-cu12",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("libnvjpeg.so.12"))
        assert (tmp_path / name).read_bytes() == archive.read(name)
