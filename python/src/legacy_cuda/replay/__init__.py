"""Replay: an old capability's code, executed on a newer GPU that answers as the old one.

Triton compiles for the old capability, the old target's ptxas has to accept the PTX, and only then
is the same PTX assembled for the GPU at hand and run. What that proves and what not is in
``docs/replay.md``; the words for it are always ``replayed at 6.1 on <GPU>``.

``command`` prepares the environment of a command, ``gpu`` asks which GPU there is, ``report`` puts
the records of many processes together. ``inside`` is what runs within the replayed Python programs:
standard library only, loaded by path through ``site/sitecustomize.py``, because their Python has
no legacy-cuda installed. ``native`` answers the host code of programs in C++, whose device code is
PTX for the old capability.
"""
