"""Remake the locks: the wheels, sha256s and sizes of everything that is installed from PyPI.

    python tools/update_locks.py [--lock NAME] [--check] [--exclude-newer DATE]

The keys above the first package of ``catalog/data/locks/NAME.toml`` are the input and written by
a person (a new lock starts as a file with nothing else); everything below is written here. With no
option every lock is resolved again as of the moment it records, so that nothing changes unless the
input or this program did; ``--exclude-newer`` moves that moment, ``--check`` writes nothing and
exits 1 where a lock would change.

One version of each package serves all Pythons of a lock: the lowest Python is resolved first and
the others are held to its versions. Of the wheels of a version the one an installer would prefer
on a machine with glibc ``GLIBC`` is taken, with the highest build tag. Versions, file names,
dates and sha256s come from the index through ``uv pip compile``; sizes and dependencies are read
out of each wheel's own directory and METADATA through HTTP range requests, so that a few hundred
kilobytes are fetched instead of gigabytes (and no sha256 is recomputed: installers do that).

The index is PyPI, or what UV_DEFAULT_INDEX, UV_INDEX_URL or PIP_INDEX_URL says. Configuration
files, find-links and additional indexes are ignored.

Needs: the packages legacy-cuda depends on, and its extra ``dev``.
Exit: 0 fine, 1 --check found a lock that would change, 2 bad input, 3 the network failed.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import requests
import tomli_w
from packaging.metadata import RawMetadata, parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from legacy_cuda import fetch
from legacy_cuda.errors import SurroundingsError
from legacy_cuda.fetch import Remote as Wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "python/src/legacy_cuda/catalog/data"

# glibc 2.28 is what torch's own wheels ask for from 2.6 on.
GLIBC = (2, 28)

HEADER = (
    "# Written by tools/update_locks.py from the keys above the first package,\n"
    "# which a person edits.\n\n"
)
INPUT_KEYS = ("schema", "name", "note", "roots", "exclude_newer", "pythons")
SETTINGS_THAT_ADD_SOURCES = (
    *fetch.SETTINGS_THAT_REDIRECT,
    "UV_CONFIG_FILE",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_INDEX",
    "UV_NO_INDEX",
)
TIMEOUT = 60.0  # seconds, for one HTTP request
FETCH = 1 << 16  # bytes, read at once from a remote wheel


class BadInputError(Exception):
    """What a person wrote cannot be locked."""


class UvError(Exception):
    """uv failed for another reason than that there is no solution."""


@dataclass(frozen=True)
class Contents:
    """What is read out of a wheel: both sizes (bytes) and its dependencies."""

    size: int
    unpacked: int
    requires: tuple[Requirement, ...]


class RemoteFile(io.RawIOBase):
    """A file on an HTTP server, read only where it is asked to be."""

    def __init__(self, session: requests.Session, url: str) -> None:
        """Ask for the file's size.

        Raises:
            requests.RequestException: the server failed, or does not answer range requests.
        """
        self._session, self._url, self._position = session, url, 0
        _, total = self._get(0, 1)
        self.size = total

    def _get(self, start: int, stop: int) -> tuple[bytes, int]:
        ask = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._session.get(self._url, headers=ask, timeout=TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
            where = re.fullmatch(
                rf"bytes {start}-\d+/(\d+)", answer.headers.get("Content-Range", "")
            )
            if answer.status_code != requests.codes.partial_content or where is None:
                raise requests.RequestException("the index does not answer range requests")
            return answer.content, int(where[1])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self.size)
        if stop <= self._position:
            return 0
        data, _ = self._get(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def compile_for(
    python: str, roots: Iterable[str], pins: dict[str, str], exclude_newer: str
) -> list[dict[str, Any]]:
    """The packages uv chooses for one Python, as the tables of a ``pylock.toml`` (PEP 751).

    Raises:
        BadInputError: there is no solution.
        UvError: uv could not look for one, most likely because the index cannot be reached.
    """
    environment = {k: v for k, v in os.environ.items() if k not in SETTINGS_THAT_ADD_SOURCES}
    index = next(
        (
            environment[key]
            for key in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
            if environment.get(key)
        ),
        None,
    )
    options = ["--no-config", "--exclude-newer", exclude_newer]
    if index is not None:
        options += ["--default-index", index]
    # A constraint would do for the pins; as requirements they also bring in, for every Python,
    # what only some of them need, so that all Pythons have the same list.
    lines = [*roots, *(f"{name}=={version}" for name, version in sorted(pins.items()))]
    try:
        return fetch.compile_pylock(lines, python, GLIBC, options, environment)
    except fetch.NoSolutionError as error:
        raise BadInputError(f"{error.what}:\n{error.why}") from error
    except SurroundingsError as error:
        raise UvError(f"{error.what}:\n{error.why}") from error


def choose(package: dict[str, Any], python: str) -> Wheel:
    """The wheel an installer would take: best tag first, then the highest build tag.

    Raises:
        BadInputError: none of the wheels is for that Python and linux x86_64.
    """
    found = fetch.choose_wheel(package, python, GLIBC)
    if found is None:
        raise BadInputError(
            f"{package['name']} {package['version']} has no linux x86_64 wheel for Python {python}"
        )
    return found


def read_wheel(session: requests.Session, wheel: Wheel) -> Contents:
    """Read a wheel's directory and METADATA from the index.

    Raises:
        requests.RequestException: the index failed.
        BadInputError: the file is no wheel.
    """
    remote = RemoteFile(session, wheel.url)
    try:
        with zipfile.ZipFile(io.BufferedReader(remote, FETCH)) as archive:
            members = archive.infolist()
            (metadata,) = (
                member
                for member in members
                if member.filename.count("/") == 1
                and member.filename.endswith(".dist-info/METADATA")
            )
            raw: RawMetadata = parse_email(archive.read(metadata))[0]
        requires = tuple(Requirement(line) for line in raw.get("requires_dist", []))
    except (zipfile.BadZipFile, ValueError) as error:
        raise BadInputError(f"{wheel.file} is not a wheel: {error}") from error
    return Contents(remote.size, sum(member.file_size for member in members), requires)


def needs(requirement: Requirement, python: str, extras: Iterable[str] = ()) -> bool:
    """Whether a dependency holds for that CPython on linux x86_64 with these extras."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)
    )


