"""What Triton's releases call differently in their IR builder."""

from __future__ import annotations

from typing import Any


def splat(builder: Any, value: Any, kind: Any, shape: list[int]) -> Any:
    """A tensor of type ``kind`` and that shape with a scalar everywhere."""
    try:
        return builder.create_splat(kind, value)
    except TypeError:  # Triton 3.3
        return builder.create_splat(value, shape)
