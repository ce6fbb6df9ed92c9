"""NVIDIA's device nodes, and the helper that makes them on demand."""

from __future__ import annotations

import stat

from legacy_cuda.doctor.facts import Fact, NodeFacts
from legacy_cuda.doctor.place import Place

FOLDER = "/dev"
HELPERS = ("/usr/bin/nvidia-modprobe", "/run/wrappers/bin/nvidia-modprobe")


def look(place: Place) -> NodeFacts:
    """The names in ``/dev`` that begin with ``nvidia``; a helper counts if it is setuid."""
    names = tuple(name for name in place.names(FOLDER, needed=True) if name.startswith("nvidia"))
    helper = next((path for path in HELPERS if (place.mode(path) or 0) & stat.S_ISUID), None)
    return NodeFacts(Fact(names, FOLDER), Fact(helper, helper) if helper else None)