def check_requirement(requirement: Requirement, versions: dict[str, str], whose: str) -> str:
    """The package's name, when the pinned version satisfies the requirement.

    Raises:
        BadInputError: it does not.
    """
    name = canonicalize_name(requirement.name)
    if name not in versions:
        raise BadInputError(f"{whose} asks for {requirement}, which was not resolved")
    if not requirement.specifier.contains(versions[name], prereleases=True):
        raise BadInputError(f"{whose} asks for {requirement}, but {versions[name]} was resolved")
    return name


def dependencies(
    roots: Sequence[Requirement], wheels: Mapping[str, Sequence[tuple[Contents, list[str]]]]
) -> dict[str, list[Requirement]]:
    """What each package needs, with the extras that the roots or other packages ask of it.

    ``wheels`` are its files' contents, each with the Pythons it serves.
    """
    extras: dict[str, set[str]] = {name: set() for name in wheels}
    found: dict[str, list[Requirement]] = {}
    before = None
    while before != extras:
        before = {name: set(asked) for name, asked in extras.items()}
        for name, files in wheels.items():
            found[name] = [
                requirement
                for contents, pythons in files
                for requirement in contents.requires
                if any(needs(requirement, python, extras[name]) for python in pythons)
            ]
        for requirement in (*roots, *(item for items in found.values() for item in items)):
            asked = {canonicalize_name(extra) for extra in requirement.extras}
            extras.get(canonicalize_name(requirement.name), set()).update(asked)
    return found


