"""Running an engine in the foreground: started, waited for, started again after a crash.

The edge of the engines: subprocesses, the clock, HTTP on loopback.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from urllib.parse import urlsplit

from legacy_cuda.errors import SurroundingsError

_POLL = 0.2  # seconds between looks at a starting engine
_STOP = 30.0  # seconds that it may take to end
_WINDOW = 600.0  # crashes within so many seconds count together


@dataclass(frozen=True)
class Engine:
    """What is run: ``health`` is an address that answers 200 once the model is loaded."""

    command: Sequence[str]
    environment: Mapping[str, str]
    health: str
    restarts: int = 5  # crashes within ten minutes, after which it is given up


def answers(address: str, timeout: float = 2.0) -> bool:
    """Whether an address answers 200."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_taken(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def serve(engine: Engine, say: Callable[[str], None]) -> int:
    """Run it until it is told to end; returns the exit code: 0 after a signal to end.

    ``say`` gets a line when it is ready, and when it is started again.

    Raises:
        SurroundingsError: it cannot be started, or crashes again and again.
    """
    stopping: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)
        if child:
            child[0].terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    crashes: list[float] = []
    try:
        while not stopping:
            child[:] = [_start(engine)]
            if stopping:  # a signal came between the two
                child[0].terminate()
            code = _watch(child[0], engine.health, say, stopping)
            if stopping:
                break
            now = time.monotonic()
            crashes = [at for at in crashes if now - at < _WINDOW] + [now]
            if len(crashes) > engine.restarts:
                raise SurroundingsError(
                    f"{engine.command[0]} ended {len(crashes)} times within ten minutes",
                    f"the last time with {_how(code)}; its own messages are above",
                )
            wait = min(30.0, 0.5 * 2 ** (len(crashes) - 1))
            say(f"ended with {_how(code)}; started again in {wait:g} s")
            _sleep(wait, stopping)
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child:
            _end(child[0])


def _start(engine: Engine) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            engine.command, env={**os.environ, **engine.environment}, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise SurroundingsError(
            f"{engine.command[0]} could not be started",
            str(error),
            "legacy-cuda up GPU --engine llama-cpp installs it; --program names another one",
        ) from error


def _watch(
    child: subprocess.Popen[bytes], health: str, say: Callable[[str], None], stopping: list[int]
) -> int:
    """Say once that it is ready, and wait until it ends."""
    ready = False
    while True:
        try:
            return child.wait(timeout=1.0 if ready else _POLL)
        except subprocess.TimeoutExpired:
            if stopping:
                _end(child)
            elif not ready and answers(health):
                ready = True
                say(f"ready, process {child.pid}")


def _sleep(seconds: float, stopping: list[int]) -> None:
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=_STOP)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _how(code: int) -> str:
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
