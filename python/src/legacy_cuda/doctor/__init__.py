"""What is wrong with a machine with old GPUs, and what mends it.

``examine`` lets the probes collect facts, ``logs`` finds known texts in a log, ``rules`` makes
findings of both (pure), ``diagnosis`` puts causes before what follows from them.
"""
