"""What looks at a machine: one module an area, each with ``look(place)``.

A probe reads files below ``place``. It may fail; :mod:`legacy_cuda.doctor.examine` runs the probes
side by side and records which did.
"""
