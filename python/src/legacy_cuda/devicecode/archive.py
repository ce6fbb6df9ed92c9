"""Members of a wheel (a zip archive) as streams, without unpacking and without trust.

Decompression is ISA-L's (python-isal), which is about 1.3 times as fast as zlib-ng here.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isal import isal_zlib
from isal.igzip_lib import DECOMP_DEFLATE, IgzipDecompressor

from legacy_cuda.devicecode.errors import DeviceCodeError

INPUT = 1 << 17  # with these two the pieces stay in a core's own cache
OUTPUT = 1 << 18

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_BOMB_SIZE = 1 << 26
_BOMB_RATIO = 200  # device libraries of real wheels reach about 40
_MAX_MEMBERS = 1 << 20
_ENCRYPTED = 0x1
_UNIX = 3  # "version made by": external attributes are those of a Unix file


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive. Sizes in bytes; ``mode`` as in stat(2), 0 where it is not told."""

    name: str
    header_offset: int
    stored_size: int
    size: int
    crc: int
    method: int
    mode: int = 0


class WheelReader:
    """Read a zip archive's members, each as a stream of pieces, from several threads at once.

    Raises:
        DeviceCodeError: not a zip archive, or one that a wheel must not be: encrypted members,
            overlapping members, names that leave the archive, unknown compression.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise DeviceCodeError("not a regular file")
            self.size = status.st_size
            self.members = self._read_directory()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> WheelReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the archive itself."""
        return os.pread(self._fd, length, offset)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """The same into a buffer; how many bytes there were."""
        return os.preadv(self._fd, [buffer], offset)

    def _read_directory(self) -> list[Member]:
        try:
            with open(self._fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except OSError:
            raise
        except Exception as error:  # zipfile lets struct.error, ValueError and others through
            raise DeviceCodeError(f"not a readable zip archive: {error}") from error
        if len(infos) > _MAX_MEMBERS:
            raise DeviceCodeError(f"{len(infos)} members are more than any wheel has")
        members = []
        for info in infos:
            _check_name(info.filename)
            if info.is_dir():
                continue
            if info.flag_bits & _ENCRYPTED:
                raise DeviceCodeError(f"member {info.filename!r} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DeviceCodeError(
                    f"member {info.filename!r} uses compression method {info.compress_type}, "
                    "wheels use stored or deflate"
                )
            end = info.header_offset + _LOCAL_HEADER.size + info.compress_size
            if info.header_offset < 0 or end > self.size:
                raise DeviceCodeError(f"member {info.filename!r} lies outside the archive")
            members.append(
                Member(
                    info.filename,
                    info.header_offset,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    info.compress_type,
                    info.external_attr >> 16 if info.create_system == _UNIX else 0,
                )
            )
        ordered = sorted(members, key=lambda member: member.header_offset)
        for member, following in itertools.pairwise(ordered):
            least = member.header_offset + _LOCAL_HEADER.size + member.stored_size
            if least > following.header_offset:
                raise DeviceCodeError(
                    f"members {member.name!r} and {following.name!r} overlap (a zip bomb)"
                )
        return members

    def data_offset(self, member: Member) -> int:
        """Where in the archive a member's stored bytes begin.

        Raises:
            DeviceCodeError: the member is corrupt.
        """
        head = self.read(member.header_offset, _LOCAL_HEADER.size)
        if len(head) != _LOCAL_HEADER.size or not head.startswith(_LOCAL_MAGIC):
            raise DeviceCodeError(f"member {member.name!r} has no local header")
        name_size, extra_size = _LOCAL_HEADER.unpack(head)[-2:]
        offset: int = member.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        if offset + member.stored_size > self.size:
            raise DeviceCodeError(f"member {member.name!r} is truncated")
        return offset

    def head(self, member: Member, length: int) -> bytes:
        """The first ``length`` bytes of a member (fewer if it is shorter).

        Raises:
            DeviceCodeError: the member is corrupt.
        """
        if member.method == zipfile.ZIP_STORED:
            return self.read(self.data_offset(member), min(member.stored_size, length))
        start = b""
        for piece in self._inflate(member, length + 256, max(1, length)):
            start += piece
            if len(start) >= length:
                break
        return start[:length]

    def stream(self, member: Member) -> Iterator[bytes]:
        """A member in pieces of at most 256 KiB, checked against its size and CRC at the end.

        Raises:
            DeviceCodeError: corrupt, longer or shorter than it says, or a zip bomb.
        """
        if member.size > _BOMB_SIZE and member.size > _BOMB_RATIO * max(1, member.stored_size):
            raise DeviceCodeError(
                f"member {member.name!r} would inflate {member.size // max(1, member.stored_size)}"
                "-fold (a zip bomb)"
            )
        count = crc = 0
        for piece in self._pieces(member):
            count += len(piece)
            if count > member.size:
                raise DeviceCodeError(f"member {member.name!r} is longer than it says")
            crc = isal_zlib.crc32(piece, crc)
            yield piece
        if count != member.size:
            raise DeviceCodeError(
                f"member {member.name!r} ends after {count} of {member.size} bytes"
            )
        if crc != member.crc:
            raise DeviceCodeError(f"member {member.name!r} is corrupt: its CRC is wrong")

    def _pieces(self, member: Member) -> Iterator[bytes]:
        if member.method != zipfile.ZIP_STORED:
            yield from self._inflate(member, INPUT, OUTPUT)
            return
        at = self.data_offset(member)
        end = at + member.stored_size
        while at < end:
            piece = self.read(at, min(OUTPUT, end - at))
            if not piece:
                return
            at += len(piece)
            yield piece

    def _inflate(self, member: Member, first: int, most: int) -> Iterator[bytes]:
        """Inflate in pieces of at most ``most`` bytes, reading ``first`` bytes to begin with."""
        at = self.data_offset(member)
        end = at + member.stored_size
        length = first
        inflate = IgzipDecompressor(flag=DECOMP_DEFLATE)
        while not inflate.eof:
            packed = b""
            if inflate.needs_input:
                packed = self.read(at, min(length, end - at))
                if not packed:
                    return
                at += len(packed)
                length = INPUT
            try:
                piece = inflate.decompress(packed, most)
            except Exception as error:  # isal raises IsalError
                raise DeviceCodeError(f"member {member.name!r} is corrupt: {error}") from error
            if piece:
                yield piece


def _check_name(name: str) -> None:
    if not name:
        raise DeviceCodeError("a member has no name")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise DeviceCodeError(f"member name {name!r} leaves the archive")
