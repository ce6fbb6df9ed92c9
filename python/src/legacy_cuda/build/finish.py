"""From what a back end built to a wheel that is released: stripped, checked, named, recorded.

Checked is that its libraries need nothing but what is in it, what wheels of NVIDIA bring, and the
runtimes of the machine; and that they look for these below site-packages, wherever that lies.

Members are stored, not compressed, in the order of their names and with one date, so that neither
a compressor nor a clock shows in the bytes.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from legacy_cuda.build.repack import recorded
from legacy_cuda.catalog.recipes import Recipe
from legacy_cuda.catalog.toolchains import CudaLibrary, Toolchain

_ELF = b"\x7fELF"
_OF_PYTHON = re.compile(r"_?Py[A-Z_]")
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP file can name
# The oldest glibc of systems whose libstdc++ has these symbols: GLIBCXX_3.4.29 came with gcc 11
# (Enterprise Linux 9: glibc 2.34), 3.4.30 with gcc 12 (Ubuntu 22.04: 2.35, Debian 12: 2.36), by
# GCC's "ABI Policy and Guidelines" and the distributions' packages.
_GLIBCXX = {(3, 4, 29): (2, 34), (3, 4, 30): (2, 35)}
_OLDEST_GLIBC = (2, 17)  # of manylinux2014, the oldest that pip knows a tag of this form for


class FinishError(ValueError):
    """The wheel that was built is not one to be released."""


@dataclass(frozen=True, slots=True)
class Elf:
    """What a program or library needs: sonames, where it looks for them, the oldest glibc of a
    system whose C and C++ libraries have the symbols that it uses, and which of Python's symbols
    it leaves undefined."""

    path: str
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]
    glibc: tuple[int, int]
    python: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The members of the wheel but RECORD, by path; its file name; what it was found to need."""

    name: str
    info: str
    members: dict[str, Path | bytes]
    executable: frozenset[str]
    requires: tuple[str, ...]


