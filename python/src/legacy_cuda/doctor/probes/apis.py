"""What engines that run here say of themselves, on the loopback address and the ports that their
units and processes name. Only of the running system; nothing is asked of other machines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from legacy_cuda.doctor import loopback, units
from legacy_cuda.doctor.facts import Answer, LoadedModel, Service
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import engines
from legacy_cuda.engines import PORTS as _KNOWN

_PORTS = {"ollama": _KNOWN["ollama"], "llama-cpp": _KNOWN["llama-server"], "vllm": _KNOWN["vllm"]}
_PATHS = {"ollama": "/api/ps", "llama-cpp": "/health", "vllm": "/metrics"}
_MOST = 4  # addresses that are asked
_MODELS = 50
_HOSTS = ("", "0.0.0.0", "localhost", loopback.HOST, "::", "*", "[::]")
_ADDRESS = re.compile(r"(?:http://)?(?P<host>\[[0-9a-f:]*\]|[^:/]*)(?::(?P<port>\d{1,5}))?/?")
_PREEMPTED = re.compile(
    rb"^vllm:num_preemptions(?:_total)?(?:\{[^}\n]*\})? (\d{1,15}(?:\.\d+)?)", re.MULTILINE
)


def look(place: Place) -> tuple[Answer, ...]:
    """What the engines answer, one for each port."""
    if not place.live:
        return ()
    return tuple(answers((*engines.processes(place), *engines.services(place))))


def answers(services: Iterable[Service]) -> Iterator[Answer]:
    """Of each service that may listen on the loopback address, what it says."""
    asked: set[tuple[str, int]] = set()
    for service in services:
        port = port_of(service)
        if port is None or (service.engine, port) in asked or len(asked) >= _MOST:
            continue
        asked.add((service.engine, port))
        path = _PATHS[service.engine]
        said = loopback.get(port, path)
        if said is not None:
            source = f"http://{loopback.HOST}:{port}{path}"
            answer = _read(service, said, source)
            if answer is not None:
                yield answer


def port_of(service: Service) -> int | None:
    """The port that a service listens on; None where it listens on another address only, or on
    what is no port, or nothing is known of its engine."""
    if service.engine not in _PORTS:
        return None
    host = said = None
    if service.engine == "ollama":
        match = _ADDRESS.fullmatch(service.variable("OLLAMA_HOST") or "")
        if match is None:
            return None
        host, said = match["host"], match["port"]
    else:
        words = service.command.value
        host = units.option(words, ("--host",)) or service.variable("LLAMA_ARG_HOST")
        said = units.option(words, ("--port",)) or service.variable("LLAMA_ARG_PORT")
    if (host or "") not in _HOSTS:
        return None
    if said and not re.fullmatch(r"[0-9]{1,5}", said):
        return None
    port = int(said) if said else _PORTS[service.engine]
    return port if 0 < port < 65536 else None


def _read(service: Service, said: bytes, source: str) -> Answer | None:
    """An answer, if it is one of that engine's."""
    if service.engine == "vllm":
        found = [float(count) for count in _PREEMPTED.findall(said)]
        return Answer(service.engine, service.unit, source, preempted=sum(found)) if found else None
    try:
        document = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    if service.engine == "llama-cpp":
        ready = document.get("status") == "ok"
        return Answer(service.engine, service.unit, source) if ready else None
    models = document.get("models")
    if not isinstance(models, list):
        return None
    loaded = tuple(filter(None, map(_model, models[:_MODELS])))
    return Answer(service.engine, service.unit, source, models=loaded)


def _model(row: Any) -> LoadedModel | None:
    """A row of Ollama's list of running models."""
    if not isinstance(row, dict):
        return None
    name, size, on_gpu = row.get("name"), row.get("size"), row.get("size_vram", 0)
    if not isinstance(name, str) or type(size) is not int or type(on_gpu) is not int:
        return None
    return LoadedModel(name[:200], size, on_gpu) if on_gpu >= 0 and 0 < size < 1 << 60 else None
