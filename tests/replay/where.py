"""How the tests of this folder run; ``conftest.py`` says what each way is good for."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILE_ONLY = bool(os.environ.get("LEGACY_CUDA_REPLAY")) and not os.environ.get(
    "LEGACY_CUDA_REPLAY_GPU"
)
