"""Wheels from PyPI, or from the index that uv is configured for, into a cache, checked by sha256.

uv is asked which files there are, so mirrors, credentials and proxies are set up as for uv itself.
Downloads go on where they were broken off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from legacy_cuda import paths
from legacy_cuda.catalog.locks import LEGACY_MANYLINUX
from legacy_cuda.errors import SurroundingsError, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_THAT_REDIRECT = (
    "UV_CONSTRAINT",
    "UV_EXCLUDE_NEWER",
    "UV_OVERRIDE",
    "UV_PRERELEASE",
    "UV_RESOLUTION",
    "UV_TORCH_BACKEND",
)
"""uv's settings that choose other versions or sources than asked for; mirrors are none of them."""

GLIBC = (2, 40)  # of the machine that wheels are looked up for: newer than any wheel asks for
_ATTEMPTS = 5
_TIMEOUT = 60.0  # seconds without a byte
_PIECE = 1 << 20
_FINAL = frozenset({401, 403, 404, 410, 451})  # HTTP answers that another attempt does not change

# uv's configuration: the person's and the system's count, that of the project one happens to
# stand in does not.
NO_PROJECT = ("--project", "/")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on the index. Size in bytes, 0 where it is not known yet; "" for an unknown URL."""

    package: str
    version: str
    file: str
    sha256: str
    size: int = 0
    url: str = ""


class NoSolutionError(UserError):
    """The index has no such version, or none with wheels for this platform."""


def uv_binary() -> str:
    """The uv that was installed as a dependency.

    Raises:
        SurroundingsError: it is missing.
    """
    import uv

    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError as error:
        raise SurroundingsError(
            "uv is missing", str(error), "reinstall legacy-cuda: uv is one of its dependencies"
        ) from error


def uv_variables() -> dict[str, str]:
    """The environment for uv: mirrors, proxies and the cache are a person's to choose, but not
    settings that put another version or source in the place of the lock's."""
    variables = {
        name: value for name, value in os.environ.items() if name not in SETTINGS_THAT_REDIRECT
    }
    if variables.get("UV_LINK_MODE") == "symlink":  # would be nothing but links into a cache
        del variables["UV_LINK_MODE"]
    return variables


def compile_pylock(
    requirements: Iterable[str],
    python: str,
    glibc: tuple[int, int] = GLIBC,
    options: Iterable[str] = (),
    environment: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What uv chooses for a CPython on linux x86_64: the packages of a ``pylock.toml`` (PEP 751).

    Raises:
        NoSolutionError: there is no solution.
        SurroundingsError: uv could not look for one, most likely because of the network.
    """
    command = [
        uv_binary(),
        *NO_PROJECT,
        *("pip", "compile", "--quiet", "--no-header", "--no-python-downloads"),
        *("--format", "pylock.toml", "--only-binary", ":all:"),
        *("--python-version", python),
        *("--python-platform", f"x86_64-manylinux_{glibc[0]}_{glibc[1]}"),
        *options,
        "-",
    ]
    done = subprocess.run(
        command,
        input="\n".join(requirements) + "\n",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # uv's reference, "Exit codes": 1 is a failure it expects, 2 an error.
        message = done.stderr.strip()
        if "network was disabled" in message:
            raise SurroundingsError(
                f"uv is told to stay offline, and does not know {', '.join(requirements)}",
                message,
                "unset UV_OFFLINE, or run once with a network",
            )
        if done.returncode == 1:
            raise NoSolutionError(f"uv finds nothing for Python {python}", message)
        raise SurroundingsError(
            "the package index could not be asked",
            message,
            "check the network; mirrors are set as for uv (UV_DEFAULT_INDEX)",
        )
    packages: list[dict[str, Any]] = tomllib.loads(done.stdout)["packages"]
    return packages


def choose_wheel(
    package: dict[str, Any], python: str, glibc: tuple[int, int] = GLIBC
) -> Remote | None:
    """The wheel of a pylock package that an installer would take: best tag, highest build tag."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    platforms = []
    for minor in range(glibc[1], 4, -1):
        platforms.append(f"manylinux_2_{minor}_x86_64")
        platforms += [tag for tag, floor in LEGACY_MANYLINUX.items() if floor == (2, minor)]
    version = tuple(int(part) for part in python.split("."))
    interpreter = "cp" + python.replace(".", "")
    tags = [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]
    rank = {tag: -place for place, tag in reversed(list(enumerate(tags)))}
    best: tuple[int, tuple[int, str]] | None = None
    found: Remote | None = None
    for wheel in package.get("wheels", []):
        name = unquote(urlsplit(wheel["url"]).path.rpartition("/")[2])
        if "/" in name:
            continue
        _, _, build, own = parse_wheel_filename(name)
        usable = [rank[tag] for tag in own if tag in rank]
        if not usable:
            continue
        score = (max(usable), build if build else (-1, ""))
        if best is None or score > best:
            best = score
            found = Remote(
                package=package["name"],
                version=package["version"],
                file=name,
                sha256=wheel["hashes"]["sha256"],
                size=wheel.get("size", 0),
                url=wheel["url"],
            )
    return found


def find_wheel(package: str, version: str, python: str) -> Remote:
    """The linux x86_64 wheel of a version for a CPython (``"3.11"``).

    Raises:
        NoSolutionError: there is none.
        SurroundingsError: the index could not be asked.
    """
    why = ""
    try:
        for found in compile_pylock([f"{package}=={version}"], python, options=["--no-deps"]):
            remote = choose_wheel(found, python)
            if remote is not None:
                return remote
    except NoSolutionError as error:
        why = error.why.rpartition("cause: ")[2]
    raise NoSolutionError(
        f"there is no {package} {version} as a Linux x86_64 wheel for Python {python}",
        why,
        "name another version, or another Python with --python",
    )


def cached_path(remote: Remote) -> Path:
    """Where the wheel is, or would be, in the cache."""
    return paths.cache_directory() / "wheels" / remote.sha256 / remote.file


def download(remote: Remote, python: str = "3.11", progress: Progress | None = None) -> Path:
    """The wheel in the cache, downloaded first if it is not there; its sha256 has been checked.

    Raises:
        SurroundingsError: the network or the disk failed, or the file has another sha256. What
            was downloaded so far is kept, except for a file with the wrong sha256.
    """
    target = cached_path(remote)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(".lock")):
            if not target.is_file():
                url = remote.url or _url_of(remote, python)
                _download(url, remote, target, progress or (lambda done, total: None))
    except OSError as error:
        raise SurroundingsError(
            f"{remote.file} could not be stored",
            str(error),
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        ) from error
    return target


