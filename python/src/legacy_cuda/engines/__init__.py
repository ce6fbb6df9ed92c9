"""Engines: how each is started from a plan, asked for its health, and read. One module each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PORTS = {"llama-server": 8080, "ollama": 11434, "vllm": 8000}
"""The ports of engines that are told of none: their documentation."""


@dataclass(frozen=True)
class Address:
    """Where an engine listens."""

    host: str = "127.0.0.1"
    port: int = 8080

    @property
    def netloc(self) -> str:
        """Host and port as a URL has them."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.netloc}"


@dataclass(frozen=True)
class Service:
    """An engine set up for a model.

    ``model`` is what it is called over HTTP. ``health`` is a path that answers 200 once it serves,
    ``metrics`` one with metrics for Prometheus, "" where there is none. ``readable`` are the files
    and folders that it reads beside the system's own, and ``writes`` says whether it needs a folder
    to write into. ``planned`` are the bytes that it takes on each GPU: nothing where it computes on
    the CPU.
    """

    engine: str
    model: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: Address
    health: str
    metrics: str
    readable: tuple[Path, ...]
    planned: tuple[int, ...]
    writes: bool = False

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.address.host in LOOPBACK
