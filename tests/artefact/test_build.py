"""Patched wheels from the published ones: as recorded, installable, and what dependants expect.

The tests without ``large`` take Triton 3.3.1 for one Python, 149 MiB. ``--large`` builds every
wheel of the catalog, gigabytes of them, and applies every patch.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from legacy_cuda import fetch
from legacy_cuda.build import make
from legacy_cuda.build.patches import parse
from legacy_cuda.build.repack import recorded, repack
from legacy_cuda.build.series import Series
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.patched import PatchedPackage, SourceWheel, find_patched, patched
from legacy_cuda.errors import SurroundingsError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
BUILD_LIMIT = 20.0  # seconds for 150 MiB, which take less than one where the disk is idle


def published(facts: PatchedPackage, source: SourceWheel) -> Path:
    try:
        return make.source_wheel(facts, source, offline=False)
    except SurroundingsError as error:
        pytest.fail(f"{source.file} cannot be had: {error.what}\n{error.why}", pytrace=False)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> make.Built:
    facts = find_patched("triton", "3.3.1")
    source = facts.wheel(PYTHON)
    series = make.load_series(facts)
    wheel = published(facts, source)
    begin = time.monotonic()
    built = make.build(series, source, wheel, tmp_path_factory.mktemp("triton"))
    assert time.monotonic() - begin < BUILD_LIMIT
    return built


def test_it_is_what_is_recorded(triton: make.Built) -> None:
    assert triton.checked, "patches or modules have changed: run python tools/update_patched.py"
    assert triton.sha256 == triton.source.result == make.file_sha256(triton.path)


def test_a_second_time_the_same(triton: make.Built, tmp_path: Path) -> None:
    wheel = published(triton.series.facts, triton.source)
    again = make.build(triton.series, triton.source, wheel, tmp_path)
    assert again.fresh and again.sha256 == triton.sha256
    assert again.path.read_bytes() == triton.path.read_bytes()


def test_its_record_is_right_and_little_is_changed(triton: make.Built) -> None:
    """Every member is unpacked and hashed, by zipfile and csv."""
    wheel = published(triton.series.facts, triton.source)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(triton.path) as new:
        (record,) = (name for name in new.namelist() if name.endswith("RECORD"))
        rows = {
            row[0]: (row[1], row[2]) for row in csv.reader(io.StringIO(new.read(record).decode()))
        }
        names = set(new.namelist())
        assert names == rows.keys() and len(names) == len(new.namelist())
        for name in names - {record}:
            assert recorded(new.read(name)) == rows[name], name
        was = {info.filename: info.CRC for info in old.infolist() if not info.is_dir()}
        now = {info.filename: info.CRC for info in new.infolist()}
        changed = {name for name, crc in was.items() if now.get(name, crc) != crc}
        patched_files = {diff.path for patch in triton.series.patches for diff in patch.files}
        assert changed == patched_files
        added = {name for name in names - was.keys() if ".dist-info/" not in name}
        assert added == triton.series.modules.keys()
        for name in patched_files | added:
            if name.endswith(".py"):
                compile(new.read(name), name, "exec")


@pytest.fixture(scope="module")
def installed(
    triton: make.Built, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """An environment with it, and the lock's setuptools, which Triton 3.3.1 requires."""
    folder = tmp_path_factory.mktemp("environment")
    uv = fetch.uv_binary()
    pin = next(
        line
        for line in load_lock("torch-2.7.1").requirements(PYTHON).splitlines()
        if line.startswith("setuptools==")
    )
    lines = [f"triton @ {triton.path.as_uri()} --hash=sha256:{triton.sha256}", pin]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    python = folder / "env" / "bin" / "python"
    for command in (
        ["venv", "--python", sys.executable, str(folder / "env")],
        [
            *("pip", "install", "--require-hashes", "--python", str(python)),
            *("-r", str(folder / "requirements.txt")),
        ],
    ):
        done = subprocess.run([uv, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    yield {"uv": Path(uv), "python": python}


def test_installers_are_content(installed: dict[str, Path], tmp_path: Path) -> None:
    """Also with a package beside it that asks for the published version, as torch does."""
    site = next(installed["python"].parents[1].glob("lib/python3*/site-packages"))
    info = site / "needs_it-1.0.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Wheel-Version: 1.0\n")
    (info / "RECORD").write_text("")
    text = "Metadata-Version: 2.1\nName: needs-it\nVersion: 1.0\nRequires-Dist: triton"
    for requirement, content in (("==3.3.1", True), (">=3.3,<4", True), ("==3.3.2", False)):
        (info / "METADATA").write_text(f"{text}{requirement}\n")
        command = [installed["uv"], "pip", "check", "--python", installed["python"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == content, done.stderr


def test_it_is_imported(installed: dict[str, Path]) -> None:
    program = (
        "import importlib.metadata, triton, triton.compiler, triton.backends.nvidia.compiler; "
        "print(importlib.metadata.version('triton'), triton.__version__)"
    )
    done = subprocess.run(
        [installed["python"], "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "TRITON_CACHE_DIR": str(installed["python"].parent / "cache")},
    )
    assert done.stdout == "3.3.1+legacy.1 3.3.1\n", done.stderr


# ------------------------------------------------------------------------------------- all of it


def every_wheel() -> list[Any]:
    return [
        pytest.param(facts, source, id=source.file.removesuffix(".whl"))
        for facts in patched()
        for source in facts.wheels
    ]


@pytest.mark.large
@pytest.mark.parametrize(("facts", "source"), every_wheel())
def test_every_wheel_of_the_catalog(
    facts: PatchedPackage, source: SourceWheel, tmp_path: Path
) -> None:
    wheel = published(facts, source)
    built = make.build(make.load_series(facts), source, wheel, tmp_path)
    assert built.checked, "patches or modules have changed: run python tools/update_patched.py"
    with zipfile.ZipFile(built.path) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and archive.getinfo(name).compress_type == zipfile.ZIP_STORED:
                compile(archive.read(name), name, "exec")
    built.path.unlink()


SERIES_PATCH = b"""Why: for the test
Capabilities: 6.1
Origin: own

--- a/small/x.py
+++ b/small/x.py
@@ -1 +1,2 @@
-N = 1
+N = 2
+M = 3
"""


ZEROS = bytes(1 << 20)


class Sparse(io.RawIOBase):
    """A file in which pieces of nothing but zeros take no room."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b", buffering=0)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def write(self, piece: Any) -> int:
        if len(piece) >= 1 << 16 and bytes(piece) == ZEROS[: len(piece)]:
            self.file.seek(len(piece), os.SEEK_CUR)
        else:
            self.file.write(piece)
        return len(piece)


def test_a_member_of_more_than_4_gib(tmp_path: Path) -> None:
    """Sizes, and the offsets behind it, need 64 bits; needs no network and next to no disk."""
    size = (4 << 30) + (1 << 20)
    name, info = "small/huge.bin", "small-1.0.dist-info"
    row = f"{name},sha256={'A' * 43},{size}\n"  # rows of unchanged members are not made again
    members = {
        "small/x.py": b"N = 1\n",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
    }
    rows = [row, *(f"{path},{','.join(recorded(text))}\n" for path, text in members.items())]
    members[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    source, out = tmp_path / "small-1.0-py3-none-any.whl", tmp_path / "out.whl"
    with zipfile.ZipFile(cast(BinaryIO, Sparse(source)), "w") as archive:
        with archive.open(name, "w", force_zip64=True) as member:
            for at in range(0, size, len(ZEROS)):
                member.write(ZEROS[: size - at])
        for path, content in members.items():
            archive.writestr(path, content)
    sparse = Sparse(out)
    facts = PatchedPackage("small", "1.0", "legacy.1", (), (), "", ())
    series = Series(facts, (parse(SERIES_PATCH, "1"),), ("0" * 64,), {})
    said = repack(source, source.name, "0" * 64, series, cast(BinaryIO, sparse))
    sparse.file.truncate(said.size)
    with zipfile.ZipFile(source) as was, zipfile.ZipFile(out) as archive:
        assert archive.getinfo(name).file_size == archive.getinfo(name).compress_size == size
        assert archive.getinfo(name).CRC == was.getinfo(name).CRC
        assert archive.read("small/x.py") == b"N = 2\nM = 3\n"
        assert archive.getinfo("small/x.py").header_offset > 4 << 30
        assert row.encode() in archive.read("small-1.0+legacy.1.dist-info/RECORD")
