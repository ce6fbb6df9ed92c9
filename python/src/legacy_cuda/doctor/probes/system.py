"""Which distribution this is, and whether it is a container."""

from __future__ import annotations

from legacy_cuda.doctor.facts import Fact, Platform, SystemFacts, SystemKind
from legacy_cuda.doctor.place import Place

RELEASES = ("/etc/os-release", "/usr/lib/os-release")
CONTAINERS = (
    *("/run/.containerenv", "/.dockerenv", "/run/systemd/container", "/.singularity.d"),
    *("/run/secrets/kubernetes.io", "/var/run/secrets/kubernetes.io"),
)
CGROUPS = "/proc/1/cgroup"
PLATFORMS: tuple[tuple[str, Platform], ...] = (
    ("/dev/dxg", "WSL2"),
    ("/etc/nv_tegra_release", "Jetson"),
)


def look(place: Place) -> SystemFacts:
    """From os-release (freedesktop.org, os-release) and the marks that container engines leave."""
    path, text = RELEASES[0], None
    for path in RELEASES:
        text = place.text(path)
        if text is not None:
            break
    values = {}
    for line in (text or "").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values[key.strip()] = value.strip().strip("\"'")
    names = [values.get("ID", "").lower(), *values.get("ID_LIKE", "").lower().split()]
    kinds: tuple[SystemKind, ...] = ("nixos", "ubuntu", "debian")
    kind: SystemKind = next((item for name in names for item in kinds if name == item), "other")
    mark = next((item for item in CONTAINERS if place.mode(item) is not None), None)
    if mark is None and "kubepods" in (place.text(CGROUPS) or ""):
        mark = CGROUPS
    platforms = (Fact(name, item) for item, name in PLATFORMS if place.mode(item) is not None)
    return SystemFacts(
        kind=Fact(kind, path),
        name=values.get("PRETTY_NAME") or values.get("NAME") or "unknown",
        container=Fact(mark, mark) if mark else None,
        platform=next(platforms, None),
    )
