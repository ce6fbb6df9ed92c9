"""What subcommands share: colours, tables, JSON, progress, errors. Imports heavy things late."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError, Engine, Gpu
from legacy_cuda.errors import UserError

_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class HelpFormatter(argparse.HelpFormatter):
    """Wraps text to the terminal, but keeps the lines of a text that has several: examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def prepare() -> None:
    """Make standard output and error writable: they may be closed, or unable to write a name."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def settle() -> None:
    """Send the rest of standard output nowhere if it is broken, or Python complains at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def paint(text: str, *styles: str) -> str:
    """Colour for a terminal; plain text elsewhere and where NO_COLOR is set."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    codes = ";".join(_CODES[style] for style in styles)
    return f"\033[{codes}m{text}\033[0m"


def width() -> int:
    """Columns of the terminal, at most 120."""
    return min(120, shutil.get_terminal_size((100, 24)).columns)


def wrapped(label: str, text: str, indent: int) -> str:
    """A label and a text that hangs beside it."""
    lines = textwrap.wrap(text, max(30, width() - indent), break_on_hyphens=False) or [""]
    head = f"{label:<{indent}}"
    return "\n".join([head + lines[0], *(" " * indent + line for line in lines[1:])])


def table(rows: Sequence[Sequence[str]], styles: Callable[[str], tuple[str, ...]]) -> str:
    """Columns of equal width, the first row a heading; ``styles`` colours a cell by its text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = []
        for cell, size in zip(row, widths, strict=True):
            padded = f"{cell:<{size}}"
            style = ("bold",) if number == 0 else styles(cell)
            cells.append(paint(padded, *style) if style else padded)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def document(schema: str, content: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    json.dump({"schema": f"legacy-cuda/{schema}/1", **content}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def error(problem: UserError, as_json: bool = False) -> None:
    """Say what, why and what to do next."""
    if as_json:
        document(
            "error",
            {
                "error": problem.what,
                "why": problem.why,
                "next": problem.next_step,
                "exit_code": problem.exit_code,
            },
        )
    print(f"error: {problem.what}", file=sys.stderr)
    for line in problem.why.splitlines():
        print(f"  {line}", file=sys.stderr)
    for line in problem.next_step.splitlines():
        print(f"  -> {line}", file=sys.stderr)


def whole(least: int, most: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number between two, the ends included."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is out of reason: {least} to {most}")
        return value

    return read


def short(path: Path) -> str:
    """A path as a shell understands it, the home folder as ``~``."""
    home = Path.home()
    if path.is_relative_to(home) and home != Path("/"):
        return f"~/{path.relative_to(home)}"
    return str(path)


def read_gpus(names: Sequence[str]) -> list[Gpu]:
    """GPUs by name, alias, product name or PCI id; commas separate too; ``2xp40`` is two.

    Raises:
        UserError: one is not in the catalog.
    """
    found = []
    for name in (part for item in names for part in item.split(",")):
        text = name.strip()
        if not text:
            continue
        several = re.fullmatch(r"([1-9][0-9]?)x(.+)", text)
        count, one = (int(several[1]), several[2]) if several else (1, text)
        try:
            found += [catalog.find_gpu(one)] * count
        except CatalogError as problem:
            raise unknown(problem, _how_to_name(names)) from problem
    if not found:
        raise UserError("no GPU was named", next_step="name one, for example p40")
    return found


def _how_to_name(names: Sequence[str]) -> str:
    together = " ".join(names)
    if len(names) > 1:
        try:
            return (
                f"for one card put its name in quotes: '{together}', or write "
                f"{catalog.find_gpu(together).name}"
            )
        except CatalogError:
            pass
    return "legacy-cuda gpus lists all of them"


def read_engine(name: str) -> Engine:
    """An engine by name or alias.

    Raises:
        UserError: it is not in the catalog.
    """
    try:
        return catalog.find_engine(name)
    except CatalogError as problem:
        names = ", ".join(engine.name for engine in catalog.engines())
        raise unknown(problem, f"known engines: {names}") from problem


def unknown(problem: CatalogError, next_step: str) -> UserError:
    """The error for a name that is not in the catalog."""
    why = f"did you mean {' or '.join(problem.near)}?" if problem.near else ""
    return UserError(str(problem), why, next_step)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error, on a terminal only: called with what, done, total.

    A total of 0 stands for one that is not known.
    """
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=min(done, total) if total else done)

        yield update


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], None]]:
    """Progress in steps, on standard error, on a terminal only: one line, which says what is being
    done, how many steps of how many are, and about how long the rest takes.

    A total of 0 stands for one that is not known.
    """
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:<40.40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        speed_estimate_period=300,
    ) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield update
