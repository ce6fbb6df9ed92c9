"""Directives of newer targets."""

from __future__ import annotations

import re

from ..ptx import COMMENT, LegalizeError, shown
from .base import Capability

_CLUSTER = re.compile(
    rf"{COMMENT}|\.(?:(explicitcluster|blocksareclusters)\b|(reqnctapercluster|maxclusterrank)\s+"
    r"(\d+(?:\s*,\s*\d+)*))\s*"
)
_PACKED = {".f16": ".b16", ".f16x2": ".b32"}  # from 5.3 on
_REGISTER = re.compile(r"(\.reg\s*)(\.\w+)")


def cluster_directives(directive: str) -> str:
    """A kernel's head without what it says of clusters, which came with 9.0. A block is a cluster
    of one. (PTX ISA, "Cluster Dimension Directives".)

    Raises:
        LegalizeError: the kernel's clusters have more than one block.
    """
    if "cluster" not in directive or ".entry" not in directive:
        return directive

    def left(match: re.Match[str]) -> str:
        if match[2] == "reqnctapercluster" and set(re.findall(r"\d+", match[3])) != {"1"}:
            raise LegalizeError(f"clusters need capability 9.0: {shown(match[0])}")
        return " " if match[1] or match[2] else match[0]  # a blank: words stay apart

    head, bracket, tail = directive.rpartition(")")
    return head + bracket + _CLUSTER.sub(left, tail)


def register_directive(directive: str, capability: Capability) -> str:
    """A declaration of registers, with a size in place of fp16 types that the target has
    not. (PTX ISA, "Packed Data Types".)"""
    match = _REGISTER.match(directive)
    if not match or match[2] not in _PACKED or capability >= (5, 3):
        return directive
    return f"{match[1]}{_PACKED[match[2]]}{directive[match.end() :]}"
