"""Where packages of Debian come from: the mirrors this machine's apt uses, or a setting."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from legacy_cuda.errors import SurroundingsError

VARIABLE = "LEGACY_CUDA_DEBIAN_MIRROR"
APT = Path("/etc/apt")


def mirrors(apt: Path = APT) -> tuple[str, ...]:
    """Addresses of Debian archives, each ending in ``/``.

    LEGACY_CUDA_DEBIAN_MIRROR (several with spaces between), or else the archives in apt's
    sources whose path ends in ``debian``: a machine with Ubuntu has none.

    Raises:
        SurroundingsError: there is none.
    """
    found = os.environ.get(VARIABLE, "").split() or list(_of_apt(apt))
    if not found:
        raise SurroundingsError(
            "no mirror of Debian is known on this machine",
            f"the compiler comes from packages of Debian, and {apt}/sources.list names no archive "
            "of it",
            f"set {VARIABLE} to the address of a mirror (what stands behind URIs: on a machine "
            "with Debian), or use an installed toolkit with --found",
        )
    return tuple(dict.fromkeys(address.rstrip("/") + "/" for address in found))


def _of_apt(apt: Path) -> Iterator[str]:
    """Archives in the two formats of apt's sources (sources.list(5)), in the files' order."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        if path.suffix == ".sources":
            pattern = r"(?im)^URIs:[ \t]*(.*(?:\n[ \t]+.*)*)"
            words = " ".join(re.findall(pattern, "\n".join(lines))).split()
        else:
            pattern = r"deb(?:-src)?\s+(?:\[[^\]]*\]\s+)?(\S+)"
            words = [match[1] for line in lines if (match := re.match(pattern, line.strip()))]
        for word in words:
            if re.fullmatch(r"https?://\S+/debian/?", word):
                yield word
