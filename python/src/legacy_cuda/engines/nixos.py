"""A piece of a NixOS configuration for an engine, for the modules of this project's flake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from legacy_cuda.engines import Service

# the arguments that are options of the module itself
_OPTIONS = ("model", "host", "port")
# what NixOS's own module of llama.cpp sets, or what is of this machine
_LEFT = ("alias",)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Arguments as the module has them: names without dashes, True for those without a value."""
    found: dict[str, Any] = {}
    at = 0
    while at < len(words):
        name = words[at].removeprefix("--")
        has_value = at + 1 < len(words) and not words[at + 1].startswith("--")
        if name not in (*_OPTIONS, *_LEFT):
            found[name] = _number(words[at + 1]) if has_value else True
        at += 2 if has_value else 1
    return found


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def llama_cpp(gpus: Sequence[str], service: Service, model: str) -> dict[str, Any]:
    """Options for llama-server: ``gpus`` are names of the catalog, each as often as it is there."""
    words = list(service.command[1:])
    return {
        "hardware.legacy-cuda.gpus": list(gpus),
        "services.legacy-cuda.llama-cpp": {
            "enable": True,
            "host": service.address.host,
            "port": service.address.port,
            "model": model,
            "settings": settings_of(words),
        },
    }


def ollama(gpus: Sequence[str], service: Service) -> dict[str, Any]:
    """Options for Ollama; NixOS's module says where it listens."""
    # the module says where it listens, and there Ollama is compiled for the cards: no folders
    left = ("OLLAMA_HOST", "OLLAMA_LLM_LIBRARY", "LD_LIBRARY_PATH")
    variables = {k: v for k, v in service.environment.items() if k not in left}
    return {
        "hardware.legacy-cuda.gpus": list(gpus),
        "services.legacy-cuda.ollama": {
            "enable": True,
            "host": service.address.host,
            "port": service.address.port,
            "models": [service.model],
            "environment": variables,
        },
    }


def text(options: Mapping[str, Any]) -> str:
    """The options as Nix reads them, an attribute set."""
    lines = ["{"]
    for name, value in options.items():
        _assign(name, value, 1, lines)
    return "\n".join([*lines, "}"]) + "\n"


def _assign(name: str, value: Any, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    if isinstance(value, Mapping):
        lines.append(f"{indent}{name} = {{")
        for key, item in value.items():
            _assign(key, item, depth + 1, lines)
        lines.append(f"{indent}}};")
    else:
        lines.append(f"{indent}{name} = {_value(value)};")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[ " + "".join(f"{_value(item)} " for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + escaped.replace("\n", "\\n") + '"'
