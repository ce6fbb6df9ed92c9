"""What the index says of each wheel, read without trust: name, sha256, metadata, verdicts."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag
from packaging.utils import (
    BuildTag,
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from legacy_cuda import audit, catalog, targets
from legacy_cuda.audit import Verdict
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import Gpu
from legacy_cuda.devicecode.archive import Member, WheelReader
from legacy_cuda.devicecode.errors import DeviceCodeError
from legacy_cuda.errors import SurroundingsError, UserError

Progress = Callable[[str, int], None]
"""Called with the name of a wheel and the bytes of it that were read since the last call."""

# Letters of the standards for wheels, names and versions; `parse_wheel_filename` lets others pass.
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl")
_PROJECT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST = 255 - len(".metadata")  # most file systems: 255 bytes in a name
_MOST_METADATA = 1 << 22  # bytes; long descriptions of published wheels reach a few hundred KiB
_MOST_PYTHON = 200  # characters of Requires-Python
_NEXT = "take it out of the folder, or get it anew, and run again"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel in the folder. Size in bytes.

    ``metadata`` are the bytes of its METADATA. ``needs`` is what it requires without any extra,
    None where that cannot be read or is not from an index.
    ``verdicts`` holds one for each capability that a card of the catalog has.
    """

    file: str
    project: str
    version: Version
    size: int
    sha256: str
    metadata: bytes
    requires_python: str
    needs: tuple[Requirement, ...] | None
    verdicts: tuple[Verdict, ...]

    @property
    def has_code(self) -> bool:
        """Whether it holds device code that a program loads."""
        return any(verdict.outcome != "no-device-code" for verdict in self.verdicts)

    def verdict(self, capability: Capability) -> Verdict:
        """The verdict for a capability that a card has."""
        return next(verdict for verdict in self.verdicts if verdict.capability == capability)

    def serves(self, capability: Capability) -> bool:
        """Whether it holds device code that runs there."""
        return self.has_code and self.verdict(capability).good


def cards(capability: Capability) -> tuple[Gpu, ...]:
    """The catalog's cards of that capability."""
    return tuple(gpu for gpu in catalog.gpus() if gpu.capability == capability)


def capabilities() -> tuple[Capability, ...]:
    """Every capability that a card of the catalog has, ascending."""
    return tuple(sorted({gpu.capability for gpu in catalog.gpus()}))


def served(wheels: Iterable[Wheel]) -> tuple[Capability, ...]:
    """The legacy capabilities for which some wheel holds device code that runs."""
    known = catalog.capabilities()
    listed = tuple(wheels)
    return tuple(
        capability
        for capability in capabilities()
        if known[capability].legacy and any(wheel.serves(capability) for wheel in listed)
    )


def read_folder(folder: Path, progress: Progress | None = None) -> tuple[Wheel, ...]:
    """The wheels that lie directly in a folder, by project, version and name of the file.

    Hidden files are passed over.

    Raises:
        UserError: there are none, one of them is no wheel or damaged, or two of them are the same.
        SurroundingsError: one cannot be read.
    """
    paths = sorted(path for path in folder.glob("*.whl") if not path.name.startswith("."))
    if not paths:
        raise UserError(
            f"there are no wheels in {folder}",
            "an index is made over the files *.whl that lie directly in the folder",
            "put wheels there, or name the folder that holds them",
        )
    seen: dict[object, str] = {}
    for path in paths:  # all names first: reading takes minutes where wheels are large
        other = seen.setdefault(_identity(path.name), path.name)
        if other != path.name:
            raise UserError(
                f"{other} and {path.name} are the same wheel",
                "their names say the same project, version, build and platform, so that installers "
                "could take either",
                "take one of them out of the folder and run again",
            )
    wheels = [read(path, progress) for path in paths]
    return tuple(sorted(wheels, key=lambda wheel: (wheel.project, wheel.version, wheel.file)))


def _identity(file: str) -> tuple[str, Version, BuildTag, frozenset[Tag]]:
    """Project, version, build and tags, out of the name of a file.

    Raises:
        UserError: it is no name of a wheel.
    """
    why = "its name has other characters than a wheel's"
    if len(file) > _LONGEST:
        why = f"its name is longer than {_LONGEST} characters"
    elif _FILE.fullmatch(file):
        try:
            identity = parse_wheel_filename(file)
        except InvalidWheelFilename as error:
            why = str(error)
        else:
            if _PROJECT.fullmatch(identity[0]):
                return identity
            why = f"{identity[0]!r} is no name of a project"
    raise UserError(f"{file!r} is no name of a wheel", why, "rename it or take it out")


