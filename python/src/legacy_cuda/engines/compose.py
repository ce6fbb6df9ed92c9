"""A compose file for an engine. YAML whose strings are JSON's, which YAML takes as they are.

Of the Compose Specification: services, deploy.resources.reservations.devices, healthcheck.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from legacy_cuda.catalog.serving import Image
from legacy_cuda.engines import Address, Service


def probe(port: int, path: str) -> list[str]:
    """A command that ends with 0 where that path answers 200; of an image with bash and grep."""
    ask = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3"
    return ["bash", "-c", f"{ask}; head -n 1 <&3 | grep -q ' 200 '"]


def document(service: Service, image: Image, gpus: int, probe: list[str]) -> dict[str, Any]:
    """The file's content.

    Inside, the engine listens on every address; outside, its port is at the address that was asked
    for. What it reads is mounted where it is on this machine, to be read only.

    Args:
        service: the engine; its command must listen on 0.0.0.0 already.
        image: what the container is made from.
        gpus: how many it gets, the first by slot; 0: none.
        probe: a command that ends with 0 once it serves.
    """
    host, port = service.address.host, service.address.port
    # Docker takes addresses only
    outside = Address("127.0.0.1" if host == "localhost" else host, port)
    found: dict[str, Any] = {
        "image": image.name,
        "command": [_escaped(word) for word in service.command],
        "environment": {name: _escaped(value) for name, value in service.environment.items()},
        "ports": [f"{outside.netloc}:{port}"],
        "restart": "unless-stopped",
        "stop_grace_period": "30s",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "healthcheck": {
            "test": ["CMD", *(_escaped(word) for word in probe)],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "600s",
        },
    }
    if image.mounted:
        # the program is the image's entry point otherwise
        found["entrypoint"] = found.pop("command")
        found["volumes"] = [_mount(path) for path in service.readable]
    if service.writes:
        found["volumes"] = [
            *found.get("volumes", []),
            {"type": "volume", "source": "data", "target": "/data"},
        ]
        found["environment"]["HOME"] = "/data"
    if gpus:
        device = {"driver": "nvidia", "device_ids": [str(number) for number in range(gpus)]}
        device |= {"capabilities": ["gpu", "compute", "utility"]}
        if gpus > 1:
            found["shm_size"] = "1gb"  # NCCL's; 64 MiB by default
        found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    name = re.sub(r"[^a-z0-9_-]+", "-", service.engine.lower())
    document: dict[str, Any] = {"services": {name: found}}
    if service.writes:
        document["volumes"] = {"data": {}}
    return document


def _escaped(text: str) -> str:
    """``$`` is Compose's own sign."""
    return text.replace("$", "$$")


def _mount(path: Path) -> dict[str, Any]:
    text = _escaped(str(path))
    return {"type": "bind", "source": text, "target": text, "read_only": True}


def text(content: dict[str, Any], comments: list[str]) -> str:
    """The file: blocks of YAML, with strings as JSON writes them."""
    lines = [f"# {line}" for line in comments]
    _block(content, 0, lines)
    return "\n".join(lines) + "\n"


def _block(value: Any, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in items:
        head = f"{indent}{key}:" if key is not None else f"{indent}-"
        if not isinstance(item, dict | list) or not item:
            lines.append(f"{head} {json.dumps(item, ensure_ascii=False)}")
            continue
        inner: list[str] = []
        _block(item, depth + 1, inner)
        if key is None:  # the first line stands behind the dash
            inner[0] = f"{head} {inner[0].lstrip()}"
        else:
            lines.append(head)
        lines += inner
