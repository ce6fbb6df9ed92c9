"""One wheel into another: members a patch does not touch are copied as they lie in the archive.

The new wheel depends on the published wheel and the series alone. Changed and added members are
stored, not compressed, so that no compressor's version shows; times are the zip format's first
day; members keep their order, RECORD comes last; of permissions only a member's own nine bits stay.
Names, sizes and offsets of the archive that is read are those that ``WheelReader`` let through.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from legacy_cuda.build import patches
from legacy_cuda.build.series import Series
from legacy_cuda.devicecode import DeviceCodeError
from legacy_cuda.devicecode.archive import Member, WheelReader

PROVENANCE = "legacy-cuda.json"
SCHEMA = "legacy-cuda/patched-wheel/1"

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_STORED = 0
_UTF8 = 1 << 11  # general purpose flag: the name is UTF-8
_DATE = (0 << 9) | (1 << 5) | 1  # 1 January 1980, in MS-DOS form; the time is 0
_UNIX = 3 << 8  # "version made by", upper byte
_VERSION, _VERSION_ZIP64 = 20, 45  # "version needed to extract"
_IN_ZIP64, _COUNT_IN_ZIP64 = 0xFFFFFFFF, 0xFFFF  # what a field holds whose value is elsewhere
_LARGE, _MANY = _IN_ZIP64, _COUNT_IN_ZIP64  # from these on values are elsewhere
# APPNOTE.TXT 4.3.7, 4.3.12, 4.3.14 to 4.3.16
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_ZIP64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_ZIP64 = struct.Struct("<4sIQI")
_PLAIN = stat.S_IFREG | 0o644
_PIECE = 1 << 20
_UNRECORDED = ("RECORD.jws", "RECORD.p7s")  # signatures of RECORD, which stands in no row of it
_LARGEST_TEXT = 64 << 20  # bytes; a member that is patched or read whole is smaller by far


class RepackError(ValueError):
    """The wheel is none that can be repacked: what it says of itself does not fit together."""


@dataclass(frozen=True, slots=True)
class Output:
    """What was written: sha256 in hex, size in bytes, and the members that are not copies."""

    sha256: str
    size: int
    changed: tuple[str, ...]
    added: tuple[str, ...]


def output_name(file: str, series: Series) -> str:
    """The patched wheel's file name (binary distribution format: the version is its second part).

    Raises:
        RepackError: the name is not that of a wheel of this package and version.
    """
    name, _, rest = file.partition("-")
    version, _, tags = rest.partition("-")
    if name.lower().replace("_", "-") != series.facts.package or version != series.facts.version:
        raise RepackError(f"{file} is not {series.facts.package} {series.facts.version}")
    return f"{name}-{series.facts.installed}-{tags}"


def repack(
    source: Path,
    source_name: str,
    source_sha256: str,
    series: Series,
    out: BinaryIO,
    progress: Progress | None = None,
) -> Output:
    """Write the patched wheel to ``out``, an empty file.

    The sha256 of the source is written into the result; that it is right has been checked before.

    Raises:
        RepackError: the wheel is not whole, or not of this package and version.
        PatchError: a patch does not fit.
        OSError: a file cannot be read or written.
    """
    try:
        with WheelReader(source) as reader:
            return _Repacker(reader, series).run(source_name, source_sha256, out, progress)
    except DeviceCodeError as error:
        raise RepackError(f"{source_name}: {error}") from error


@dataclass(slots=True)
class _Entry:
    """A member of the new wheel. ``source`` is what it copies; else ``content`` is stored."""

    name: str
    mode: int
    source: Member | None = None
    content: bytes = b""


class _Writer:
    """Bytes to a file, counted and hashed on the way; hashing is done in a thread beside."""

    def __init__(
        self, out: BinaryIO, pool: ThreadPoolExecutor, progress: Callable[[int], None]
    ) -> None:
        self.size = 0
        self._out, self._pool, self._progress = out, pool, progress
        self._digest = hashlib.sha256()
        self._hashing: Future[None] | None = None
        # One is filled while the other is hashed; new ones each time would cost more than both.
        self._buffer, self._other = memoryview(bytearray(_PIECE)), memoryview(bytearray(_PIECE))
        self._used = 0

    def room(self) -> memoryview:
        """Where the next bytes may be put; tell :meth:`advance` how many were."""
        if self._used == _PIECE:
            self._flush()
        return self._buffer[self._used :]

    def advance(self, count: int) -> None:
        self._used += count
        self.size += count

    def write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            room = self.room()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self.advance(count)
            rest = rest[count:]

    def _flush(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
        piece = self._buffer[: self._used]
        self._hashing = self._pool.submit(self._digest.update, piece)
        self._out.write(piece)
        self._progress(self.size)
        self._buffer, self._other, self._used = self._other, self._buffer, 0

    def finish(self) -> str:
        """sha256 of everything."""
        self._flush()
        if self._hashing is not None:
            self._hashing.result()
        return self._digest.hexdigest()


class _Repacker:
    def __init__(self, reader: WheelReader, series: Series) -> None:
        self.reader, self.series = reader, series
        self.members: dict[str, Member] = {}
        for member in reader.members:
            if member.name in self.members:
                raise RepackError(f"{member.name!r} is in the wheel twice")
            kind = stat.S_IFMT(member.mode)
            if kind not in (0, stat.S_IFREG):
                raise RepackError(f"{member.name!r} is neither a file nor a folder")
            self.members[member.name] = member
        folders = {name.partition("/")[0] for name in self.members if "/" in name}
        infos = sorted(name for name in folders if name.endswith(".dist-info"))
        if len(infos) != 1:
            raise RepackError(f"the wheel has {len(infos)} folders *.dist-info, not one")
        self.stem = infos[0].removesuffix(".dist-info")
        self.info = infos[0]
        name, _, version = self.stem.rpartition("-")
        facts = series.facts
        if name.lower().replace("_", "-") != facts.package or version != facts.version:
            raise RepackError(f"{self.info} is not that of {facts.package} {facts.version}")
        self.new_stem = f"{name}-{facts.installed}"

    def run(
        self, source_name: str, source_sha256: str, out: BinaryIO, progress: Progress | None
    ) -> Output:
        rows = self._record()
        changed = patches.apply_all(self.series.patches, self._text)
        for path in self.series.modules:
            if path in self.members:
                raise RepackError(f"{path} is in the wheel already: no module may replace it")
        metadata = f"{self.info}/METADATA"
        everything = {**changed, metadata: self._metadata(self._read(metadata))}
        entries = [
            _Entry(self._rename(name), _mode(member), None, everything[name])
            if name in everything
            else _Entry(self._rename(name), _mode(member), member)
            for name, member in self.members.items()
            if name != f"{self.info}/RECORD" and not self._signature(name)
        ]
        added = {
            **dict(sorted(self.series.modules.items())),
            f"{self.new_stem}.dist-info/{PROVENANCE}": self._provenance(source_name, source_sha256),
        }
        entries += [_Entry(name, _PLAIN, None, content) for name, content in added.items()]
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names):
            raise RepackError("two members would have the same name")
        record = f"{self.new_stem}.dist-info/RECORD"
        content = _record_text(entries, rows, self._rename, record)
        entries.append(_Entry(record, _mode(self.members[f"{self.info}/RECORD"]), None, content))
        total = self.reader.size
        tell = progress or (lambda done, total: None)
        with ThreadPoolExecutor(1) as pool:
            writer = _Writer(out, pool, lambda done: tell(min(done, total), total))
            self._write(entries, writer)
            sha256 = writer.finish()
        return Output(sha256, writer.size, tuple(sorted(changed)), tuple(added))

    def _rename(self, name: str) -> str:
        """A member's name under the new version: the folders that carry the version change."""
        for suffix in (".dist-info/", ".data/"):
            if name.startswith(self.stem + suffix):
                return self.new_stem + name[len(self.stem) :]
        return name

    def _signature(self, name: str) -> bool:
        return name in {f"{self.info}/{kind}" for kind in _UNRECORDED}

    def _read(self, name: str) -> bytes:
        member = self.members.get(name)
        if member is None:
            raise RepackError(f"the wheel has no {name}")
        if member.size > _LARGEST_TEXT:
            raise RepackError(f"{name} is too large to be a text: {member.size} bytes")
        return b"".join(self.reader.stream(member))

    def _text(self, name: str) -> bytes | None:
        if name.startswith(f"{self.info}/"):
            raise RepackError(f"a patch changes {name}: that folder is written here")
        return self._read(name) if name in self.members else None

    def _metadata(self, content: bytes) -> bytes:
        """METADATA with the new version; nothing else of it changes."""
        facts = self.series.facts
        head, blank, body = content.partition(b"\n\n")
        lines = head.split(b"\n")
        found = [at for at, line in enumerate(lines) if line.lower().startswith(b"version:")]
        version = lines[found[0]].partition(b":")[2].strip().decode() if len(found) == 1 else ""
        if version != facts.version:
            raise RepackError(f"METADATA does not say that its version is {facts.version}")
        ending = b"\r" if lines[found[0]].endswith(b"\r") else b""
        lines[found[0]] = b"Version: " + facts.installed.encode() + ending
        return b"\n".join(lines) + blank + body

    def _provenance(self, source_name: str, source_sha256: str) -> bytes:
        document = {
            "schema": SCHEMA,
            "source": {"file": source_name, "sha256": source_sha256},
            "series": self.series.digest,
            **self.series.document(),
        }
        return (json.dumps(document, indent=1) + "\n").encode()

    def _record(self) -> dict[str, tuple[str, str]]:
        """RECORD's rows: hash and size by name; one for each member, and none for anything else."""
        name = f"{self.info}/RECORD"
        try:
            rows = list(csv.reader(io.StringIO(self._read(name).decode(), newline="")))
        except (UnicodeDecodeError, csv.Error) as error:
            raise RepackError(f"RECORD cannot be read: {error}") from error
        found: dict[str, tuple[str, str]] = {}
        for row in rows:
            if len(row) != 3 or row[0] in found:
                raise RepackError(f"RECORD has a row that is none, or one twice: {row!r}")
            found[row[0]] = (row[1], row[2])
        unhashed = {name, *(f"{self.info}/{kind}" for kind in _UNRECORDED)}
        for path, member in self.members.items():
            if path in unhashed:
                continue
            digest, size = found.get(path, ("", ""))
            if not digest.startswith("sha256=") or size != str(member.size):
                raise RepackError(f"RECORD does not have {path} with a sha256 and its size")
        if extra := found.keys() - self.members.keys():
            raise RepackError(f"RECORD has {min(extra)}, which is not in the wheel")
        return found

    def _write(self, entries: list[_Entry], writer: _Writer) -> None:
        directory = bytearray()
        for entry in entries:
            offset = writer.size
            member = entry.source
            if member is None:
                method, crc, size = _STORED, zlib.crc32(entry.content), len(entry.content)
                stored = size
            else:
                method, crc, size = member.method, member.crc, member.size
                stored = member.stored_size
            name = entry.name.encode()
            flags = 0 if entry.name.isascii() else _UTF8
            big = max(size, stored) >= _LARGE
            # APPNOTE 4.5.3: in a local header both sizes are there, or none
            extra = struct.pack("<HHQQ", 1, 16, size, stored) if big else b""
            local = _VERSION_ZIP64 if big else _VERSION
            sizes = (_IN_ZIP64, _IN_ZIP64) if big else (stored, size)
            fields = (flags, method, 0, _DATE, crc, *sizes, len(name))
            writer.write(_LOCAL.pack(b"PK\3\4", local, *fields, len(extra)) + name + extra)
            if member is None:
                writer.write(entry.content)
            else:
                self._copy(member, writer)
            far = offset >= _LARGE
            if far:
                wide = ([size, stored] if big else []) + [offset]
                extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide)
            needed = _VERSION_ZIP64 if extra else _VERSION
            rest = (len(extra), 0, 0, 0, entry.mode << 16, _IN_ZIP64 if far else offset)
            directory += _CENTRAL.pack(b"PK\1\2", _UNIX | needed, needed, *fields, *rest)
            directory += name + extra
        start, count = writer.size, len(entries)
        writer.write(directory)
        zip64 = start >= _LARGE or len(directory) >= _LARGE or count >= _MANY
        if zip64:
            end = writer.size
            fixed = (_END_ZIP64.size - 12, _UNIX | _VERSION_ZIP64, _VERSION_ZIP64, 0, 0)
            whole = (count, count, len(directory), start)
            writer.write(_END_ZIP64.pack(b"PK\6\6", *fixed, *whole))
            writer.write(_LOCATOR_ZIP64.pack(b"PK\6\7", 0, end, 1))
        short = _COUNT_IN_ZIP64 if zip64 else count
        where = (_IN_ZIP64, _IN_ZIP64) if zip64 else (len(directory), start)
        writer.write(_END.pack(b"PK\5\6", 0, 0, short, short, *where, 0))

    def _copy(self, member: Member, writer: _Writer) -> None:
        at = self.reader.data_offset(member)
        end = at + member.stored_size
        while at < end:
            count = self.reader.read_into(at, writer.room()[: end - at])
            if not count:
                raise RepackError(f"{member.name!r} is cut off")
            writer.advance(count)
            at += count


def _mode(member: Member) -> int:
    return stat.S_IFREG | (member.mode & 0o777) if member.mode else _PLAIN


def _record_text(
    entries: list[_Entry],
    rows: dict[str, tuple[str, str]],
    rename: Callable[[str], str],
    record: str,
) -> bytes:
    known = {rename(name): row for name, row in rows.items()}
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    for entry in entries:
        row = known[entry.name] if entry.source is not None else recorded(entry.content)
        out.writerow([entry.name, *row])
    out.writerow([record, "", ""])
    return text.getvalue().encode()


def recorded(content: bytes) -> tuple[str, str]:
    """A file's hash and size as RECORD has them (binary distribution format, "RECORD")."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"sha256={digest}", str(len(content))