def make_lock(header: dict[str, Any], session: requests.Session) -> str:
    """The text of a lock, from its header.

    Raises:
        BadInputError: the header cannot be locked.
        UvError, requests.RequestException: the index failed.
    """
    pythons: list[str] = header["pythons"]
    try:
        roots = [Requirement(text) for text in header["roots"]]
    except InvalidRequirement as error:
        raise BadInputError(f"lock {header['name']}: {error}") from error
    pins: dict[str, str] = {}
    for python in pythons:
        for package in compile_for(python, header["roots"], pins, header["exclude_newer"]):
            pins[package["name"]] = package["version"]

    wheels: dict[str, dict[Wheel, list[str]]] = {name: {} for name in sorted(pins)}
    for python in pythons:
        for package in compile_for(python, header["roots"], pins, header["exclude_newer"]):
            wheels[package["name"]].setdefault(choose(package, python), []).append(python)

    every = [wheel for chosen in wheels.values() for wheel in chosen]
    with ThreadPoolExecutor(4) as pool:
        contents = dict(
            zip(every, pool.map(lambda wheel: read_wheel(session, wheel), every), strict=True)
        )

    for root in roots:
        check_requirement(root, pins, f"lock {header['name']}")
    needed = dependencies(
        roots,
        {
            name: [(contents[wheel], served) for wheel, served in chosen.items()]
            for name, chosen in wheels.items()
        },
    )
    packages = []
    for name, chosen in wheels.items():
        requires = {
            check_requirement(requirement, pins, f"{name} {pins[name]}")
            for requirement in needed[name]
        } - {name}
        files = [
            {
                "name": wheel.file,
                "sha256": wheel.sha256,
                "size": contents[wheel].size,
                "unpacked": contents[wheel].unpacked,
                "pythons": served,
            }
            for wheel, served in chosen.items()
        ]
        packages.append(
            {"name": name, "version": pins[name], "requires": sorted(requires), "files": files}
        )
    return HEADER + tomli_w.dumps({**header, "package": packages})


def read_header(path: Path) -> dict[str, Any]:
    """A lock's keys above its first package.

    Raises:
        BadInputError: the file is missing, is not TOML, or lacks a key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        header = {key: data[key] for key in INPUT_KEYS}
    except FileNotFoundError as error:
        raise BadInputError(f"there is no {path}; write its header first") from error
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise BadInputError(f"{path}: {error}") from error
    if header["name"] != path.stem:
        raise BadInputError(f"{path}: its name is {header['name']!r}")
    header["pythons"] = sorted(header["pythons"], key=lambda text: int(text.split(".")[1]))
    return header


def moment(text: str) -> str:
    """The start of a day such as ``2026-11-14``, in UTC, as RFC 3339."""
    return f"{date.fromisoformat(text).isoformat()}T00:00:00Z"


def lock_paths(name: str | None) -> list[Path]:
    """One lock, or all.

    Raises:
        BadInputError: there is no such lock.
    """
    paths = sorted((DATA / "locks").glob("*.toml"))
    chosen = [path for path in paths if name in (None, path.stem)]
    if not chosen:
        known = ", ".join(path.stem for path in paths)
        raise BadInputError(f"there is no lock {name!r}; known: {known}")
    return chosen


def http_session() -> requests.Session:
    """A session that tries three times more where the server is overloaded or the line breaks."""
    session = requests.Session()
    retry = Retry(total=3, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    return session


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Remake the locks of the catalog.")
    parser.add_argument("--lock", metavar="NAME", help="only this lock")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    parser.add_argument(
        "--exclude-newer",
        metavar="DATE",
        type=moment,
        help="ignore what was uploaded from this day (YYYY-MM-DD, UTC) on, and record that",
    )
    options = parser.parse_args(arguments)
    changed = False
    try:
        with http_session() as session:
            for path in lock_paths(options.lock):
                header = read_header(path)
                if options.exclude_newer is not None:
                    header["exclude_newer"] = options.exclude_newer
                text = make_lock(header, session)
                if text == path.read_text(encoding="utf-8"):
                    print(f"{path.name}: unchanged")
                    continue
                changed = True
                print(f"{path.name}: {'would change' if options.check else 'written'}")
                if not options.check:
                    sibling = path.with_suffix(".toml.new")
                    sibling.write_text(text, encoding="utf-8")
                    sibling.replace(path)
    except BadInputError as error:
        print(f"update_locks: {error}", file=sys.stderr)
        return 2
    except (UvError, requests.RequestException) as error:
        print(f"update_locks: the index failed: {error}", file=sys.stderr)
        return 3
    return 1 if changed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
