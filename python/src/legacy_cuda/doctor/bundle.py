"""What doctor found in one archive, to be attached to a report, without what says whose machine it
is. The same content gives the same bytes."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from legacy_cuda.doctor import redact
from legacy_cuda.doctor.place import Place

FOLDER = "legacy-cuda-doctor"
_HOSTS = ("/proc/sys/kernel/hostname", "/etc/hostname")
_NOT_TOLD = frozenset(
    {
        *("", "localhost", "(none)", "root", "user", "admin", "pi", "ec2-user", "nvidia"),
        *("nixos", "debian", "ubuntu", "fedora", "arch"),
    }
)
"""Names that many machines and accounts have: taking them out hurts the text and hides nothing."""


def known(place: Place, variables: Mapping[str, str]) -> redact.Known:
    """What the machine and its users are called. ``variables``: the environment, for the running
    system."""
    hosts = set()
    for path in _HOSTS:
        whole = (place.text(path, 256) or "").strip()
        name, _, domain = whole.partition(".")
        hosts |= {whole, name, domain if "." in domain else ""}
    users = set(redact.people(place.text("/etc/passwd", 1 << 20) or ""))
    users |= {variables.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    users.add(variables.get("HOME", "").rstrip("/").rpartition("/")[2])
    return redact.Known(
        *(
            tuple(sorted(name for name in names if name.lower() not in _NOT_TOLD))
            for names in (hosts, users)
        )
    )


def packed(files: Mapping[str, str]) -> bytes:
    """A ``.tar.gz`` of these texts, always the same for the same ones."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in sorted(files.items()):
            data = text.encode("utf-8", "replace")
            item = tarfile.TarInfo(f"{FOLDER}/{name}")
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    packed_archive = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed_archive, mtime=0) as file:
        file.write(archive.getvalue())
    return packed_archive.getvalue()


def write(path: Path, data: bytes) -> None:
    """Put the file there whole, readable to its owner only.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
