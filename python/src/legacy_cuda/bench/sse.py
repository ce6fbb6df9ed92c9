"""Server-sent events, from bytes as they arrive. Pure.

Follows the event stream format of the HTML standard: lines end with CR LF, LF or CR, a blank line
ends an event, a byte order mark at the start and comments are passed over, and what is not ended by
a blank line is no event. ``id`` and ``retry`` are of no use here and are left out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LONGEST_LINE = 4 << 20
"""Bytes. A chunk of a completion has some hundred; this only bounds memory."""

_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"


class StreamError(ValueError):
    """These bytes are no event stream that a server in its right mind would send."""


class Event(NamedTuple):
    """One event: ``kind`` is empty where none is named."""

    kind: str
    data: str


class Decoder:
    """Bytes to events. An event is there as soon as the line that ends it is."""

    def __init__(self, longest_line: int = LONGEST_LINE) -> None:
        self._longest = longest_line
        self._rest = b""
        self._started = False
        self._after_return = False
        self._kind = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            StreamError: a line is longer than the limit.
        """
        if self._after_return and data:
            data = data.removeprefix(b"\n")  # the second half of a CR LF
            self._after_return = False
        data = self._rest + data
        self._rest = b""
        if not self._started:
            if len(data) < len(_MARK) and _MARK.startswith(data):
                self._rest = data
                return []
            data = data.removeprefix(_MARK)
            self._started = True
        *lines, self._rest = _END.split(data)
        self._after_return = not self._rest and data.endswith(b"\r")
        if max(map(len, [*lines, self._rest])) > self._longest:
            raise StreamError(f"a line is longer than {self._longest} bytes")
        return [event for line in lines if (event := self._line(line))]

    def _line(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._kind = value
            return None
        event = Event(self._kind, "\n".join(self._data)) if self._data else None
        self._kind, self._data = "", []
        return event
