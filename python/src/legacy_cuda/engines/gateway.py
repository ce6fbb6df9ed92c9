"""LiteLLM's and Open WebUI's settings for several engines: one address, a name for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An engine that runs: ``engine`` by its name in the catalog or llama-server."""

    engine: str
    model: str
    url: str


def litellm(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Content of LiteLLM's config.yaml (its documentation, Proxy Config)."""
    rows = []
    for one in endpoints:
        if one.engine == "ollama":
            how = {"model": f"ollama_chat/{one.model}", "api_base": one.url}
        else:
            # the client of this protocol wants a key
            how = {"model": f"openai/{one.model}", "api_base": f"{one.url}/v1", "api_key": "none"}
        rows.append({"model_name": one.model, "litellm_params": how})
    return {
        "model_list": rows,
        "litellm_settings": {"telemetry": False},
        # it does not start without one
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }


def open_webui(endpoints: Sequence[Endpoint]) -> dict[str, str]:
    """Variables for Open WebUI: every engine at its address."""
    ollama = [one for one in endpoints if one.engine == "ollama"]
    others = [f"{one.url}/v1" for one in endpoints if one.engine != "ollama"]
    found = {"ANONYMIZED_TELEMETRY": "False", "DO_NOT_TRACK": "True", "SCARF_NO_ANALYTICS": "True"}
    found["ENABLE_OLLAMA_API"] = str(bool(ollama))
    found["ENABLE_OPENAI_API"] = str(bool(others))
    if ollama:
        found["OLLAMA_BASE_URLS"] = ";".join(dict.fromkeys(one.url for one in ollama))
    if others:
        found["OPENAI_API_BASE_URLS"] = ";".join(dict.fromkeys(others))
        found["OPENAI_API_KEYS"] = ";".join("none" for _ in dict.fromkeys(others))
    return found