def read(path: Path, progress: Progress | None = None) -> Wheel:
    """Read one wheel: its hash, its metadata, its device code; every member is checked.

    Raises:
        UserError: it is no wheel, or damaged.
        SurroundingsError: it cannot be read, or changes while it is.
    """
    tell = progress or (lambda file, count: None)
    project, version, _, _ = _identity(path.name)

    def report(count: int) -> None:
        tell(path.name, count)

    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            raise DeviceCodeError("it is not a regular file")
        data = _read_metadata(path, project)
        requires_python, needs = parse_metadata(data, project, version)
        subject = targets.load(str(path), progress=report)
        if not subject.scanned:  # else its sha256 is that of a file known to be whole
            _check(path, report)
        after = path.stat()
    except (DeviceCodeError, ValueError) as error:
        raise UserError(f"{path.name} cannot be indexed", str(error), _NEXT) from error
    except SurroundingsError:
        raise
    except UserError as error:
        raise UserError(f"{path.name} cannot be indexed", error.why, _NEXT) from error
    except OSError as error:
        raise SurroundingsError(f"{path.name} cannot be read", str(error)) from error
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (
        after.st_ino,
        after.st_size,
        after.st_mtime_ns,
    ):
        raise SurroundingsError(
            f"{path.name} changed while it was read", next_step="run again when it is complete"
        )
    return Wheel(
        path.name,
        project,
        version,
        before.st_size,
        subject.sha256,
        data,
        requires_python,
        needs,
        tuple(
            audit.judge(subject.libraries, capability, subject.torch_cuda)
            for capability in capabilities()
        ),
    )


def _read_metadata(path: Path, project: str) -> bytes:
    with WheelReader(path) as reader:
        members: dict[str, Member] = {}
        for member in reader.members:
            if member.name in members:
                raise DeviceCodeError(f"it holds {member.name!r} twice")
            members[member.name] = member
        tops = {name.partition("/")[0] for name in members if "/" in name}
        infos = sorted(top for top in tops if top.endswith(".dist-info"))
        if len(infos) != 1:
            raise DeviceCodeError(f"a wheel has one .dist-info folder, this has {len(infos)}")
        named = infos[0].removesuffix(".dist-info").rpartition("-")[0]
        if canonicalize_name(named) != project:
            raise DeviceCodeError(f"{infos[0]!r} is not the .dist-info folder of {project}")
        for name in ("METADATA", "WHEEL", "RECORD"):
            if f"{infos[0]}/{name}" not in members:
                raise DeviceCodeError(f"it has no {infos[0]}/{name}")
        member = members[f"{infos[0]}/METADATA"]
        if member.size > _MOST_METADATA:
            raise DeviceCodeError(f"its METADATA is {member.size} bytes long")
        return b"".join(reader.stream(member))


def _check(path: Path, progress: Callable[[int], None]) -> None:
    """Read every member through, so that its size and its CRC are compared."""
    with WheelReader(path) as reader:
        for member in reader.members:
            for piece in reader.stream(member):
                progress(len(piece))


def parse_metadata(
    data: bytes, project: str, version: Version
) -> tuple[str, tuple[Requirement, ...] | None]:
    """``Requires-Python`` ("" where there is none, or none that installers understand) and what is
    required without any extra (None where that cannot be told).

    Raises:
        ValueError: the metadata are not those of this project and version.
    """
    message = HeaderParser().parsestr(data.decode("utf-8", "replace"))
    name, said = _single(message, "Name"), _single(message, "Version")
    if canonicalize_name(name) != project:
        raise ValueError(f"its METADATA names the project {name[:100]!r}, its file {project!r}")
    try:
        same = Version(said) == version
    except InvalidVersion:
        same = False
    if not same:
        raise ValueError(f"its METADATA says version {said[:100]!r}, its file '{version}'")
    python = " ".join(str(message.get("Requires-Python", "")).split())
    try:
        SpecifierSet(python)
    except InvalidSpecifier:
        python = ""
    return python if len(python) <= _MOST_PYTHON else "", _needs(message)


def _single(message: Message, header: str) -> str:
    values = message.get_all(header, [])
    if len(values) != 1:
        raise ValueError(f"its METADATA has {len(values)} lines {header!r}, not one")
    return str(values[0]).strip()


def _needs(message: Message) -> tuple[Requirement, ...] | None:
    needs = []
    for line in message.get_all("Requires-Dist", []):
        try:
            requirement = Requirement(str(line))
            extra = re.search(r"\bextra\b", str(requirement.marker or ""))
        except (InvalidRequirement, RecursionError):
            return None
        if extra:
            continue
        if requirement.url is not None:
            return None
        needs.append(requirement)
    return tuple(needs)
