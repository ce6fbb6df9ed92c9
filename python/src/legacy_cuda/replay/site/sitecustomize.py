"""Replays the Python program that is starting, then runs the sitecustomize that it had before.

Python goes on when a sitecustomize fails. A program that then ran on the newer GPU as it is would
look replayed, so that any failure here ends it: exit code 3.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import traceback
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _load_inside() -> None:
    """Import ``../inside`` as ``legacy_cuda_replay``, whatever this Python has installed."""
    folder = _HERE.parent / "inside"
    spec = importlib.util.spec_from_file_location(
        "legacy_cuda_replay", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules["legacy_cuda_replay"] = module
    spec.loader.exec_module(module)
    module.install()


def _chain() -> None:
    """Run the sitecustomize that this one hides, if there is any."""
    others = [path for path in sys.path if Path(path).resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if os.environ.get("LEGACY_CUDA_REPLAY") and "legacy_cuda_replay" not in sys.modules:
    try:
        _load_inside()
    except BaseException:
        traceback.print_exc()
        print("error: legacy-cuda replay could not be set up in this process", file=sys.stderr)
        sys.stderr.flush()
        os._exit(3)
_chain()
