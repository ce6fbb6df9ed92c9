"""From a folder of wheels to the index over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from legacy_cuda.capability import Capability
from legacy_cuda.index import overview, publish, simple
from legacy_cuda.index.wheels import Progress, Wheel, read_folder, served


@dataclass(frozen=True, slots=True)
class Index:
    """What was made: the wheels, the capabilities that have a sub-index, what was changed."""

    wheels: tuple[Wheel, ...]
    capabilities: tuple[Capability, ...]
    changes: publish.Changes


def files(wheels: tuple[Wheel, ...]) -> dict[str, bytes]:
    """Every file of the index by its path below the folder, in the order they are written in:
    a page comes after what it points to."""
    capabilities = served(wheels)
    prefixes = {"": wheels}
    for capability in capabilities:
        listed = tuple(wheel for wheel in wheels if wheel.verdict(capability).good)
        prefixes[simple.prefix(capability)] = listed
    found = {f"{wheel.file}.metadata": wheel.metadata for wheel in wheels}
    for prefix, listed in prefixes.items():
        found |= simple.pages(prefix, listed)
    found["index.html"] = overview.html(wheels, capabilities).encode()
    return found


def make(folder: Path, progress: Progress | None = None) -> Index:
    """Write the index over the wheels that lie directly in a folder.

    Raises:
        UserError: there is no such folder, there are no wheels in it, one of them is none, or a
            file of another is where the index belongs. Nothing is changed then.
        SurroundingsError: the disk failed, or another run is at work there.
    """
    with publish.exclusive(folder):
        wheels = read_folder(folder, progress)
        changes = publish.publish(folder, files(wheels))
    return Index(wheels, served(wheels), changes)
