"""The HTTP server: hands out the page that is there. It asks nobody for anything."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from legacy_cuda.errors import SurroundingsError

#: Prometheus's text format. Not prometheus_client's CONTENT_TYPE_LATEST, whose version older
#: Prometheus servers do not know; the page has no name that the older version cannot write.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_IDLE = 15.0  # seconds after which a connection that says nothing is closed
_CONNECTIONS = 64  # at a time; one more is closed at once


class Server(ThreadingHTTPServer):
    """Serves what ``page`` returns at /metrics, and what ``overview`` returns at /.

    Raises:
        SurroundingsError: the address cannot be used.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, page: Callable[[], bytes], overview: Callable[[], bytes]
    ) -> None:
        self.page = page
        self.overview = overview
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self.address_family = family
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise SurroundingsError(
                f"nothing can be served at {host}:{port}",
                str(error),
                "choose another address with --listen; 127.0.0.1:0 takes any free port",
            ) from error

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self.server_address[:2]
        text = host.decode() if isinstance(host, bytes | bytearray) else str(host)
        return f"http://{f'[{text}]' if ':' in text else text}:{port}/metrics"

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of a name for the address, which may ask a DNS server."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "legacy-cuda"
    sys_version = ""
    timeout = _IDLE
    # Head and body leave together: else the kernel keeps the body back until the client has
    # acknowledged the head, for 40 ms.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send(200, CONTENT_TYPE, self.server.page())
        elif path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.overview())
        else:
            self._send(404, "text/plain; charset=utf-8", b"not found: try /metrics\n")

    do_HEAD = do_GET

    def _send(self, code: int, kind: str, body: bytes) -> None:
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            body = gzip.compress(body, compresslevel=1)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Scrapes are not worth a line."""
