"""Python environments with packages that use GPUs. Nothing is imported: names of folders are read,
and the text of ``torch/version.py``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from legacy_cuda.doctor.facts import Environment, Fact, PythonFacts
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import engines

PACKAGES = (
    *("torch", "triton", "vllm", "bitsandbytes", "xformers", "sglang", "llama-cpp-python"),
    *("exllamav2", "exllamav3", "flash-attn"),
)
NVIDIA = "nvidia-"
SETTINGS = ("/etc/uv/uv.toml", "{home}/.config/uv/uv.toml")
_BELOW_HOME = ("venv", ".venv", ".local", "miniconda3", "miniforge3", "anaconda3", "mambaforge")
_DISTRIBUTION = re.compile(r"([A-Za-z0-9._]+)-([A-Za-z0-9.!+_]+)\.(?:dist|egg)-info")
_PYTHON = re.compile(r"python3(\.\d{1,2})?")
_UV = re.compile(r"""^\s*torch-backend\s*=\s*["']auto["']""", re.MULTILINE)
_MOST = 200  # folders that are looked into


def look(place: Place, variables: dict[str, str] | None = None) -> PythonFacts:
    """The environments of the shell, of services, below the home folder, in /opt and of the system.

    Args:
        variables: the environment; None: the process's own for the running system, else none.
    """
    if variables is None:
        variables = dict(os.environ) if place.live else {}
    found: dict[str, Environment] = {}
    for root in list(dict.fromkeys(_roots(place, variables)))[:_MOST]:
        for site in _sites(place, root):
            real = place.real(site)
            if real not in found and (environment := _read(place, site)) is not None:
                found[real] = environment
    return PythonFacts(tuple(found.values()), _uv(place, variables))


def homes(place: Place, variables: dict[str, str]) -> list[str]:
    """The home folder; every one of a recorded tree."""
    if place.live:
        return [variables["HOME"].rstrip("/")] if variables.get("HOME", "").startswith("/") else []
    return ["/root", *(f"/home/{name}" for name in place.names("/home"))]


def _roots(place: Place, variables: dict[str, str]) -> Iterator[str]:
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if (value := variables.get(name, "")).startswith("/"):
            yield value.rstrip("/")
    for service in engines.services(place):
        for word in service.command.value[:1]:
            folder, _, last = word.rpartition("/")[0].rpartition("/")
            if last == "bin" and folder:
                yield folder
    if place.live and (here := variables.get("PWD", "")).startswith("/"):
        yield from (f"{here}/{name}" for name in (".venv", "venv"))
    if value := variables.get("LEGACY_CUDA_HOME", ""):
        yield from (f"{value}/{name}" for name in place.names(value))
    for home in homes(place, variables):
        yield from (f"{home}/{name}" for name in _BELOW_HOME)
        own = f"{home}/.local/share/legacy-cuda/environments"
        many = (own, *(f"{home}/{name}/envs" for name in _BELOW_HOME[3:]))
        yield from (f"{folder}/{name}" for folder in many for name in place.names(folder))
    for name in place.names("/opt"):
        yield f"/opt/{name}"
        yield from (f"/opt/{name}/{below}" for below in ("venv", ".venv", "env"))
    yield from ("/usr/local", "/usr")


def _sites(place: Place, root: str) -> Iterator[str]:
    for library in ("lib", "lib64"):
        for name in place.names(f"{root}/{library}"):
            if _PYTHON.fullmatch(name):
                yield from (
                    f"{root}/{library}/{name}/{last}" for last in ("site-packages", "dist-packages")
                )


def _read(place: Place, site: str) -> Environment | None:
    names = place.names(site)
    versions = {}
    for name in names:
        if (match := _DISTRIBUTION.fullmatch(name)) is not None:
            package = re.sub(r"[-_.]+", "-", match[1]).lower()
            if package in PACKAGES or package.startswith(NVIDIA):
                versions[package] = match[2]
    # an installation that is edited leaves no folder of code, or one without these
    nameless = tuple(
        name
        for name in ("vllm",)
        if name not in versions and place.mode(f"{site}/{name}/__init__.py") is not None
    )
    if not nameless and not any(name in versions for name in PACKAGES):
        return None
    torch_cuda = None
    if "torch" in versions:
        from legacy_cuda import audit

        torch_cuda = audit.cuda_of_torch(place.text(f"{site}/torch/version.py") or "")
    return Environment(site, tuple(sorted(versions.items())), nameless, torch_cuda)


def _uv(place: Place, variables: dict[str, str]) -> Fact[str] | None:
    if variables.get("UV_TORCH_BACKEND") == "auto":
        return Fact("UV_TORCH_BACKEND=auto", "UV_TORCH_BACKEND")
    folders = homes(place, variables)
    for path in (SETTINGS[0], *(SETTINGS[1].format(home=home) for home in folders)):
        if _UV.search(place.text(path) or ""):
            return Fact('torch-backend = "auto"', path)
    return None
