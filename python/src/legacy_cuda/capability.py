"""Compute capabilities, code targets, and which code runs on which capability.

The rules are those of the CUDA C++ Programming Guide ("Binary Compatibility", "PTX
Compatibility", "Architecture-Specific and Family-Specific Targets") and of nvcc's manual
("GPU Compilation").
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Variant = Literal["", "a", "f"]
CodeKind = Literal["sass", "ptx"]

_CAPABILITY = re.compile(r"(\d{1,2})\.(\d)")
_TARGET = re.compile(r"(sm|compute)_(\d{2,3})([af]?)")


class Capability(NamedTuple):
    """NVIDIA's compute capability as a pair of integers, ``Capability(6, 1)`` for 6.1."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Read ``"6.1"``.

        Raises:
            ValueError: the text is not of the form MAJOR.MINOR.
        """
        match = _CAPABILITY.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a compute capability (expected e.g. '6.1')")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_number(cls, number: int) -> Capability:
        """Read the form used in device code: 61 is 6.1, 120 is 12.0."""
        return cls(*divmod(number, 10))

    @property
    def number(self) -> int:
        """61 for 6.1."""
        return self.major * 10 + self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


# Integrated (Tegra/Jetson) GPUs: cubins are not exchanged with discrete GPUs of the same major
# version (CUDA C++ Programming Guide, "Binary Compatibility").
INTEGRATED = frozenset(
    Capability(*pair) for pair in ((3, 2), (5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0))
)


class Target(NamedTuple):
    """What one piece of device code was made for, e.g. ``sm_61``, ``compute_80``, ``sm_90a``."""

    kind: CodeKind
    capability: Capability
    variant: Variant = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``sm_61`` or ``compute_90a``.

        Raises:
            ValueError: the text names no target.
        """
        match = _TARGET.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a target (expected e.g. 'sm_61' or 'compute_80')")
        variant: Variant = "a" if match[3] == "a" else "f" if match[3] == "f" else ""
        kind: CodeKind = "sass" if match[1] == "sm" else "ptx"
        return cls(kind, Capability.from_number(int(match[2])), variant)

    def __str__(self) -> str:
        prefix = "sm" if self.kind == "sass" else "compute"
        return f"{prefix}_{self.capability.number}{self.variant}"

    def runs_on(self, device: Capability) -> bool:
        """Whether a device of this capability can run the code.

        SASS runs on the same major version and an equal or higher minor one; PTX on every equal
        or higher capability, through the driver's JIT; ``a`` variants only on exactly their
        capability, ``f`` variants within their major version.
        """
        own = self.capability
        if self.variant == "a":
            return device == own
        same_major = device.major == own.major and device.minor >= own.minor
        if self.kind == "ptx" and not self.variant:
            return device >= own
        if own in INTEGRATED or device in INTEGRATED:
            return device == own
        return same_major
