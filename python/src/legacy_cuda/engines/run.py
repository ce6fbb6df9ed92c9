"""Running an engine in the foreground: started, waited for, started again after a crash.

The edge of the engines: subprocesses, the clock, HTTP on loopback, the driver's word.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from legacy_cuda import nvml, sizes
from legacy_cuda.doctor import loopback
from legacy_cuda.engines import ollama
from legacy_cuda.engines.proof import Proof, prove
from legacy_cuda.errors import SurroundingsError

_POLL = 0.2  # seconds between looks at a starting engine
_STOP = 30.0  # seconds that it may take to end
_WINDOW = 600.0  # crashes within so many seconds count together


_LOAD = 600.0  # seconds that loading a model may take


@dataclass(frozen=True)
class Engine:
    """What is run: ``health`` is an address that answers 200 once the model is loaded.

    ``planned`` are the bytes that it takes on each GPU, and nothing where it computes on the CPU.
    ``prove`` says whether it uses the GPUs, once it is ready; None: the driver is asked what it
    has of them (:func:`legacy_cuda.engines.proof.prove`). ``on_gpus_only``: it has no CPU back end.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    health: str
    planned: Sequence[int] = field(default=())
    prove: Callable[[], Proof] | None = None
    restarts: int = 5  # crashes within ten minutes, after which it is given up
    on_gpus_only: bool = False


def answers(address: str, timeout: float = 2.0) -> bool:
    """Whether an address answers 200."""
    try:
        fetched(address, timeout=timeout)
    except OSError:
        return False
    return True


def fetched(address: str, body: Any = None, timeout: float = 10.0) -> bytes:
    """What an address answers within ``timeout`` seconds, its first MiB; with a body (of JSON) it
    is a POST.

    Raises:
        OSError: nothing answers in time, or not with 200.
    """
    end = time.monotonic() + timeout
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        if body is None:
            connection.request("GET", parts.path)
        else:
            head = {"Content-Type": "application/json"}
            connection.request("POST", parts.path, json.dumps(body), head)
        reply = connection.getresponse()
        text = loopback.body(reply, end)
        if reply.status != 200:
            raise OSError(f"{parts.path} answers {reply.status}: {text[:200].decode('latin-1')}")
        return text
    except http.client.HTTPException as error:
        raise OSError(f"{parts.path}: {error}") from error
    finally:
        connection.close()


def ollama_proof(url: str, model: str) -> Proof:
    """Load a model of an Ollama that answers, and ask where it lies."""
    try:
        fetched(url + ollama.LOAD, {"model": model}, timeout=_LOAD)
        rows = ollama.loaded(json.loads(fetched(url + ollama.LOADED)))
    except (OSError, ValueError) as error:
        return Proof(None, f"{model} was not loaded: {error}")
    wanted = model if ":" in model else f"{model}:latest"
    found = next((row for row in rows if row.name == wanted), None)
    if found is None:
        return Proof(None, f"{model} is not among the models that are loaded")
    text = f"{sizes.mib(found.on_gpus)} of {sizes.mib(found.size)} MiB on the GPUs"
    if not found.on_gpus:
        return Proof(False, f"{text}: it uses the CPU")
    return Proof(True, text)


def family(process: int) -> set[int]:
    """A process and all that it started, by /proc."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = place.read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            parents[int(place.parent.name)] = int(after_name.split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


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
        SurroundingsError: it cannot be started, crashes again and again, computes on the CPU
            although it was planned for GPUs, or there is no GPU and it cannot do without.
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
            found = nvml.snapshot() if engine.planned and engine.prove is None else None
            if engine.on_gpus_only and found and not found.devices and not crashes:
                raise SurroundingsError(
                    f"{engine.command[0]} has no CPU back end, and the driver shows no GPU",
                    str(found.error or "there is none"),
                    "legacy-cuda doctor says what is wrong with the driver",
                )
            child[:] = [_start(engine)]
            if stopping:  # a signal came between the two
                child[0].terminate()
            code = _watch(child[0], engine, found, say, stopping)
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
    child: subprocess.Popen[bytes],
    engine: Engine,
    before: nvml.Snapshot | None,
    say: Callable[[str], None],
    stopping: list[int],
) -> int:
    """Say once that it is ready, and wait until it ends."""
    ready = False
    while True:
        try:
            return child.wait(timeout=1.0 if ready else _POLL)
        except subprocess.TimeoutExpired:
            if stopping:
                _end(child)
            elif not ready and answers(engine.health):
                ready = True
                say(f"ready, process {child.pid}{_proven(child, engine, before)}")


def _proven(child: subprocess.Popen[bytes], engine: Engine, before: nvml.Snapshot | None) -> str:
    """What was seen of its use of GPUs, to be said behind that it is ready.

    Raises:
        SurroundingsError: it uses none.
    """
    if engine.prove is not None:
        found = engine.prove()
    elif before is not None:
        found = prove(before, nvml.snapshot(), family(child.pid), engine.planned)
    else:
        return ""
    if found.used is False:
        raise SurroundingsError(
            f"{engine.command[0]} does not use the GPUs that were planned",
            found.text,
            "legacy-cuda doctor says what is wrong with the driver; --layers 0 serves from the CPU",
        )
    return (
        f": {found.text}"
        if found.used
        else f"; whether it uses the GPUs is not known: {found.text}"
    )


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
