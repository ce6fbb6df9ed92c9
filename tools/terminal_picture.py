"""Run commands on a terminal of 100 columns and draw what they print as an SVG.

    python tools/terminal_picture.py docs/pictures/up.svg "legacy-cuda up p40" ...

The pictures in the documentation are made with this, from real runs. Nothing in them refers to
anything outside the file.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def run(command: str) -> str:
    """What a command prints on a terminal, colours included; progress on stderr is left out."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(command), stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    out = bytearray()
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # EIO: the other end is closed
            break
        if not data:
            break
        out += data
    process.wait()
    os.close(ours)
    return out.decode("utf-8", "replace").replace("\r\n", "\n")


def draw(recorded: list[tuple[str, str]]) -> str:
    """The commands and what they printed, as one SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, printed in recorded:
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(printed.strip("\n")))
        console.print()
    svg = console.export_svg(title="legacy-cuda")
    svg = _FONT_FACE.sub("", svg).replace("Fira Code, monospace", "ui-monospace, monospace")
    return re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)


def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    recorded = [(command, run(command)) for command in arguments.command]
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    arguments.picture.write_text(draw(recorded), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