def _url_of(remote: Remote, python: str) -> str:
    """Ask the index for the URL of a file whose name and sha256 are known."""
    options = ["--no-deps"]
    if remote.file.endswith(".whl"):
        tag = remote.file.split("-")[-3]
        if tag.startswith("cp3") and not remote.file.split("-")[-2].startswith("abi"):
            python = f"3.{tag[3:]}"
    else:
        options += ["--no-binary", remote.package]
    pin = f"{remote.package}=={remote.version}"
    for package in compile_pylock([pin], python, options=options):
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        for file in files:
            if file["hashes"]["sha256"] == remote.sha256:
                return str(file["url"])
    raise SurroundingsError(
        f"the index does not have the {remote.package} {remote.version} that is pinned",
        f"no file with sha256 {remote.sha256} ({remote.file})",
        "a mirror may be out of date; if PyPI itself changed, please report it",
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for; the file stays. Waits for whoever holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _download(url: str, remote: Remote, target: Path, progress: Progress) -> None:
    import requests

    part = target.with_name(target.name + ".part")
    digest = hashlib.sha256()
    done = 0
    if part.exists():
        with part.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                done += len(piece)
    problem = ""
    with requests.Session() as session, part.open("ab") as file:
        for _ in range(_ATTEMPTS):
            headers = {"Accept-Encoding": "identity"}
            if done:
                headers["Range"] = f"bytes={done}-"
            try:
                with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
                    if answer.status_code == requests.codes.requested_range_not_satisfiable:
                        break  # everything is here already
                    answer.raise_for_status()
                    if done and answer.status_code != requests.codes.partial_content:
                        file.truncate(0)
                        digest, done = hashlib.sha256(), 0
                    total = done + int(answer.headers.get("Content-Length", 0))
                    for piece in answer.iter_content(_PIECE):
                        file.write(piece)
                        digest.update(piece)
                        done += len(piece)
                        progress(done, total or remote.size)
                    if done >= total:
                        break
                    problem = f"the connection ended after {done} of {total} bytes"
            except requests.RequestException as error:
                problem = str(error)
                if error.response is not None and error.response.status_code in _FINAL:
                    raise SurroundingsError(
                        f"{remote.file} could not be downloaded",
                        problem,
                        "the index refuses it; mirrors and credentials are set as for uv",
                    ) from error
        else:
            raise SurroundingsError(
                f"{remote.file} could not be downloaded",
                problem,
                "check the network and run again: the download goes on where it stopped",
            )
    if digest.hexdigest() != remote.sha256:
        part.unlink()
        raise SurroundingsError(
            f"{remote.file} has the wrong sha256 and was thrown away",
            f"expected {remote.sha256}, got {digest.hexdigest()}",
            "run again; if it stays so, the mirror or a proxy changes files",
        )
    part.rename(target)
