"""How engines are set up on these cards: ``data/serving.toml``, typed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.capability import Capability

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of an engine's environment, the cards that it is for, and why it is set."""

    engine: str
    name: str
    value: str
    why: str
    capabilities: tuple[Capability, Capability] | None
    several: bool


@dataclass(frozen=True, slots=True)
class NoSetting:
    """What people set and what does nothing."""

    engine: str
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Image:
    """What a container is made from; ``mounted``: the engine is that of the machine."""

    name: str
    mounted: bool


@cache
def _rows() -> dict[str, list[dict[str, Any]]]:
    data: dict[str, list[dict[str, Any]]] = tomllib.loads(
        (catalog.DATA / "serving.toml").read_text(encoding="utf-8")
    )
    return data


@cache
def variables(engine: str) -> tuple[Variable, ...]:
    """Those of an engine, in the file's order."""
    return tuple(
        Variable(
            engine=engine,
            name=row["name"],
            value=row["value"],
            why=row["why"],
            capabilities=(
                Capability.parse(row["capability_min"]),
                Capability.parse(row["capability_max"]),
            )
            if "capability_min" in row
            else None,
            several=row.get("several", False),
        )
        for row in _rows()["variable"]
        if row["engine"] == engine
    )


def variables_for(engine: str, gpus: Iterable[Capability]) -> tuple[Variable, ...]:
    """Those that an engine gets on GPUs of these capabilities, one for each GPU. One that is for
    some capabilities is set where all GPUs have them."""
    found = list(gpus)
    return tuple(
        row
        for row in variables(engine)
        if (len(found) > 1 or not row.several)
        and (
            row.capabilities is None
            or all(row.capabilities[0] <= one <= row.capabilities[1] for one in found)
        )
    )


@cache
def no_settings(engine: str) -> tuple[NoSetting, ...]:
    """What does nothing, of an engine."""
    return tuple(
        NoSetting(engine, row["name"], row["why"])
        for row in _rows()["no_setting"]
        if row["engine"] == engine
    )


def _quantisation(engine: str, method: str) -> dict[str, Any] | None:
    rows = _rows()["quantisation"]
    return next((row for row in rows if (row["engine"], row["name"]) == (engine, method)), None)


def quantisation_min(engine: str, method: str) -> Capability | None:
    """The oldest capability on which an engine takes a quantisation; None where nothing is known of
    it."""
    row = _quantisation(engine, method)
    return Capability.parse(row["capability_min"]) if row else None


def quantisation_note(engine: str, method: str) -> str:
    """What is to be said where an engine uses a quantisation; "" where nothing is."""
    row = _quantisation(engine, method)
    return str(row.get("note", "")) if row else ""


def needs_float32(engine: str, model_type: str) -> bool:
    """Whether an engine does not take such a model in float16."""
    return any(
        row["engine"] == engine and model_type in row["models"] for row in _rows()["float32"]
    )


def image(engine: str) -> Image:
    """What a container of an engine is made from.

    Raises:
        KeyError: there is none.
    """
    for row in _rows()["image"]:
        if row["engine"] == engine:
            return Image(row["name"], row["mounted"])
    raise KeyError(engine)
