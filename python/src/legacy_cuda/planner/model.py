"""A model as the planner sees it: its shape and its tensors.

Dimensions of tensors are in ggml's order: the first is that of a row, contiguous in memory. Sizes
are counts of values, or bytes where a name says so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

from legacy_cuda.catalog.models import Format

_BLOCK = re.compile(r"blk\.(\d+)\.")


class ModelError(ValueError):
    """A model file that is damaged, or not what it should be. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model file. ``dimensions`` in ggml's order."""

    name: str
    format: Format
    dimensions: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        """Bytes without padding; rows are whole blocks."""
        return self.format.size(self.values)

    @property
    def block(self) -> int | None:
        """The layer that it is of; None for those of the input and the output."""
        found = _BLOCK.match(self.name)
        return int(found[1]) if found else None

    @property
    def role(self) -> str:
        """Its name without the layer and the last part: ``attn_q`` for ``blk.0.attn_q.weight``."""
        return _BLOCK.sub("", self.name).rpartition(".")[0]


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that memory depends on.

    Per layer: ``heads``, ``heads_kv``, ``feed_forward``, ``windowed`` (it looks back on
    ``sliding_window`` tokens only), ``attention`` (it has a KV cache) and ``recurrent`` (it has a
    state). ``latent``: keys hold values too (MLA). ``nextn``: layers at the end that guess ahead
    and have no cache. ``state_rows`` are the values of one sequence's two recurrent states.
    """

    architecture: str
    layers: int
    embedding: int
    heads: tuple[int, ...]
    heads_kv: tuple[int, ...]
    key_size: int
    value_size: int
    feed_forward: tuple[int, ...]
    vocabulary: int
    context: int
    windowed: tuple[bool, ...]
    attention: tuple[bool, ...]
    recurrent: tuple[bool, ...]
    sliding_window: int = 0
    key_size_window: int = 0
    value_size_window: int = 0
    experts: int = 0
    experts_used: int = 0
    latent: bool = False
    nextn: int = 0
    state_rows: tuple[int, int] = (0, 0)

    def keys(self, layer: int) -> int:
        """Values of one token's keys in a layer."""
        size = self.key_size_window if self.windowed[layer] else self.key_size
        return size * self.heads_kv[layer]

    def values(self, layer: int) -> int:
        """Values of one token's values in a layer."""
        size = self.value_size_window if self.windowed[layer] else self.value_size
        return size * self.heads_kv[layer]


@dataclass(frozen=True)
class Model:
    """A model: ``bytes_on_disk`` is 0 for one that was derived from the catalog."""

    name: str
    quantisation: str
    shape: Shape
    tensors: tuple[Tensor, ...]
    bytes_on_disk: int = 0
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def parameters(self) -> int:
        """Values of every tensor, without those that stretch rotations."""
        return sum(item.values for item in self.tensors if not item.name.startswith("rope_f"))

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    def has(self, layer: int, name: str) -> bool:
        """Whether a layer has the tensor ``name``, ``attn_q.bias`` for example."""
        return f"blk.{layer}.{name}" in self.by_name
