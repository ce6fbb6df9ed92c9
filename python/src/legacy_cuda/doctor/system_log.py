"""What the running system's logs say. The one place where the doctor starts a program.

Only ``dmesg`` and ``journalctl`` are started, from the system's own folders (PATH is not asked), to
read, with a limit on time and on what they say.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

SECONDS = 1.2
_BYTES = 8 << 20  # of the end of what they say
_FOLDERS = ("/usr/bin", "/bin", "/run/current-system/sw/bin")
_COMMANDS = (
    ("dmesg", "--kernel", "--nopager"),
    ("journalctl", "--dmesg", "--boot", "--no-pager", "--quiet", "--lines=20000"),
)
_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and the command."""

    text: str
    command: str


_JOURNAL = ("journalctl", "--boot", "--no-pager", "--quiet", "--lines=5000", "--unit")


def read() -> Said | None:
    """The kernel's log of this start of the machine; None where none may be read."""
    for command in _COMMANDS:
        text = _said(command, SECONDS / len(_COMMANDS))
        if text:
            return Said(text, " ".join(command))
    return None


def of_unit(unit: str) -> Said | None:
    """What a unit of systemd wrote since this start of the machine; None where nothing is told."""
    text = _said((*_JOURNAL, unit), SECONDS)
    return Said(text, f"journalctl --unit {unit}") if text else None


def _said(command: tuple[str, ...], seconds: float) -> str | None:
    name, *options = command
    for folder in _FOLDERS:
        program = f"{folder}/{name}"
        if not os.access(program, os.X_OK):
            continue
        try:
            done = subprocess.run(
                [program, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=seconds,
                env=_ENVIRONMENT,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        text = done.stdout[-_BYTES:].decode("utf-8", "replace")
        if len(done.stdout) > _BYTES:
            text = text.partition("\n")[2]  # without half a line
        return text if done.returncode == 0 else None
    return None
