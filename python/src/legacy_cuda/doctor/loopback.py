"""Asking what answers on this machine's own loopback address. The one place where the doctor opens
a connection; it sends GET requests and nothing else."""

from __future__ import annotations

import time

HOST = "127.0.0.1"
SECONDS = 0.3
_BYTES = 1 << 20


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
        pieces = []
        left = _BYTES
        while left > 0 and (piece := response.read1(left)):
            pieces.append(piece)
            left -= len(piece)
            if time.monotonic() > end:
                return None
        return b"".join(pieces)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
