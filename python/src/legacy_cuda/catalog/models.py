"""Formats of values, mixes of them, and shapes of models by name.

The files are ``data/formats.toml`` and ``data/models.toml``.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Format:
    """How values are stored: a block of ``values`` takes ``bytes``. ``kv``: also a KV cache's."""

    name: str
    number: int
    values: int
    bytes: int
    kv: bool = False

    @property
    def quantised(self) -> bool:
        """Whether values share scales in blocks."""
        return self.values > 1

    def size(self, count: int) -> int:
        """Bytes of so many values: whole blocks of them.

        Raises:
            ValueError: they do not fill whole blocks.
        """
        blocks, rest = divmod(count, self.values)
        if rest:
            raise ValueError(f"{count} values do not fill blocks of {self.values} ({self.name})")
        return blocks * self.bytes


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of formats that a model is published in; one ``named_only`` is never proposed."""

    name: str
    file_type: int
    format: Format
    named_only: bool = False


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model of the catalog. Sizes are counts of values, ``context`` is in tokens."""

    name: str
    title: str
    aliases: tuple[str, ...]
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    heads_kv: int
    head_size: int
    vocabulary: int
    context: int
    parameters: int
    source: str
    verified: bool
    tied: bool = False
    rope_factors: bool = False
    long_factors: bool = False
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    sliding_window: int = 0


@cache
def _read(name: str) -> dict[str, Any]:
    with (catalog.DATA / f"{name}.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)
    return data


@cache
def formats() -> dict[str, Format]:
    """Every format by name."""
    return {row["name"]: Format(**row) for row in _read("formats")["format"]}


@cache
def format_numbers() -> dict[int, Format]:
    """Every format by its number in files."""
    return {form.number: form for form in formats().values()}


@cache
def mixes() -> dict[str, Mix]:
    """Every mix by name, best first."""
    return {
        row["name"]: Mix(**{**row, "format": formats()[row["format"]]})
        for row in _read("formats")["mix"]
    }


def find_format(text: str) -> Format:
    """The format of a KV cache by name, case ignored.

    Raises:
        CatalogError: there is none; names that are near are given.
    """
    found = formats().get(text.upper())
    if found is None or not found.kv:
        names = tuple(form.name.lower() for form in formats().values() if form.kv)
        raise CatalogError(f"no format of a KV cache is called {text!r}", names)
    return found


def find_mix(text: str) -> Mix:
    """The mix of that name, case ignored.

    Raises:
        CatalogError: there is none; names that are near are given.
    """
    found = mixes().get(text.upper())
    if found is None:
        near = difflib.get_close_matches(text.upper(), mixes(), n=4)
        raise CatalogError(f"no quantisation called {text!r} is known here", tuple(near))
    return found


@cache
def models() -> tuple[ModelShape, ...]:
    """Every model, in the catalog's order: by family and size."""
    return tuple(
        ModelShape(**{**row, "aliases": tuple(row["aliases"])}) for row in _read("models")["model"]
    )


def _normal(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "").replace(" ", "").replace(":", "")


def find_model(text: str) -> ModelShape:
    """The model of that name, alias or title; ``deepseek-r1:32b`` is ``deepseek-r1-32b``.

    Raises:
        CatalogError: there is none; names that are near are given.
    """
    index: dict[str, ModelShape] = {}
    for model in models():
        for name in (model.name, *model.aliases, model.title):
            index.setdefault(_normal(name), model)
    found = index.get(_normal(text))
    if found is not None:
        return found
    starts = [model.name for name, model in index.items() if name.startswith(_normal(text))]
    near = difflib.get_close_matches(_normal(text), index, n=4, cutoff=0.7)
    names = [*starts, *(index[name].name for name in near)]
    raise CatalogError(
        f"no model called {text!r} is in the catalog", tuple(dict.fromkeys(names))[:6]
    )
