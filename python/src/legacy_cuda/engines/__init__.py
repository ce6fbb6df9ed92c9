"""Engines: how each is started from a plan, asked for its health, and read. One module each."""
