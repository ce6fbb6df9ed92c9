"""What runs within a replayed program: hooks on its imports of Triton and PyTorch.

Standard library and relative imports only; Python 3.10 and newer. Loaded under the name
``legacy_cuda_replay``, see ``site/sitecustomize.py``.
"""

from __future__ import annotations

from . import pytest_header, torch_hooks, triton_hooks
from .imports import PostImport
from .record import Record
from .settings import Settings


def install() -> Record | None:
    """Replay this process as the environment says; returns its record. A second call changes
    nothing and returns None.

    Raises:
        KeyError, ValueError: the environment was not made by ``legacy-cuda replay``.
    """
    if PostImport.installed():
        return None
    settings = Settings.from_environment()
    record = Record(settings.record)
    PostImport.install(
        {
            **triton_hooks.hooks(settings, record),
            **torch_hooks.hooks(settings, record),
            "_pytest.config": pytest_header.announce,
        }
    )
    return record
