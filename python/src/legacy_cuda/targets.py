"""What ``audit`` can be pointed at: wheels, libraries, folders, environments, ``name==version``."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from legacy_cuda import audit, evidence, fetch
from legacy_cuda.devicecode import DeviceCodeError, scan_file, scan_tree, scan_wheel
from legacy_cuda.devicecode.scan import Progress
from legacy_cuda.errors import SurroundingsError, UserError

Kind = Literal["wheel", "library", "folder", "environment"]

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._+!-]*)")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_LIBRARY = re.compile(r"\.so(\.[0-9]+)*$")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged. ``scanned`` is the date of the evidence, or "" where it was read just now.

    ``owners`` maps the paths of libraries in an environment to ``name version`` of the
    distribution they were installed by; ``absent`` lists, in the same way, libraries that were
    installed and are gone. The path of a single library is absolute, as is that of a library in a
    folder within a site-packages: what it is to its package shows in the whole path only.
    """

    name: str
    kind: Kind
    libraries: tuple[audit.Library, ...]
    package: str = ""
    version: str = ""
    file: str = ""
    sha256: str = ""
    scanned: str = ""
    torch_cuda: tuple[int, int] | None = None
    owners: tuple[tuple[str, str], ...] = ()
    absent: tuple[tuple[str, str], ...] = ()


def load_all(
    target: str, python: str = "3.11", rescan: bool = False, progress: Progress | None = None
) -> list[Subject]:
    """As :func:`load`; each wheel that lies directly in a folder is a subject of its own.

    Raises:
        UserError: there is no such thing, or it is not readable as what it is.
        SurroundingsError: a download or the disk failed.
    """
    folder = Path(target)
    wheels = sorted(folder.glob("*.whl")) if target and folder.is_dir() else []
    subjects = [load(str(path), python, rescan, progress) for path in wheels if path.is_file()]
    own = load(target, python, rescan, progress)
    if own.libraries or own.absent or own.kind != "folder" or not subjects:
        subjects.insert(0, own)
    return subjects


def load(
    target: str, python: str = "3.11", rescan: bool = False, progress: Progress | None = None
) -> Subject:
    """Read the device code of a target. Nothing in it is executed.

    Args:
        target: a path, or ``name==version`` of a package on PyPI.
        python: for which CPython's wheel ``name==version`` is looked up.
        rescan: do not take the catalog's evidence for a wheel whose sha256 it knows.
        progress: told of bytes done.

    Raises:
        UserError: there is no such thing, or it is not readable as what it is.
        SurroundingsError: a download or the disk failed.
    """
    requirement = _REQUIREMENT.fullmatch(target)
    path = Path(target)
    try:
        if not target:
            raise UserError("the name of a target is empty", next_step="name a path or a package")
        if path.is_dir():
            return _load_folder(path, progress)
        if path.is_file():
            return _load_file(path, rescan, progress)
        if path.exists() or path.is_symlink():
            raise UserError(f"{target} is not a regular file", "only files and folders are read")
    except DeviceCodeError as error:
        raise UserError(
            f"{target} cannot be judged",
            str(error),
            "name a wheel, a library, a folder or an environment; is it complete?",
        ) from error
    except OSError as error:
        raise SurroundingsError(f"{target} cannot be read", str(error)) from error
    if requirement is None:
        raise UserError(
            f"there is no {target!r}",
            "it is neither a path nor of the form name==version",
            "for a package on PyPI name its version, for example torch==2.7.1",
        )
    if not _PYTHON.fullmatch(python):
        raise UserError(f"{python!r} is no Python version", next_step="for example: --python 3.11")
    return _load_package(requirement[1], requirement[2], python, rescan, progress)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _load_file(path: Path, rescan: bool, progress: Progress | None) -> Subject:
    if path.suffix != ".whl":
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if not is_zip:
            code = scan_file(path, str(path.absolute()), progress)
            return Subject(path.name, "library", audit.summarise([code]), sha256=_sha256(path))
    package, version = _wheel_name(path)
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(_sha256, path)
        known = None
        if not rescan and package:
            known = evidence.find(package, path.name, hashing.result())
        if known is not None:
            return _from_evidence(known)
        libraries = audit.summarise(scan_wheel(path, progress))
        return Subject(
            path.name,
            "wheel",
            libraries,
            package=package,
            version=version,
            file=path.name,
            sha256=hashing.result(),
        )


