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
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
DEBIAN_PIP = "python3-pip-whl"  # holds usr/share/python-wheels/pip-*.whl on Debian and Ubuntu


ABANDONED = 86400.0  # seconds after which a folder of an unfinished run belongs to a dead one


class BootstrapError(Exception):
    """The environment cannot be made: what is wrong, why, and what to do about it."""

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(what)
        self.what, self.why, self.next_step = what, why, next_step

    def __str__(self) -> str:
        lines = [self.what, *(f"  {line}" for line in self.why.splitlines())]
        return "\n".join([*lines, f"  -> {self.next_step}"])


def cache() -> Path:
    """The same folder as ``legacy_cuda.paths.cache_directory``."""
    chosen = os.environ.get("LEGACY_CUDA_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "legacy-cuda"


def environment(requirements: Path) -> Path:
    """The Python of an environment with exactly these requirements; made if it is not there.

    Raises:
        BootstrapError: it cannot be made.
    """
    if sys.version_info < OLDEST:
        raise BootstrapError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old",
            f"it is {sys.executable}",
            f"run this with Python {OLDEST[0]}.{OLDEST[1]} or newer",
        )
    source = ROOT / "python" / "src"
    identity = f"{sys.version}\n{sys.executable}\n{source}\n".encode() + requirements.read_bytes()
    try:
        folder = cache() / "tool"
    except RuntimeError as error:  # there is no home folder
        raise _no_cache("the cache folder is not known", error) from error
    target = folder / hashlib.sha256(identity).hexdigest()[:16]
    python = target / "bin" / "python"
    try:
        if python.exists():
            return python
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder)
        building = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        building.chmod(0o755)  # a service that runs as another user reads it
    except OSError as error:
        raise _no_cache(f"the cache folder {folder} cannot be written", error) from error
    try:
        print("legacy-cuda: first run, setting up its own environment ...", file=sys.stderr)
        uv = find_uv(requirements)
        _run(
            "an environment for legacy-cuda itself could not be made",
            [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, building],
        )
        _run(
            "the packages that legacy-cuda itself needs could not be installed",
            [
                *(uv, "pip", "sync", "--quiet", "--require-hashes", "--only-binary", ":all:"),
                *("--python", building / "bin" / "python", requirements),
            ],
        )
        (site,) = building.glob("lib/python3*/site-packages")
        (site / "legacy_cuda_source.pth").write_text(f"{source}\n", encoding="utf-8")
        _put(building, target, python)
    except OSError as error:
        raise _no_cache(f"the cache folder {folder} cannot be written", error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return python


def clear_abandoned(folder: Path) -> None:
    """Remove what runs that were killed more than a day ago left."""
    for leftover in folder.glob(".new-*"):
        try:
            if time.time() - leftover.stat().st_mtime > ABANDONED:
                shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:
            pass  # its run has just ended


def _put(building: Path, target: Path, program: Path) -> None:
    """Rename what was built to its place, unless another run was quicker and ``program`` works."""
    try:
        building.rename(target)
    except OSError:
        if program.exists():
            return
        shutil.rmtree(target)  # its Python is gone
        building.rename(target)


def _no_cache(what: str, error: Exception) -> BootstrapError:
    return BootstrapError(
        what, str(error), "free space, or set LEGACY_CUDA_CACHE to a folder you may write to"
    )


def find_uv(requirements: Path) -> Path:
    """uv from PATH, or installed into the cache with the pinned sha256; one for each pin.

    Raises:
        BootstrapError: there is neither uv nor a way to pip.
    """
    on_path = shutil.which("uv")
    if on_path:
        return Path(on_path)
    # uv's lines of the lock: the requirement and its hashes, up to the next requirement.
    match = re.search(r"^uv==.*?(?=^\S)", requirements.read_text() + "\nend", re.M | re.S)
    if match is None:
        raise BootstrapError(
            f"{requirements} does not pin uv", "it has no line uv==...", "restore the checkout"
        )
    folder = cache() / "tool"
    target = folder / f"uv-{hashlib.sha256(match[0].encode()).hexdigest()[:16]}"
    program = target / "bin" / "uv"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        with tempfile.TemporaryDirectory(prefix="legacy-cuda-") as temporary:
            pin = Path(temporary) / "uv.txt"
            pin.write_text(match[0], encoding="utf-8")
            pip, variables = find_pip(Path(temporary))
            _run(
                "uv, which installs the packages, could not be had",
                [
                    *(*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
                    *("--require-hashes", "--only-binary", ":all:", "--upgrade"),
                    *("--target", building, "--requirement", pin),
                ],
                variables,
            )
        _put(building, target, program)
    finally:
        shutil.rmtree(building, ignore_errors=True)
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
        "there is nothing to install packages with",
        f"{sys.executable} has no pip, uv is not on PATH, and apt-get could not get pip",
        "install the package python3-pip of your distribution, or uv",
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
        unpack = ["dpkg-deb", "-x", str(package), str(temporary / "pip")]
        subprocess.run(unpack, capture_output=True, check=False)
        for wheel in (temporary / "pip").glob("usr/share/python-wheels/pip-*.whl"):
            return wheel
    return None


def _run(what: str, command: Sequence[str | Path], variables: dict[str, str] | None = None) -> None:
    """Run a program; ``what`` is said if it fails, with the end of its own message."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = "\n".join(lines[-8:]) or f"{Path(str(command[0])).name} ended with {done.returncode}"
    lower = done.stderr.lower()
    if "no space left" in lower or "disk quota" in lower or "permission denied" in lower:
        next_step = (
            "free space, or set LEGACY_CUDA_CACHE (and UV_CACHE_DIR) to a folder you may write to"
        )
    elif "do not match the hashes" in lower or "hash mismatch" in lower:
        next_step = "a mirror or a proxy changes files: compare its settings with those for PyPI"
    else:
        next_step = "check the network and run again; mirrors and proxies are set as for pip and uv"
    raise BootstrapError(what, why, next_step)


def start(requirements: str, arguments: list[str]) -> None:
    """Run Python with these arguments in the environment, in place of this process."""
    try:
        python = environment(ROOT / "python" / requirements)
    except (BootstrapError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
    os.execv(python, [str(python), *arguments])
