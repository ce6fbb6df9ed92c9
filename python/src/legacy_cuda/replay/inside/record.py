"""What was replayed, as JSON lines that many processes append to."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


class Record:
    """A file of JSON lines; every line is written at once, so that processes do not mix."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.launches = 0  # left out, and not yet written
        self._seen: set[tuple[str, str]] = set()

    def add(self, kind: str, **facts: Any) -> None:
        """Append one line of a kind; nothing where the report has been made already."""
        if not self.path:
            return
        line = json.dumps({"kind": kind, "pid": os.getpid(), **facts}) + "\n"
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def add_once(self, kind: str, key: str, **facts: Any) -> None:
        """Append a line unless this process has written one of the kind with that key."""
        if (kind, key) not in self._seen:
            self._seen.add((kind, key))
            self.add(kind, **facts)

    def flush(self) -> None:
        """Write what has been counted."""
        if self.launches:
            self.add("launches", count=self.launches)
            self.launches = 0


def program() -> str:
    """How this process was started, shortened."""
    return " ".join(getattr(sys, "orig_argv", sys.argv))[:300]
