"""What a patched Triton wheel carries of ours, as ``triton/backends/nvidia/legacy``.

Every module works by itself with the standard library; Triton is imported where it is used.
``legalize`` rewrites PTX, ``rules`` says how, ``ptx`` reads it. ``dot``, ``fp8`` and ``mlir`` are
about the IR before it, ``limits`` about what a capability has.
"""
