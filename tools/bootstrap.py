"""Give legacy-cuda an environment of its own to run in, on a machine that has only Python 3.

Standard library only. uv is taken from PATH, or installed by pip into the cache; where pip is
missing too (Debian and Ubuntu ship Python without it), pip is taken out of the distribution's own
package, unpacked into the cache without root. Everything installed is pinned by sha256 in
``python/requirements*.txt``. The environment is made once for each set of pins and Python.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
DEBIAN_PIP = "python3-pip-whl"  # holds usr/share/python-wheels/pip-*.whl on Debian and Ubuntu


class BootstrapError(Exception):
    """The environment cannot be made: what is wrong and what to do."""


def cache() -> Path:
    """The same folder as ``legacy_cuda.paths.cache_directory``."""
    chosen = os.environ.get("LEGACY_CUDA_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legacy-cuda"


def environment(requirements: Path) -> Path:
    """The Python of an environment with exactly these requirements; made if it is not there.

    Raises:
        BootstrapError: it cannot be made.
    """
    if sys.version_info < OLDEST:
        raise BootstrapError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old; "
            f"run this with Python {OLDEST[0]}.{OLDEST[1]} or newer"
        )
    source = ROOT / "python" / "src"
    identity = f"{sys.version}\n{sys.executable}\n{source}\n".encode() + requirements.read_bytes()
    target = cache() / "tool" / hashlib.sha256(identity).hexdigest()[:16]
    python = target / "bin" / "python"
    if python.exists():
        return python
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        print("legacy-cuda: first run, setting up its own environment ...", file=sys.stderr)
        uv = find_uv(requirements)
        _run([uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, building])
        _run(
            [
                *(uv, "pip", "sync", "--quiet", "--require-hashes", "--only-binary", ":all:"),
                *("--python", building / "bin" / "python", requirements),
            ]
        )
        (site,) = building.glob("lib/python3*/site-packages")
        (site / "legacy_cuda_source.pth").write_text(f"{source}\n", encoding="utf-8")
        try:
            building.rename(target)
        except OSError:
            if not python.exists():  # else another run was quicker
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return python


def find_uv(requirements: Path) -> Path:
    """uv from PATH, or installed into the cache with the pinned sha256.

    Raises:
        BootstrapError: there is neither uv nor a way to pip.
    """
    on_path = shutil.which("uv")
    if on_path:
        return Path(on_path)
    folder = cache() / "tool" / "uv"
    program = folder / "bin" / "uv"
    if program.exists():
        return program
    # uv's lines of the lock: the requirement and its hashes, up to the next requirement.
    match = re.search(r"^uv==.*?(?=^\S)", requirements.read_text() + "\nend", re.M | re.S)
    if match is None:
        raise BootstrapError(f"{requirements} does not pin uv")
    with tempfile.TemporaryDirectory(prefix="legacy-cuda-") as temporary:
        pin = Path(temporary) / "uv.txt"
        pin.write_text(match[0], encoding="utf-8")
        pip, variables = find_pip(Path(temporary))
        _run(
            [
                *(*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("--require-hashes", "--only-binary", ":all:", "--upgrade"),
                *("--target", folder, "--requirement", pin),
            ],
            variables,
        )
    return program


def find_pip(temporary: Path) -> tuple[list[str], dict[str, str]]:
    """The command that runs pip, and the environment variables it needs.

    Raises:
        BootstrapError: there is none, and none could be had.
    """
    command: list[str] = [sys.executable, "-m", "pip"]
    probe = subprocess.run([*command, "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        return command, {}
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        wheel = debian_pip(temporary)
        if wheel is not None:
            return command, {"PYTHONPATH": str(wheel)}
    raise BootstrapError(
        "this Python has no pip, and uv is not installed\n"
        "  -> install one of them: the package python3-pip of your distribution, or uv"
    )


def debian_pip(temporary: Path) -> Path | None:
    """pip's wheel out of the distribution's package, which apt downloads and checks; no root."""
    own = temporary / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (own / folder).mkdir(parents=True)
    options = ["-q", "-o", f"Dir::Cache={own / 'cache'}", "-o", "APT::Sandbox::User="]
    own_lists = ["-o", f"Dir::State::Lists={own / 'lists'}"]
    download = ["apt-get", *options, "download", DEBIAN_PIP]
    if subprocess.run(download, cwd=temporary, capture_output=True, check=False).returncode:
        update = ["apt-get", *options, *own_lists, "update"]
        subprocess.run(update, cwd=temporary, capture_output=True, check=False)
        download[1:1] = own_lists
        subprocess.run(download, cwd=temporary, capture_output=True, check=False)
    for package in temporary.glob(f"{DEBIAN_PIP}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(temporary / "pip")], check=True)
        for wheel in (temporary / "pip").glob("usr/share/python-wheels/pip-*.whl"):
            return wheel
    return None


def _run(command: Sequence[str | Path], variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BootstrapError(
            f"{Path(str(command[0])).name} failed:\n{done.stderr.strip()}\n"
            "  -> check the network; mirrors are set as for pip and uv"
        )


def start(requirements: str, arguments: list[str]) -> None:
    """Run Python with these arguments in the environment, in place of this process."""
    try:
        python = environment(ROOT / "python" / requirements)
    except (BootstrapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    os.execv(python, [str(python), *arguments])
