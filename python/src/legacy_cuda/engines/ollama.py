"""Ollama: a plan to its environment, a drop-in for its service, and what it says of its models.

Ollama decides by itself what it puts where, when a model is asked for; its environment says how.
It falls back to the CPU without a word, so that what it says in /api/ps is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legacy_cuda.capability import Capability
from legacy_cuda.catalog.serving import variables_for
from legacy_cuda.engines import Address
from legacy_cuda.planner.placement import Settings

NAME = PROGRAM = "ollama"
HEALTH = "/api/version"
LOADED = "/api/ps"
LOAD = "/api/generate"  # with a model and without a prompt: it is loaded
UNIT = "ollama.service"
DROP_IN = "50-legacy-cuda.conf"
UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))


def environment(
    gpus: list[Capability],
    settings: Settings | None,
    address: Address | None,
    folder: Path | None = None,
) -> dict[str, str]:
    """Its variables: the catalog's for these GPUs, and those of the plan.

    Args:
        gpus: the capability of each GPU, in the order of slots.
        settings: what was planned; None where nothing is known of the model.
        address: where it listens; None: as it is.
        folder: its folder of libraries, where that is there.
    """
    places = {"{gpus}": ",".join(str(number) for number in range(len(gpus)))}
    if folder is not None:
        places["{folder}"] = str(folder)
    found = {}
    for row in variables_for(NAME, gpus):
        value = places.get(row.value, row.value)
        if not value.startswith("{"):
            found[row.name] = value
    if address is not None:
        found["OLLAMA_HOST"] = address.netloc
    if settings is not None:
        found["OLLAMA_CONTEXT_LENGTH"] = str(settings.context)
        found["OLLAMA_NUM_PARALLEL"] = str(settings.parallel)
        if settings.flash is not None:
            found["OLLAMA_FLASH_ATTENTION"] = str(int(settings.flash))
        if settings.keys.quantised:
            found["OLLAMA_FLASH_ATTENTION"] = "1"
        found["OLLAMA_KV_CACHE_TYPE"] = settings.keys.name.lower()
    return found


def libraries(program: Path, gpus: list[Capability]) -> Path | None:
    """The folder of libraries that belongs to a program and fits the GPUs, if it is there."""
    names = [row.value for row in variables_for(NAME, gpus) if row.name == "OLLAMA_LLM_LIBRARY"]
    for name in names:
        folder = program.parent.parent / "lib" / "ollama" / name
        if folder.is_dir():
            return folder
    return None


def unit_file(given: Path | None) -> Path | None:
    """The file of its service: the one given, or the first that systemd would read."""
    if given is not None:
        return given if given.is_file() else None
    return next((place / UNIT for place in UNITS if (place / UNIT).is_file()), None)


def drop_ins(unit: Path) -> list[Path]:
    """The drop-ins of a service, in the order in which systemd reads them, ours left out."""
    folder = unit.with_name(f"{UNIT}.d")
    return [path for path in sorted(folder.glob("*.conf")) if path.name != DROP_IN]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in its memory: ``size`` in all, ``on_gpus`` of these bytes in video memory."""

    name: str
    size: int
    on_gpus: int
    context: int

    @property
    def share(self) -> float:
        """Of it on GPUs, 0 to 1."""
        return self.on_gpus / self.size if self.size else 0.0


def loaded(reply: Any) -> list[Loaded]:
    """What /api/ps says.

    Raises:
        ValueError: it is nothing that Ollama says.
    """
    rows = reply.get("models") if isinstance(reply, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError("no list of models")
    found = []
    for row in rows:
        try:
            name, size, on_gpus = str(row["name"]), int(row["size"]), int(row.get("size_vram", 0))
            context = int(row.get("context_length") or 0)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"a model is not described: {error}") from error
        if size < 0 or not 0 <= on_gpus <= max(size, on_gpus) < 1 << 50:
            raise ValueError(f"sizes out of reason: {on_gpus} of {size}")
        found.append(Loaded(name, size, min(on_gpus, size), context))
    return found
