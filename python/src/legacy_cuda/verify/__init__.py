"""Known kernels on the GPUs of this machine: right numbers, and as fast as they should come?

``probe.cu`` holds the kernels, ``code`` finds them compiled or compiles them (``nvrtc``).
``worker`` runs them on one GPU in a process of its own, through ``driver``, the one module that
calls libcuda; ``checks`` and ``rates`` say with which numbers. ``run`` starts the workers and ends
those that hang. ``judge`` makes a verdict of what was measured, ``roofline`` and ``page`` show it.

What is said: ``verified on`` a GPU whose own code ran there with the right results, ``replayed at
6.1 on`` one that ran an older capability's code. See ``docs/verify.md``.
"""
