"""Samples as rows of CSV, for those without Prometheus."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from legacy_cuda.errors import UserError
from legacy_cuda.monitor.metrics import State, failure_of
from legacy_cuda.nvml import Device

_LISTS = ("throttle_reasons", "processes")
_VALUES = tuple(f.name for f in fields(Device) if f.name not in ("index", "missing", *_LISTS))
#: The first row. Units are in the names: bytes, percent, degrees C, watts, joules, MHz, seconds.
COLUMNS = ("time", "index", "state", *_VALUES, *_LISTS)


def rows(state: State) -> Iterator[list[str]]:
    """One row for each GPU. What is not known is empty; ``state`` is "ok" or NVML's error."""
    moment = datetime.fromtimestamp(state.snapshot.time, timezone.utc)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for device in state.devices:
        why = failure_of(device, state.snapshot)
        values = (getattr(device, name) for name in _VALUES)
        reasons = " ".join(device.throttle_reasons or ())
        processes = " ".join(
            f"{process.pid}:{'' if process.memory_bytes is None else process.memory_bytes}"
            for process in device.processes or ()
        )
        yield [
            *(time, str(device.index), why.error if why else "ok"),
            *("" if value is None else _text(value) for value in values),
            *(reasons, processes),
        ]


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


class Log:
    """Rows at the end of a file; "-" is standard output.

    Raises:
        UserError: the file has other columns.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, output: TextIO) -> None:
        self._own = str(path) != "-"
        self._file = path.open("a+", encoding="utf-8", newline="") if self._own else output
        if self._own:
            self._file.seek(0)
            expected = _line(COLUMNS)
            first = self._file.readline(len(expected))  # no more of a file that is another
            if first and first != expected:
                self._file.close()
                raise UserError(
                    f"{path} has other columns",
                    f"its first row begins {first[:60].strip()!r}",
                    "name another file",
                )
            self._file.seek(0, os.SEEK_END)
            new = not first
            if not new and not _ends_a_row(path):  # it was cut off while a row was written
                self._file.write("\n")
        else:
            new = True
        if new:
            self._file.write(_line(COLUMNS))

    def write(self, state: State) -> None:
        """Add the rows of a state, at once."""
        self._file.write("".join(_line(row) for row in rows(state)))
        self._file.flush()

    def close(self) -> None:
        if self._own:
            self._file.close()


def _ends_a_row(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _line(row: tuple[str, ...] | list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(row)
    return buffer.getvalue()
