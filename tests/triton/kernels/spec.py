"""One kernel of the corpus as data: the function, and what it is compiled with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import triton

Version = tuple[int, int]
VERSION: Version = tuple(int(part) for part in triton.__version__.split(".")[:2])  # type: ignore[assignment]  # two parts


@dataclass(frozen=True)
class Kernel:
    """A Triton function with types and sizes: what one compilation needs.

    ``types`` are Triton's names (``*fp16``, ``i32``) of the arguments that are not in
    ``constexprs``, in the function's order. Pointers count as divisible by 16 bytes unless named
    in ``unaligned``; integers only when named in ``multiples`` (of 16). ``oldest`` is the first
    Triton that has what the kernel uses, ``proof`` the capability at which the unpatched
    compiler has to accept it, so that a refusal elsewhere is not the kernel's own fault.
    """

    name: str
    function: Any
    types: tuple[str, ...]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    oldest: Version = (3, 3)
    proof: tuple[int, int] = (8, 0)
    unaligned: frozenset[str] = frozenset()
    multiples: frozenset[str] = frozenset()

    @property
    def arguments(self) -> dict[str, str]:
        """The runtime arguments' names and types."""
        names = [name for name in self.function.arg_names if name not in self.constexprs]
        if len(names) != len(self.types):
            raise ValueError(f"{self.name}: {len(self.types)} types for the arguments {names}")
        return dict(zip(names, self.types, strict=True))

    @property
    def signature(self) -> dict[str, str]:
        """Every argument's type in the function's order; ``constexpr`` for a constant."""
        types = self.arguments
        return {name: types.get(name, "constexpr") for name in self.function.arg_names}

    @property
    def attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """Triton's divisibility attributes by argument position."""
        found: dict[tuple[int, ...], list[list[Any]]] = {}
        for position, (name, kind) in enumerate(self.signature.items()):
            pointer = kind.startswith("*") and name not in self.unaligned
            if pointer or name in self.multiples:
                found[(position,)] = [["tt.divisibility", 16]]
        return found

    @property
    def supported(self) -> bool:
        """Whether the Triton of this process has what the kernel uses."""
        return self.oldest <= VERSION


class Corpus:
    """The kernels of one file, in the order they were added."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []

    def add(
        self,
        name: str,
        function: Any,
        types: str,
        constexprs: Mapping[str, Any] | None = None,
        tags: str = "",
        *,
        unaligned: str = "",
        multiples: str = "",
        oldest: Version = (3, 3),
        proof: tuple[int, int] = (8, 0),
        **options: Any,
    ) -> None:
        """Add one kernel; ``types``, ``tags`` and the argument lists are split at blanks."""
        kernel = Kernel(
            name,
            function,
            tuple(types.split()),
            constexprs or {},
            options,
            frozenset(tags.split()),
            oldest,
            proof,
            frozenset(unaligned.split()),
            frozenset(multiples.split()),
        )
        self.kernels.append(kernel)