def _wheel_name(path: Path) -> tuple[str, str]:
    """Normalised name and version out of a wheel's file name, or two empty strings."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename:
        return "", ""
    return str(name), str(version)


def _from_evidence(known: evidence.Evidence) -> Subject:
    return Subject(
        known.file,
        "wheel",
        known.libraries,
        package=known.package,
        version=known.version,
        file=known.file,
        sha256=known.sha256,
        scanned=known.scanned,
    )


def _load_package(
    name: str, version: str, python: str, rescan: bool, progress: Progress | None
) -> Subject:
    from packaging.utils import canonicalize_name

    package = str(canonicalize_name(name))
    if not rescan:
        interpreter = f"cp{python.replace('.', '')}"
        for item in evidence.known(package):
            tag, abi = item.file.split("-")[-3:-1]
            if item.version == version and (tag == interpreter or abi in ("none", "abi3")):
                return _from_evidence(item)
    try:
        remote = fetch.find_wheel(package, version, python)
    except fetch.NoSolutionError as error:
        versions = list(dict.fromkeys(item.version for item in evidence.known(package)))
        if not versions:
            raise
        near = f"versions known here: {', '.join(versions)}"
        raise fetch.NoSolutionError(error.what, error.why, near) from error
    report = progress or (lambda count: None)
    last = 0

    def downloaded(done: int, _: int) -> None:
        nonlocal last
        report(done - last)
        last = done

    path = fetch.download(remote, python, downloaded)
    try:
        libraries = audit.summarise(scan_wheel(path, progress))
    except DeviceCodeError as error:
        raise UserError(f"{remote.file} cannot be judged", str(error)) from error
    return Subject(
        remote.file,
        "wheel",
        libraries,
        package=package,
        version=version,
        file=remote.file,
        sha256=remote.sha256,
    )


def _load_folder(root: Path, progress: Progress | None) -> Subject:
    libraries = audit.summarise(scan_tree(root, progress=progress))
    packages = sorted(root.glob("lib*/python3*/site-packages"))
    if (root / "pyvenv.cfg").is_file() and packages:
        site = packages[0]
    elif root.name == "site-packages":
        site = root
    else:
        whole = str(root.absolute())
        if audit.below_site(f"{whole}/") != f"{whole}/":
            libraries = tuple(
                replace(library, path=f"{whole}/{library.path}") for library in libraries
            )
        return Subject(str(root), "folder", libraries)
    prefix = site.relative_to(root).as_posix()
    prefix = "" if prefix == "." else f"{prefix}/"
    return Subject(
        str(root),
        "environment",
        libraries,
        torch_cuda=read_torch_cuda(site),
        owners=tuple(owners(site, prefix, {library.path for library in libraries})),
        absent=tuple(
            (f"{prefix}{path}", distribution)
            for path, distribution in recorded(site)
            if _LIBRARY.search(path) and not (site / path).exists()
        ),
    )


def read_torch_cuda(site: Path) -> tuple[int, int] | None:
    """The CUDA version of the PyTorch in a site-packages, read from its text, not executed."""
    try:
        text = (site / "torch" / "version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return audit.cuda_of_torch(text[: 1 << 16])


def recorded(site: Path) -> Iterator[tuple[str, str]]:
    """Every file that the RECORDs in a site-packages list, relative to it, and its distribution."""
    for record in sorted(site.glob("*.dist-info/RECORD")):
        name, _, version = record.parent.name.removesuffix(".dist-info").rpartition("-")
        label = f"{name.replace('_', '-').lower()} {version}"
        with record.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.reader(file):
                if row:
                    yield row[0], label


def owners(site: Path, prefix: str, wanted: set[str]) -> Iterable[tuple[str, str]]:
    """For the wanted paths, which distribution installed them, by the RECORD files."""
    for path, label in recorded(site):
        if prefix + path in wanted:
            yield prefix + path, label
