"""Run a command, and let nothing that it started outlive it, or outlive whoever started this.

    python supervise.py PARENT COMMAND ...

PARENT is the process id of who starts this: when that process ends, however it does, everything
here is ended too. The exit code is the command's, 128 + N if signal N ended it. A descriptor that
is inherited, such as that of a lock, stays open until the last process has ended.

Standard library only: it is run as a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def _descendants() -> list[int]:
    """Process ids of everything below this process (proc(5), "stat": the fourth field)."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
                parents[int(path.name)] = int(fields[1])
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def _end_all() -> None:
    """Kill what is left, until nothing is: orphans come to this process, their subreaper."""
    while left := _descendants():
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def main() -> int:
    """Run the command."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    system = ctypes.CDLL(None)
    system.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    system.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # it ended before the signal was asked for
        return 128 + signal.SIGTERM
    try:
        # the lock goes no further: this process outlives all others
        code = subprocess.Popen(sys.argv[2:]).wait()
        return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all()


if __name__ == "__main__":
    sys.exit(main())
