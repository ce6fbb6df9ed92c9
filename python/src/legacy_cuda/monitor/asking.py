"""A thread for each engine that asks it again and again, so that none holds up the GPUs."""

from __future__ import annotations

import json
import threading
from typing import Any

from legacy_cuda.engines import ollama, run
from legacy_cuda.monitor.engines import Engine, Reading, reading_of

#: Seconds that an engine may take to answer.
LIMIT = 5.0


class Asking:
    """Asks an engine until it is stopped; ``reading`` is its last answer."""

    def __init__(self, engine: Engine, interval: float) -> None:
        self._engine, self._interval = engine, interval
        self._stop = threading.Event()
        self.reading = Reading(engine, up=False)
        self._thread = threading.Thread(target=self._run, name=f"asks {engine.url}", daemon=True)

    def start(self) -> None:
        """Ask in the background; until the first answer the engine is down."""
        self._thread.start()

    def stop(self) -> None:
        """End; an answer that is waited for is not."""
        self._stop.set()

    def _run(self) -> None:
        while True:
            self.reading = ask(self._engine)
            if self._stop.wait(self._interval):
                return


def ask(engine: Engine) -> Reading:
    """What an engine says now. Never raises for what it does."""
    health, more_path = engine.paths
    try:
        answer = run.fetched(engine.url + health, timeout=LIMIT)
    except (OSError, ValueError):  # ValueError: no host can have that name
        return reading_of(engine, None, None)
    more: Any
    try:
        text = run.fetched(engine.url + more_path, timeout=LIMIT)
        more = json.loads(text) if engine.kind == ollama.NAME else text.decode("utf-8", "replace")
    except (OSError, ValueError):
        more = None
    return reading_of(engine, answer, more)
