"""Measuring a server that speaks the OpenAI API: prompts, streams, figures, comparisons, pictures.

``client`` is the only module that uses the network, ``drive`` the only one with a clock and
threads, ``runfile`` the only one that writes, ``machine`` reads what it records; the rest is pure.
"""
