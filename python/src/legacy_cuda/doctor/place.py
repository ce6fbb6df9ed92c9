"""Reading a machine's files below a root folder: the running system's, or a recorded tree.

Whatever is there is taken as it comes: a file that cannot be read is a note in ``problems``, links
stay inside the root, nothing blocks (pipes and devices are not opened), nothing is read beyond a
limit, and bytes that are no text are replaced.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

_LINKS = 40  # as many as Linux follows
T = TypeVar("T")


class Memory:
    """What several probes want to know, found out once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.known: dict[str, Any] = {}


class Place:
    """A root folder. Paths are those of the machine, as in ``/proc/cpuinfo``. Places with one
    ``memory`` must have one root."""

    def __init__(self, root: Path = Path("/"), memory: Memory | None = None) -> None:
        self.root = root
        self.problems: list[str] = []
        self._memory = memory or Memory()

    def once(self, name: str, find: Callable[[Place], T]) -> T:
        """What ``find`` finds here; under one name it is called once for all places with this
        memory, and what it could not read is a problem of the place that asked first."""
        with self._memory.lock:
            if name not in self._memory.known:
                self._memory.known[name] = find(self)
            found: T = self._memory.known[name]
            return found

    @property
    def live(self) -> bool:
        """Whether it is the running system."""
        return self.root == Path("/")

    def real(self, path: str) -> str:
        """The path with its links followed, absolute ones from the root; as it is where one loops
        or where nothing is there."""
        if self.live:
            return os.path.realpath(path)
        waiting = [part for part in path.split("/") if part][::-1]
        done: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del done[-1:]
                continue
            try:
                target = str(self.root.joinpath(*done, part).readlink())
            except (OSError, ValueError):
                done.append(part)
                continue
            links += 1
            if links > _LINKS:
                return path
            if target.startswith("/"):
                done = []
            waiting += target.split("/")[::-1]
        return "/" + "/".join(done)

    def host(self, path: str) -> str:
        """Where a path of the machine is on the disk of the system that looks at it."""
        return path if self.live else f"{self.root}{self.real(path)}"

    def text(self, path: str, limit: int = 1 << 16) -> str | None:
        """The beginning of a file, ``limit`` bytes of it; None where there is none, or it cannot be
        read."""
        data = self.data(path, limit)
        return None if data is None else data.decode("utf-8", "replace")

    def data(self, path: str, limit: int, from_end: bool = False) -> bytes | None:
        """The first ``limit`` bytes of a file, or the last ones; None as for :meth:`text`."""
        try:
            handle = os.open(self.host(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            self._note(path, error)
            return None
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                return None
            if from_end and facts.st_size > limit:
                os.lseek(handle, facts.st_size - limit, os.SEEK_SET)
            pieces = []
            while limit > 0 and (piece := os.read(handle, min(limit, 1 << 20))):
                pieces.append(piece)
                limit -= len(piece)
            return b"".join(pieces)
        except OSError as error:
            self._note(path, error)
            return None
        finally:
            os.close(handle)

    def names(self, path: str, needed: bool = False, limit: int = 100_000) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder.

        Raises:
            OSError: it is not there or may not be read, and is needed: nothing may be concluded
                from no names.
        """
        found: list[str] = []
        try:
            with os.scandir(self.host(path)) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) >= limit:
                        break
        except OSError as error:
            if needed:
                raise OSError(error.errno, error.strerror, path) from error
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self._note(path, error)
        except ValueError as error:
            self._note(path, error)
        return sorted(found)

    def link_name(self, path: str) -> str | None:
        """The last part of what a link points to; None where there is no link."""
        parent, _, name = path.rpartition("/")
        try:
            return Path(self.host(parent or "/"), name).readlink().name or None
        except (OSError, ValueError):
            return None

    def mode(self, path: str) -> int | None:
        """The mode bits of what is at a path, links followed; None where nothing is."""
        try:
            return Path(self.host(path)).stat().st_mode
        except PermissionError as error:
            self._note(path, error)
        except (OSError, ValueError):
            pass
        return None

    def size(self, path: str) -> int | None:
        """The size of a file in bytes; None where there is none."""
        try:
            return Path(self.host(path)).stat().st_size
        except (OSError, ValueError):
            return None

    def modified(self, path: str) -> float | None:
        """When a file was last written, in seconds since 1970; None where there is none."""
        try:
            return Path(self.host(path)).stat().st_mtime
        except (OSError, ValueError):
            return None

    def _note(self, path: str, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self.problems.append(f"{path}: {reason}")
