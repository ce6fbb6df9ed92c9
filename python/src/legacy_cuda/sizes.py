"""Bytes for people: the one place where they become text."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30


def readable(size: float) -> str:
    """With the unit that suits: ``417 MiB``, ``1.3 GiB``; below a MiB in KiB or bytes."""
    for unit, name in ((1, "B"), (1 << 10, "KiB"), (MIB, "MiB")):
        if size < unit << 10:
            return f"{size / unit:.0f} {name}"
    return f"{size / GIB:.1f} GiB"


def mib(size: float) -> str:
    """In MiB, the number alone, for columns that stand side by side."""
    return f"{size / MIB:.0f}"
