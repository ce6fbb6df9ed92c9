"""What runs within a replayed program: hooks on its imports of Triton and PyTorch.

Standard library and relative imports only; Python 3.10 and newer. Loaded under the name
``legacy_cuda_replay``, see ``site/sitecustomize.py``.
"""

from __future__ import annotations

from . import torch_hooks, triton_hooks
from .imports import PostImport
from .record import Record
from .settings import Settings


def install() -> None:
    """Replay this process as the environment says; a second call changes nothing.

    Raises:
        KeyError, ValueError: the environment was not made by ``legacy-cuda replay``.
    """
    if PostImport.installed():
        return
    settings = Settings.from_environment()
    record = Record(settings.record)
    PostImport.install(
        {**triton_hooks.hooks(settings, record), **torch_hooks.hooks(settings, record)}
    )