def read_elf(path: Path, name: str) -> Elf:
    """What the dynamic section of a file says.

    Raises:
        FinishError: it is no ELF file that a loader would take, or its bytes depend on where it was
            built: an RPATH is replaced in place, as CMake does it, with zeros to the old one's end.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection
    from elftools.elf.sections import SymbolTableSection

    needed, search, soname, newest, python = [], [], "", (0, 0), []
    try:
        with path.open("rb") as file:
            for section in ELFFile(file).iter_sections():
                if section.name == ".dynstr" and b"\0\0" in section.data():
                    raise FinishError(
                        f"{name} had another RPATH when it was linked, whose length is left: that "
                        "of the folder it was built in"
                    )
                if isinstance(section, DynamicSection):
                    for tag in section.iter_tags():
                        kind = str(tag.entry.d_tag).removeprefix("DT_").lower()
                        text = str(getattr(tag, kind, ""))  # pyelftools names it after the tag
                        if kind == "needed":
                            needed.append(text)
                        elif kind in ("rpath", "runpath"):
                            parts = text.replace("${ORIGIN}", "$ORIGIN").split(":")
                            search += [part for part in parts if part]
                        elif kind == "soname":
                            soname = text
                elif isinstance(section, SymbolTableSection) and section.name == ".dynsym":
                    python += [
                        item.name
                        for item in section.iter_symbols()
                        if item.entry.st_shndx == "SHN_UNDEF" and _OF_PYTHON.match(item.name)
                    ]
                elif isinstance(section, GNUVerNeedSection):
                    for _, versions in section.iter_versions():
                        for version in versions:
                            newest = max(newest, _needs_glibc(str(version.name), name))
    except (ELFError, ValueError) as error:
        raise FinishError(f"{name} is no ELF file: {error}") from error
    return Elf(name, soname, tuple(needed), tuple(search), newest, tuple(python))


def _needs_glibc(symbols: str, name: str) -> tuple[int, int]:
    """The oldest glibc of a system that has a version of symbols, such as ``GLIBCXX_3.4.30``."""
    family, _, number = symbols.partition("_")
    if not re.fullmatch(r"\d+(\.\d+)*", number):
        return (0, 0)
    version = tuple(int(part) for part in number.split("."))
    if family == "GLIBC":
        return version[0], version[1]
    if family == "GLIBCXX" and version > (3, 4, 28):
        if version not in _GLIBCXX:
            raise FinishError(f"{name} needs {symbols}: which systems have it is not known here")
        return _GLIBCXX[version]
    return (0, 0)


def check_abi3(files: Iterable[Elf], interpreter: str) -> None:
    """Check that extensions for every Python from ``interpreter`` (``cp38``) on use nothing but
    what has been in Python's stable ABI since.

    Raises:
        FinishError: one uses something else.
    """
    from abi3info import DATAS, FUNCTIONS
    from abi3info.models import PyVersion

    oldest = PyVersion(3, int(interpreter.removeprefix("cp3")))
    known = [*FUNCTIONS.values(), *DATAS.values()]
    stable = {item.symbol.name for item in known if item.added <= oldest}
    for file in files:
        if others := set(file.python) - stable:
            raise FinishError(
                f"{file.path} needs {', '.join(sorted(others))}, which the stable ABI of "
                f"{interpreter} does not have"
            )


def requirements(files: Iterable[Elf], site: Mapping[str, str], toolchain: Toolchain) -> list[str]:
    """The requirements (PEP 508) that bring the libraries of CUDA which the files need.

    ``site`` gives the folder, below site-packages, of each library that is in the wheel or in one
    that it requires.

    Raises:
        FinishError: a file needs a library that nothing brings, or would not find it.
    """
    cuda: dict[str, CudaLibrary] = {item.soname: item for item in toolchain.libraries}
    found = set()
    for file in files:
        for path, place in zip(file.search, _searched(file), strict=True):
            if not re.match(r"\$ORIGIN(/|$)", path) or place.split("/")[0] == "..":
                raise FinishError(
                    f"{file.path} looks for libraries in {path}, which is not below site-packages"
                )
        for soname in file.needed:
            if soname in toolchain.host.system:
                continue
            if soname in cuda:
                folder = cuda[soname].folder
                found.add(cuda[soname].requires)
            elif soname in site:
                folder = site[soname]
            else:
                raise FinishError(f"{file.path} needs {soname}, which nothing brings")
            if folder not in _searched(file):
                raise FinishError(
                    f"{file.path} does not find {soname}: it lies in {folder}, and the places "
                    f"searched are {', '.join(file.search) or 'none'}"
                )
    return sorted(found)


def _searched(file: Elf) -> list[str]:
    """Folders below site-packages in which a file looks for what it needs."""
    own = posixpath.dirname(file.path)
    return [
        posixpath.normpath(posixpath.join(own, item.removeprefix("$ORIGIN").lstrip("/")))
        for item in file.search
    ]


def finish(
    built: Path,
    folder: Path,
    version: str,
    toolchain: Toolchain,
    strip: Path,
    variables: Mapping[str, str],
    recipe: Recipe,
) -> Finished:
    """Take the wheel that a back end built apart, into ``folder``, and make it fit for release.

    Raises:
        FinishError: it is no wheel, or not one to be released.
        OSError: the disk failed.
    """
    try:
        name, _, build_tag, tags = parse_wheel_filename(built.name)
    except InvalidWheelFilename as error:
        raise FinishError(str(error)) from error
    if build_tag or len(tags) != 1:
        raise FinishError(f"{built.name} has a build tag, or several tags")
    (tag,) = tags
    try:
        members, executable = _unpack(built, folder)
    except zipfile.BadZipFile as error:
        raise FinishError(f"{built.name} cannot be read: {error}") from error
    infos = {path.partition("/")[0] for path in members if ".dist-info/" in path}
    if len(infos) != 1:
        raise FinishError(f"{built.name} has {len(infos)} folders *.dist-info, not one")
    old = infos.pop()
    stem = f"{str(name).replace('-', '_')}-{version}"
    elves = []
    for path, place in members.items():
        if _is_elf(place):
            command = [str(strip), "--strip-unneeded", str(place)]
            done = subprocess.run(
                command, env=dict(variables), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise FinishError(f"{path} cannot be stripped: {done.stderr.strip()}")
            elves.append(read_elf(place, path))
    site = {
        elf.soname or PurePosixPath(elf.path).name: posixpath.dirname(elf.path) for elf in elves
    }
    requires = [
        *recipe.requires,
        *requirements(elves, {**recipe.libraries, **site}, toolchain),
    ]
    if tag.abi == "abi3":
        check_abi3(elves, tag.interpreter)
    glibc = max([_OLDEST_GLIBC, *(elf.glibc for elf in elves)])
    platform = f"manylinux_{glibc[0]}_{glibc[1]}_x86_64" if elves else "any"
    new = f"{stem}.dist-info"
    content: dict[str, Path | bytes] = {}
    for path, place in members.items():
        if path == f"{old}/RECORD":
            continue
        renamed = f"{new}{path[len(old) :]}" if path.startswith(f"{old}/") else path
        content[renamed] = place
    named = f"{tag.interpreter}-{tag.abi}-{platform}"
    for path in ("METADATA", "WHEEL"):
        if f"{old}/{path}" not in members:
            raise FinishError(f"{built.name} has no {path}")
        text = members[f"{old}/{path}"].read_text(encoding="utf-8")
        text = _wheel(text, named) if path == "WHEEL" else _metadata(text, version, requires)
        content[f"{new}/{path}"] = text.encode()
    file = f"{stem}-{named}.whl"
    return Finished(file, new, content, frozenset(executable), tuple(requires))


def _unpack(built: Path, folder: Path) -> tuple[dict[str, Path], set[str]]:
    members, executable = {}, set()
    with zipfile.ZipFile(built) as archive:
        for item in archive.infolist():
            path = PurePosixPath(item.filename)
            if item.is_dir():
                continue
            if path.is_absolute() or ".." in path.parts or str(path) in members:
                raise FinishError(f"{built.name} has {item.filename!r} in it")
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(item))
            members[str(path)] = place
            if item.external_attr >> 16 & 0o100:
                executable.add(str(path))
    return dict(sorted(members.items())), executable


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


def _metadata(text: str, version: str, requires: Iterable[str]) -> str:
    """METADATA with another version, and with requirements behind those that are there."""
    head, blank, body = text.partition("\n\n")
    lines = [
        f"Version: {version}" if line.startswith("Version:") else line for line in head.split("\n")
    ]
    at = max(
        [number for number, line in enumerate(lines, 1) if line.startswith("Requires-Dist:")],
        default=len(lines),
    )
    lines[at:at] = [f"Requires-Dist: {item}" for item in requires]
    return "\n".join(lines) + blank + body


def _wheel(text: str, tag: str) -> str:
    """WHEEL with another tag."""
    lines = [line for line in text.rstrip("\n").split("\n") if not line.startswith("Tag:")]
    return "\n".join([*(line for line in lines if line), f"Tag: {tag}"]) + "\n"


def write(finished: Finished, more: Mapping[str, bytes], target: Path) -> None:
    """Write the wheel; ``more`` are members that are added, by path.

    Raises:
        OSError: the disk failed.
    """
    members: dict[str, Path | bytes] = {**finished.members, **more}
    inside = [name for name in members if name.startswith(f"{finished.info}/")]
    outside = [name for name in members if name not in inside]
    rows = io.StringIO()
    record = csv.writer(rows, lineterminator="\n")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            item = zipfile.ZipInfo(name, _DATE)
            item.create_system = 3  # Unix, whatever machine this is
            mode = 0o755 if name in finished.executable else 0o644
            item.external_attr = (0o100000 | mode) << 16
            archive.writestr(item, content)

        for name in [*sorted(outside), *sorted(inside)]:
            place = members[name]
            content = place if isinstance(place, bytes) else place.read_bytes()
            add(name, content)
            record.writerow([name, *recorded(content)])
        record.writerow([f"{finished.info}/RECORD", "", ""])
        add(f"{finished.info}/RECORD", rows.getvalue().encode())
