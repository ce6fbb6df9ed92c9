"""Asking what answers on this machine's own loopback address. The one place where the doctor opens
a connection; it sends GET requests and nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.client import HTTPResponse

HOST = "127.0.0.1"
SECONDS = 0.3
_BYTES = 1 << 20


def body(response: HTTPResponse, end: float) -> bytes:
    """The first MiB of an answer that is to be there at ``end``, of ``time.monotonic()``.

    Raises:
        TimeoutError: it is not.
        OSError: the connection broke.
    """
    pieces = []
    left = _BYTES
    while left > 0 and (piece := response.read1(left)):
        pieces.append(piece)
        left -= len(piece)
        if time.monotonic() > end:
            raise TimeoutError("the answer takes too long")
    return b"".join(pieces)


def get(port: int, path: str, seconds: float = SECONDS) -> bytes | None:
    """What ``http://127.0.0.1:PORT/PATH`` answers with status 200, its first MiB; None where nobody
    answers so, or not in time."""
    import http.client

    end = time.monotonic() + seconds
    connection = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            return None
        return body(response, end)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
