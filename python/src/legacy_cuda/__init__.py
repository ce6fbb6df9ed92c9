"""Proven AI software stacks for old NVIDIA GPUs (Kepler to Volta)."""

__version__ = "0.1.0"
