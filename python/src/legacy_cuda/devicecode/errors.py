"""The one error of the readers."""

from __future__ import annotations


class DeviceCodeError(ValueError):
    """The bytes are not what they claim to be: truncated, corrupt, hostile or unsupported."""
