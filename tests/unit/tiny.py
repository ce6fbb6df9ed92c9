"""A package index of a few kilobytes on loopback, and a stack of the p40's shape made from it.

The wheels are made here: a ``torch`` of pure Python with a library that holds device code, and two
packages without any. So the whole of ``legacy-cuda up`` runs, through the real uv, without network.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import builders
import pytest

from legacy_cuda import catalog

LOCK = "torch-2.7.1"  # the lock that the p40's stack names
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHITECTURES = (50, 60, 61, 70)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

TORCH = """
import os
from types import SimpleNamespace

__version__ = "{version}"
if os.path.exists(os.path.join(os.path.dirname(__file__), "broken")):
    raise ImportError("libtorch_cuda.so: undefined symbol: for_the_test")
version = SimpleNamespace(cuda="12.6")
_C = SimpleNamespace(_cuda_getArchFlags=lambda: "{flags}")
cuda = SimpleNamespace(is_available=lambda: False)
backends = SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 90500))
"""


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@dataclass(frozen=True)
class Wheel:
    """A wheel made for a test. ``unpacked`` is the sum of its members' sizes in bytes."""

    package: str
    version: str
    name: str
    data: bytes
    unpacked: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def make_wheel(
    package: str,
    version: str,
    members: dict[str, bytes],
    tag: str = "py3-none-any",
    requires: str = "",
) -> Wheel:
    """A wheel that installers take: these members, METADATA, WHEEL and RECORD."""
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}"
    if requires:
        metadata += f"\nRequires-Dist: {requires}"
    every = {
        **members,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    rows = io.StringIO()
    record = csv.writer(rows, lineterminator="\n")
    for name, data in every.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.writerow([name, f"sha256={digest}", len(data)])
    record.writerow([f"{info}/RECORD", "", ""])
    every[f"{info}/RECORD"] = rows.getvalue().encode()
    unpacked = sum(map(len, every.values()))
    name = f"{package}-{version}-{tag}.whl"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in every.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return Wheel(package, version, name, out.getvalue(), unpacked)


def make_torch(
    flags: str | None = None, held: tuple[int, ...] = ARCHITECTURES, filler: int = 0
) -> Wheel:
    """A torch that says it was built for ``flags``, with SASS for the capabilities ``held``.

    ``filler`` adds so many incompressible bytes, so that its download takes a while.
    """
    said = flags if flags is not None else " ".join(f"sm_{number}" for number in held)
    one = builders.container(*(builders.entry(number=number) for number in held))
    members = {
        "torch/__init__.py": TORCH.format(version="2.7.1+cu126", flags=said).encode(),
        "torch/version.py": b'__version__ = "2.7.1+cu126"\ncuda: str = "12.6"\n',
        "torch/lib/libtorch_cuda.so": builders.library(one, one),
    }
    if filler:
        members["torch/filler.bin"] = builders.noise(filler)
    return make_wheel("torch", "2.7.1", members, "py3-none-manylinux_2_17_x86_64")


def make_stack(filler: int = 0) -> list[Wheel]:
    """torch and two packages beside it."""
    many = {f"small/part{number}.py": f"N = {number}\n".encode() for number in range(40)}
    return [
        make_torch(filler=filler),
        make_wheel("numpy", "2.2.6", {"numpy/__init__.py": b"def nothing():\n    pass\n"}),
        make_wheel("small", "1.0", {"small/__init__.py": b"", **many}),
    ]


def write_catalog(own: Path, patched: str = "") -> Path:
    """The catalog in ``own / "data"``, with no package patched but ``patched`` on the pascal stack.

    The files that are left out, of patched packages and of locks, are those a test writes itself.
    """
    data = own / "data"
    (data / "locks").mkdir(parents=True, exist_ok=True)
    for path in catalog.DATA.iterdir():
        if path.name not in ("stacks.toml", "patched.toml", "locks"):
            (data / path.name).unlink(missing_ok=True)
            (data / path.name).symlink_to(path)
    stacks = (catalog.DATA / "stacks.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^patched = .*\n", "", stacks)
    if patched:
        head, found, tail = text.partition('name = "pascal"\n')
        assert found
        text = f'{head}{found}patched = ["{patched}"]\n{tail}'
    (data / "stacks.toml").write_text(text, encoding="utf-8")
    return data


def write_lock(
    directory: Path,
    wheels: list[Wheel],
    wrong: frozenset[str] = frozenset(),
    name: str = LOCK,
) -> Path:
    """The lock of these wheels; those of the packages ``wrong`` get another sha256."""
    pythons = ", ".join(f'"{python}"' for python in PYTHONS)
    lines = ["schema = 1", f'name = "{name}"', 'roots = ["torch==2.7.1"]']
    lines += ['exclude_newer = "2026-11-14T00:00:00Z"', f"pythons = [{pythons}]"]
    for wheel in wheels:
        sha256 = "0" * 64 if wheel.package in wrong else wheel.sha256
        lines += ["[[package]]", f'name = "{wheel.package}"', f'version = "{wheel.version}"']
        lines += ["requires = []", "[[package.files]]", f'name = "{wheel.name}"']
        lines += [f'sha256 = "{sha256}"', f"size = {len(wheel.data)}"]
        lines += [f"unpacked = {wheel.unpacked}", f"pythons = [{pythons}]"]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass
class Index:
    """What the server serves, and how badly. Sizes in bytes.

    ``cuts`` maps a file to the sizes after which its next responses break off; ``lies`` maps a file
    to what is served in its place; ``gate`` holds wheels back until it is set.
    """

    wheels: list[Wheel] = field(default_factory=list)
    url: str = ""
    ranges: bool = True
    hashes: bool = True
    cuts: dict[str, list[int]] = field(default_factory=dict)
    lies: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    gate: threading.Event | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Every wheel asked for, with the Range header."""

    @property
    def simple(self) -> str:
        return f"{self.url}/simple/"

    def link(self, wheel: Wheel) -> str:
        return f"{self.url}/files/{wheel.name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    index: Index

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        if self.path.startswith("/simple/"):
            self._listing(self.path.strip("/").rpartition("/")[2])
        else:
            self._file(self.path.rpartition("/")[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _listing(self, package: str) -> None:
        rows = [
            f'<a href="/files/{wheel.name}'
            + (f"#sha256={wheel.sha256}" if self.index.hashes else "")
            + f'">{wheel.name}</a>'
            for wheel in self.index.wheels
            if wheel.package == package
        ]
        if not rows:
            self.send_error(404)
            return
        body = f"<!DOCTYPE html><html><body>{''.join(rows)}</body></html>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, name: str) -> None:
        index = self.index
        wheel = next((wheel for wheel in index.wheels if wheel.name == name), None)
        span = self.headers.get("Range", "")
        if self.command == "GET":
            index.asked.append((name, span))
        if wheel is None or name in index.gone:
            self.send_error(404)
            return
        data = index.lies.get(name, wheel.data)
        start, stop = 0, len(data)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", span) if index.ranges else None
        if match:
            if match[1]:
                start = int(match[1])
                stop = min(stop, int(match[2]) + 1 if match[2] else stop)
            else:
                start = max(0, stop - int(match[2]))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        if index.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if index.gate is not None:
            index.gate.wait(60)
        cuts = index.cuts.get(name)
        if cuts:
            stop = min(stop, start + cuts.pop(0))
            self.close_connection = True
        self.wfile.write(data[start:stop])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        return  # clients are killed in these tests


@contextmanager
def serve(wheels: list[Wheel]) -> Iterator[Index]:
    """The index, served on a free port of loopback until the context ends."""
    index = Index(list(wheels))
    handler = type("Handler", (_Handler,), {"index": index})
    server = _Server(("127.0.0.1", 0), handler)
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        if index.gate is not None:
            index.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def clean_variables(home: Path, index: Index | None = None) -> dict[str, str]:
    """Environment variables for a run that sees nothing of the person's own settings or cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("UV_", "PIP_", "LEGACY_CUDA_", "XDG_", "PYTHON"))
        and not name.lower().endswith("_proxy")
        and name not in ("VIRTUAL_ENV", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    own = {
        "HOME": str(home),
        "UV_CACHE_DIR": str(home / "uv-cache"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_HTTP_RETRIES": "1",
        "LEGACY_CUDA_HOME": str(home / "environments"),
        "LEGACY_CUDA_CACHE": str(home / "cache"),
        "UV_DEFAULT_INDEX": index.simple if index is not None else "http://127.0.0.1:9/simple/",
    }
    return {**kept, **own}


def use(index: Index, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and what it starts, know only that index and that home."""
    for name in os.environ:
        if name.startswith("UV_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in clean_variables(home, index).items():
        monkeypatch.setenv(name, value)


def command(own: Path | None = None) -> list[str]:
    """The command line of legacy-cuda, with the catalog in ``own / "data"`` in place of its own.

    Patches, and modules that patched wheels carry, are then looked for in ``own``.
    """
    if own is None:
        return [sys.executable, "-m", "legacy_cuda"]
    program = (
        "import sys, pathlib; from legacy_cuda import catalog; "
        "from legacy_cuda.catalog import locks; "
        f"from legacy_cuda.build import series; series.PACKAGE = pathlib.Path({str(own)!r}); "
        "catalog.DATA = series.PACKAGE / 'data'; locks.LOCK_DIRECTORY = catalog.DATA / 'locks'; "
        "from legacy_cuda.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program]


def run(variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run legacy-cuda with its own catalog, which ends without a traceback."""
    done = subprocess.run(
        [*command(), *arguments],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@dataclass
class Box:
    """A home of its own, with the tiny stack's catalog and the index that serves it."""

    home: Path
    index: Index

    @property
    def own(self) -> Path:
        return self.home / "own"

    @property
    def locks(self) -> Path:
        return self.own / "data" / "locks"

    def folder(self, name: str) -> Path:
        """Where the environment of that name is."""
        return self.home / "environments" / name

    @property
    def target(self) -> Path:
        return self.home / "environments" / "p40"

    @property
    def variables(self) -> dict[str, str]:
        return clean_variables(self.home, self.index)

    def run(
        self, *arguments: str, variables: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run legacy-cuda with the tiny catalog."""
        return subprocess.run(
            [*command(self.own), *arguments],
            env={**self.variables, **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **options,
        )


@contextmanager
def box(home: Path, wheels: list[Wheel] | None = None) -> Iterator[Box]:
    """A box below a folder of the test."""
    chosen = make_stack() if wheels is None else wheels
    with serve(chosen) as index:
        fresh = Box(home, index)
        write_catalog(fresh.own)
        write_lock(fresh.locks, chosen)
        yield fresh
