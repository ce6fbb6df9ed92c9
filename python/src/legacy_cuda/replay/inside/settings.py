"""How a replay is described to the processes in it: environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

PREFIX = "LEGACY_CUDA_REPLAY"

Pair = tuple[int, int]


def parse_pair(text: str) -> Pair:
    """``"6.1"`` as (6, 1).

    Raises:
        ValueError: it is not of that form.
    """
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def dotted(pair: Pair) -> str:
    """(6, 1) as ``"6.1"``."""
    return f"{pair[0]}.{pair[1]}"


def number(pair: Pair) -> int:
    """(6, 1) as 61, the form of ``sm_61``."""
    return pair[0] * 10 + pair[1]


@dataclass(frozen=True)
class Settings:
    """One replay.

    Args:
        capability: what the GPU is to answer.
        gpu: the capability of the GPU at hand; None compiles only and launches nothing.
        gpu_name: its name.
        shared: shared memory in bytes that a block has without asking, on the old capability.
        shared_optin: and what it can ask for.
        record: the file that each process appends to; none is written if empty.
        stock: an unpatched Triton is meant, do not warn of it.
        card: a card of the old capability, for messages that name a command.
        tritons: the versions of Triton that can be patched.
        multiprocessors: how many a program in C++ is told of; 0 tells the GPU's own number.
    """

    capability: Pair
    gpu: Pair | None
    gpu_name: str
    shared: int
    shared_optin: int
    record: str = ""
    stock: bool = False
    card: str = ""
    tritons: tuple[str, ...] = ()
    multiprocessors: int = 0

    @classmethod
    def from_environment(cls) -> Settings:
        """Read what :meth:`environment` wrote.

        Raises:
            KeyError, ValueError: something is missing or malformed.
        """
        get = os.environ.get
        gpu = get(f"{PREFIX}_GPU", "")
        return cls(
            capability=parse_pair(os.environ[PREFIX]),
            gpu=parse_pair(gpu) if gpu else None,
            gpu_name=get(f"{PREFIX}_GPU_NAME", ""),
            shared=int(os.environ[f"{PREFIX}_SHARED"]),
            shared_optin=int(os.environ[f"{PREFIX}_SHARED_OPTIN"]),
            record=get(f"{PREFIX}_RECORD", ""),
            stock=get(f"{PREFIX}_STOCK", "") == "1",
            card=get(f"{PREFIX}_CARD", ""),
            tritons=tuple(get(f"{PREFIX}_TRITONS", "").split()),
            multiprocessors=int(get(f"{PREFIX}_MULTIPROCESSORS") or 0),
        )

    def environment(self) -> dict[str, str]:
        """The variables that tell a process of this replay."""
        return {
            PREFIX: dotted(self.capability),
            f"{PREFIX}_GPU": dotted(self.gpu) if self.gpu else "",
            f"{PREFIX}_GPU_NAME": self.gpu_name,
            f"{PREFIX}_SHARED": str(self.shared),
            f"{PREFIX}_SHARED_OPTIN": str(self.shared_optin),
            f"{PREFIX}_RECORD": self.record,
            f"{PREFIX}_STOCK": "1" if self.stock else "",
            f"{PREFIX}_CARD": self.card,
            f"{PREFIX}_TRITONS": " ".join(self.tritons),
            f"{PREFIX}_MULTIPROCESSORS": str(self.multiprocessors or ""),
        }

    @property
    def compile_only(self) -> bool:
        """Whether nothing is launched."""
        return self.gpu is None

    @property
    def words(self) -> str:
        """What may be said of the result."""
        if self.compile_only:
            return f"compiled for {dotted(self.capability)}, nothing launched"
        return f"replayed at {dotted(self.capability)} on {self.gpu_name}"

    @property
    def intent(self) -> str:
        """What is about to be done."""
        if self.compile_only:
            return f"compiling for {dotted(self.capability)}, launching nothing"
        return f"replaying at {dotted(self.capability)} on {self.gpu_name}"

    @property
    def key(self) -> str:
        """What keeps this replay's cached kernels apart from all others'."""
        on = f"on-{dotted(self.gpu)}" if self.gpu else "compile-only"
        return f"replayed-{dotted(self.capability)}-{on}"
