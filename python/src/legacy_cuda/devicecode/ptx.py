"""The header of a PTX module: its ISA version and target.

Source: "Parallel Thread Execution ISA", chapters "PTX Module Directives" and "Comments".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from legacy_cuda.capability import Target
from legacy_cuda.devicecode.errors import DeviceCodeError

HEAD = 1 << 16
"""How many bytes of a file are looked at. Generated PTX begins with comments of under 1 KiB."""

_COMMENT = re.compile(rb"//[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z)", re.DOTALL)
_VERSION = re.compile(rb"\s*\.version\s+(\d{1,2})\.(\d{1,2})(?!\d)")
_TARGET = re.compile(rb"\s*\.target\s+(sm_\d{2,3}[af]?)\b")


@dataclass(frozen=True, slots=True)
class Header:
    """What a PTX module says of itself."""

    isa: tuple[int, int]
    target: Target


def looks_like_ptx(head: bytes) -> bool:
    """Whether text that begins like this is a PTX module."""
    return _VERSION.match(_strip(head[:HEAD])) is not None


def parse_header(head: bytes) -> Header:
    """Read ``.version`` and ``.target``, which every module begins with.

    Raises:
        DeviceCodeError: they are not there, within the first 64 KiB and in this order.
    """
    text = _strip(head[:HEAD])
    version = _VERSION.match(text)
    if version is None:
        raise DeviceCodeError("not a PTX module: it does not begin with .version")
    target = _TARGET.match(text, version.end())
    if target is None:
        raise DeviceCodeError("PTX module without a .target behind its .version")
    made_for = Target.parse(target[1].decode().replace("sm_", "compute_"))
    return Header((int(version[1]), int(version[2])), made_for)


def _strip(text: bytes) -> bytes:
    return _COMMENT.sub(b" ", text)
