"""What a server says of itself: model, engine, version, context, slots. ``client`` asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from legacy_cuda.bench import client
from legacy_cuda.bench.client import Endpoint
from legacy_cuda.errors import SurroundingsError, UserError

Get = Callable[[str], Any]


@dataclass(frozen=True)
class Server:
    """What was said, and by which path; None for what was not. ``context`` in tokens of one
    request, ``slots``: requests that are computed at once."""

    model: str
    engine: str | None = None
    version: str | None = None
    context: int | None = None
    slots: int | None = None
    model_file: str | None = None
    said_by: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As it is kept."""
        return {**asdict(self), "said_by": list(self.said_by)}


def ask(place: Endpoint, model: str | None) -> Server:
    """Ask the server; ``model`` is needed where it has several.

    Raises:
        SurroundingsError: it does not answer.
        UserError: it has no such model, or several and none was named.
    """
    try:
        status, listed = client.ask(place, "GET", f"{place.base}/models")
    except OSError as error:
        raise unreachable(place, str(error)) from error
    if status in (401, 403):
        raise UserError(
            f"the server wants a key: it answers {place.url}/models with status {status}",
            next_step="put the key into a variable of the environment and name that with --key-env",
        )
    found = _names(listed)
    if not found and not model:
        raise UserError(
            f"the server names no model: {place.url}/models answers with status {status}",
            next_step="check the address (does it end in /v1?), or name the model with --model",
        )
    if model and found and model not in found:
        raise UserError(
            f"the server has no model {model!r}",
            f"it has {', '.join(found[:20])}",
            "name one of these with --model",
        )
    if not model and len(found) > 1:
        raise UserError(
            f"the server has {len(found)} models",
            ", ".join(found[:20]),
            "name one with --model",
        )

    def get(path: str) -> Any:
        try:
            code, data = client.ask(place, "GET", path)
        except OSError:
            return None
        return data if code == 200 and isinstance(data, dict) else None

    return read(model or found[0], listed, get)


def unreachable(place: Endpoint, why: str) -> SurroundingsError:
    """The error for a server that does not answer."""
    return SurroundingsError(
        f"the server at {place.url} does not answer", why, "start it, or check the address"
    )


def _names(listed: Any) -> list[str]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [
        str(item["id"])
        for item in (data if isinstance(data, list) else [])
        if isinstance(item, dict) and item.get("id")
    ]


def read(model: str, listed: Any, get: Get) -> Server:
    """What the answers of a server say. ``get`` gives the object at a path, or None.

    Paths: ``/props`` is llama-server's, ``/version`` vLLM's, ``/api/version`` Ollama's,
    ``/get_server_info`` SGLang's.
    """
    context = _number(
        next((item for item in _items(listed) if item.get("id") == model), {}), "max_model_len"
    )
    if (props := get("/props")) and "build_info" in props:
        settings = props.get("default_generation_settings")
        file = props.get("model_path")
        return Server(
            model,
            "llama-server",
            str(props["build_info"]),
            _number(settings if isinstance(settings, dict) else {}, "n_ctx"),
            _number(props, "total_slots"),
            PurePath(file).name if isinstance(file, str) else None,
            ("/props",),
        )
    if (about := get("/get_server_info")) and "version" in about:
        slots = _number(about, "max_running_requests")
        length = _number(about, "context_length") or context
        return Server(
            model, "sglang", str(about["version"]), length, slots, None, ("/get_server_info",)
        )
    for path, engine in (("/api/version", "ollama"), ("/version", "vllm")):
        if (about := get(path)) and isinstance(about.get("version"), str):
            return Server(model, engine, about["version"], context, said_by=(path,))
    return Server(model, context=context)


def _items(listed: Any) -> list[dict[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [item for item in data if isinstance(item, dict)] if isinstance(data, list) else []


def _number(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) and value > 0 else None
