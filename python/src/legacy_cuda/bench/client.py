"""HTTP to the server that is measured: the one place with sockets.

``http.client`` in threads, one request a connection. While a stream arrives nothing is done but to
keep the bytes and the time they came at; they are read when all is over (``answer.py``).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from legacy_cuda import __version__
from legacy_cuda.errors import UserError

Ending = Literal["end", "no-connection", "broken", "stalled", "timeout", "too-long", "cancelled"]
LARGEST_ANSWER = 64 << 20
"""Bytes of one answer. 128 tokens are about 30 KB; this only bounds memory."""
_READ = 1 << 16
_SMALL_ANSWER = 8 << 20
_CONNECT_S = 10.0


@dataclass(frozen=True)
class Endpoint:
    """Where the server is. ``base`` is the path before ``/chat/completions``, as ``/v1``."""

    scheme: str
    host: str
    port: int
    base: str
    key: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """As it is recorded: without the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base}"

    @property
    def local(self) -> bool:
        """Whether the name alone says that the server is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def connection(self, timeout: float) -> http.client.HTTPConnection:
        """A connection that is not open yet; ``timeout`` seconds for each wait."""
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=timeout)

    def headers(self) -> dict[str, str]:
        """Of every request."""
        sent = {"Content-Type": "application/json", "User-Agent": f"legacy-cuda/{__version__}"}
        return {**sent, "Authorization": f"Bearer {self.key}"} if self.key else sent


def endpoint(url: str, key: str = "") -> Endpoint:
    """Read an address: with or without ``/v1``, which is added where there is no path.

    Raises:
        UserError: it is none of HTTP.
    """
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _no_address(url, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _no_address(url, "")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise _no_address(url, "it has a user name, a password, a query or a fragment")
    base = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")
    return Endpoint(
        parts.scheme,
        parts.hostname,
        port or {"http": 80, "https": 443}[parts.scheme],
        base or "/v1",
        key,
    )


def _no_address(url: str, why: str) -> UserError:
    return UserError(f"{url!r} is no address of a server", why, "for example http://127.0.0.1:8080")


@dataclass
class Raw:
    """A streamed answer as it came. Times are nanoseconds of a monotonic clock."""

    ending: Ending = "cancelled"
    problem: str = ""
    status: int = 0
    content_type: str = ""
    sent: int = 0
    ended: int = 0
    arrivals: list[tuple[int, bytes]] = field(default_factory=list)


class Exchange:
    """One request and its streamed answer. ``perform`` blocks; ``abort`` ends it from elsewhere."""

    def __init__(self, place: Endpoint, path: str, body: Mapping[str, Any], stall_s: float) -> None:
        self._place = place
        self._path = place.base + path
        self._body = json.dumps(body).encode()
        self._stall = stall_s
        self._guard = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted: Ending | None = None
        self.raw = Raw()

    def perform(self) -> Raw:
        """Send, and keep what comes until it ends, fails or is ended."""
        raw = self.raw
        connection = self._place.connection(min(self._stall, _CONNECT_S))
        try:
            self._open(connection)
            connection.sock.settimeout(self._stall)
            raw.sent = time.monotonic_ns()
            connection.request("POST", self._path, self._body, self._place.headers())
            response = connection.getresponse()
            raw.status = response.status
            raw.content_type = response.headers.get_content_type()
            size = 0
            while data := response.read1(_READ):
                raw.arrivals.append((time.monotonic_ns(), data))
                size += len(data)
                if size > LARGEST_ANSWER:
                    raw.ending, raw.problem = "too-long", f"more than {LARGEST_ANSWER} bytes"
                    break
            else:
                raw.ending = "end"
        except TimeoutError:
            raw.ending = "stalled" if raw.sent else "no-connection"
            raw.problem = f"nothing came for {self._stall:g} s"
        except (OSError, http.client.HTTPException) as error:
            raw.ending = "broken" if raw.sent else "no-connection"
            raw.problem = f"{type(error).__name__}: {error}"
        finally:
            raw.ended = time.monotonic_ns()
            with self._guard:
                self._socket = None
                if self._aborted:
                    raw.ending, raw.problem = self._aborted, ""
            connection.close()
        return raw

    def _open(self, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            if self._aborted:
                raise ConnectionAbortedError("ended before it began")
        connection.connect()
        with self._guard:
            self._socket = connection.sock
            if self._aborted:
                raise ConnectionAbortedError("ended before it was sent")

    def abort(self, ending: Ending) -> None:
        """Cut the connection: ``perform`` returns with this ending. Nothing where it is over."""
        with self._guard:
            if self._aborted or self.raw.ended:
                return
            self._aborted = ending
            if self._socket:
                with contextlib.suppress(OSError):  # it may end by itself in this moment
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def ask(
    place: Endpoint,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    wait_s: float = 10,
) -> tuple[int, Any]:
    """A small question: the status, and the JSON of the answer or None. ``path`` is whole.

    Raises:
        OSError: the server does not answer.
    """
    connection = place.connection(wait_s)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, place.headers())
        response = connection.getresponse()
        text = response.read(_SMALL_ANSWER)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, None
