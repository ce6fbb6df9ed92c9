"""What containers see of GPUs: lists of devices (CDI), Docker's runtimes, NVIDIA's toolkit."""

from __future__ import annotations

import json
import re
import sys

from legacy_cuda.doctor.facts import ContainerFacts, Fact
from legacy_cuda.doctor.place import Place

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTS = ("/etc/cdi", "/var/run/cdi", "/run/cdi")
DAEMON = "/etc/docker/daemon.json"
RUNTIME = "/etc/nvidia-container-runtime/config.toml"
COMMANDS = ("/usr/bin", "/usr/local/bin", "/run/current-system/sw/bin")
PROGRAMS = ("docker", "podman")
TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-toolkit")
_KIND = re.compile(r"""["']?kind["']?\s*:\s*["']?nvidia\.com/gpu\b""")
_LIBCUDA = re.compile(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)")


def look(place: Place) -> ContainerFacts:
    """The files are searched for two texts; they may be YAML or JSON."""
    lists: dict[str, Fact[str | None]] = {}
    for folder in LISTS:
        for name in place.names(folder):
            path = f"{folder}/{name}"
            if not name.endswith((".yaml", ".yml", ".json")) or place.real(path) in lists:
                continue
            text = place.text(path, 1 << 20) or ""
            if _KIND.search(text):
                release = _LIBCUDA.search(text)
                lists[place.real(path)] = Fact(release[1] if release else None, path)
    no_cgroups, mode = _settings(place)
    return ContainerFacts(
        programs=tuple(
            found for name in PROGRAMS if (found := _program(place, (name,))) is not None
        ),
        lists=tuple(lists.values()),
        runtime=_runtime(place),
        toolkit=_program(place, TOOLKIT),
        no_cgroups=no_cgroups,
        mode=mode,
    )


def _settings(place: Place) -> tuple[Fact[bool] | None, Fact[str] | None]:
    """Of the NVIDIA container runtime: whether it lets cgroups alone, and its mode."""
    try:
        said = tomllib.loads(place.text(RUNTIME) or "")
    except (ValueError, RecursionError) as error:
        place.problems.append(f"{RUNTIME}: {error}")
        return None, None
    program, runtime = (
        table if isinstance(table := said.get(name), dict) else {}
        for name in ("nvidia-container-cli", "nvidia-container-runtime")
    )
    alone, mode = program.get("no-cgroups"), runtime.get("mode")
    return (
        Fact(alone, RUNTIME) if isinstance(alone, bool) else None,
        Fact(mode, RUNTIME) if isinstance(mode, str) else None,
    )


def _program(place: Place, names: tuple[str, ...]) -> Fact[str] | None:
    paths = (f"{folder}/{name}" for name in names for folder in COMMANDS)
    path = next((path for path in paths if place.mode(path) is not None), None)
    return Fact(path.rpartition("/")[2], path) if path else None


def _runtime(place: Place) -> Fact[str] | None:
    try:
        said = json.loads(place.text(DAEMON) or "{}")
    except (ValueError, RecursionError) as error:
        place.problems.append(f"{DAEMON}: {error}")
        return None
    runtimes = said.get("runtimes") if isinstance(said, dict) else None
    if isinstance(runtimes, dict) and "nvidia" in runtimes:
        return Fact("nvidia", DAEMON)
    return None
