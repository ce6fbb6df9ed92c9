"""Workers started, listened to, and ended where they hang: one process a GPU, one GPU at a time.

One at a time, because the GPUs share the link to the machine, its power and its air.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.capability import Capability
from legacy_cuda.verify import worker

if TYPE_CHECKING:
    from legacy_cuda.verify.code import Code

_ENDING = 5.0  # seconds that a killed process has to be gone; one in the driver may stay
_SURVEY = 30.0
# -I: neither the environment nor the working folder decides what is imported
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from legacy_cuda.verify import worker; sys.exit(worker.main())"
)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How much to do. ``limit`` is for each step and ``load`` for arithmetic, both in seconds;
    ``memory_limit`` in bytes, 0 for all that is free."""

    limit: float = 120.0
    load: float = 5.0
    memory_limit: int = 0
    steps: tuple[str, ...] = tuple(worker.STEPS)


@dataclass(frozen=True)
class Survey:
    """What the driver shows. ``problem`` says why there is nothing; ``cuda`` is its version."""

    cuda: tuple[int, int]
    devices: list[dict[str, Any]]
    problem: str = ""


class _HungError(Exception):
    """No answer came in time; whether the process could be ended."""

    def __init__(self, ended: bool) -> None:
        self.ended = ended


class _EndedError(Exception):
    """The process ended by itself; how."""


def survey() -> Survey:
    """Which GPUs there are, in the order of their PCI addresses."""
    try:
        with _worker({"do": "survey"}) as lines:
            for line in lines(_SURVEY):
                if "missing" in line:
                    return Survey((0, 0), [], f"no driver library: {line['missing']}")
                if "refused" in line:
                    return Survey((0, 0), [], f"the driver does not work: {line['refused']}")
                major, _, minor = line["cuda"].partition(".")
                return Survey((int(major), int(minor)), line["devices"])
    except _HungError:
        return Survey((0, 0), [], f"the driver did not answer within {_SURVEY:.0f} seconds")
    except _EndedError as error:
        return Survey((0, 0), [], str(error))
    return Survey((0, 0), [], "the process that asks the driver said nothing")


def gpu(
    device: dict[str, Any], code: Code, capability: Capability, options: Options, tell: Tell
) -> list[dict[str, Any]]:
    """Every step on one GPU: name, outcome, why, facts.

    Outcomes are ``passed``, ``failed`` (a wrong result), ``error`` (the driver gave up), ``hung``
    and ``not run``.
    """
    request = {"do": "gpu", "steps": options.steps, **_subject(device, code, capability, options)}
    return _steps(request, ["start", *options.steps], options, tell)


def peers(
    devices: list[dict[str, Any]],
    codes: list[tuple[Code, Capability]],
    options: Options,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Copies between all pairs of GPUs, as steps called ``0 to 1``."""
    names = [
        f"{one['index']} to {other['index']}"
        for one in devices
        for other in devices
        if one is not other
    ]
    parts = [
        _subject(device, code, capability, options)
        for device, (code, capability) in zip(devices, codes, strict=True)
    ]
    return _steps({"do": "peers", "gpus": parts}, ["start", *names], options, tell)


def _subject(
    device: dict[str, Any], code: Code, capability: Capability, options: Options
) -> dict[str, Any]:
    return {
        "device": device["index"],
        "image": base64.b64encode(code.image).decode(),
        "capability": str(capability),
        "load": options.load,
        "memory_limit": options.memory_limit,
    }


def _steps(
    request: dict[str, Any], names: list[str], options: Options, tell: Tell
) -> list[dict[str, Any]]:
    done: dict[str, dict[str, Any]] = {}
    current = names[0]
    try:
        with _worker(request) as lines:
            for line in lines(options.limit + options.load):
                if "begin" in line:
                    current = line["begin"]
                    tell(current)
                else:
                    keys = ("outcome", "why", "facts")
                    done[line["end"]] = {key: line[key] for key in keys if key in line}
    except _HungError as hung:
        seconds = options.limit + options.load
        why = f"no answer within {seconds:.0f} seconds"
        why += "" if hung.ended else "; its process cannot be ended, the driver holds it"
        done[current] = {"outcome": "hung", "why": why, "facts": {}}
    except _EndedError as error:
        # once every step has answered, how the process ends is nobody's matter
        done.setdefault(current, {"outcome": "error", "why": str(error), "facts": {}})
    missing = {"outcome": "not run", "why": f"the GPU was lost in: {current}", "facts": {}}
    return [{"name": name, **done.get(name, missing)} for name in names]


@contextmanager
def _worker(
    request: dict[str, Any],
) -> Iterator[Callable[[float], Iterable[dict[str, Any]]]]:
    """A worker at work; the function given gives its lines, each within so many seconds."""
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, str(Path(worker.__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
        )
        assert process.stdin is not None and process.stdout is not None
        output = process.stdout
        arrived: queue.Queue[bytes] = queue.Queue()

        def listen() -> None:
            for row in output:
                arrived.put(row)
            arrived.put(b"")

        def lines(limit: float) -> Iterator[dict[str, Any]]:
            while True:
                try:
                    row = arrived.get(timeout=limit)
                except queue.Empty:
                    raise _HungError(_end(process)) from None
                if not row:
                    if _end(process) and process.returncode:
                        errors.seek(0)
                        said = errors.read().decode(errors="replace").strip().splitlines()
                        why = f"its process ended with code {process.returncode}"
                        raise _EndedError(": ".join([why, *said[-1:]]))
                    return
                try:
                    line = json.loads(row)
                except ValueError:
                    continue  # a library's own line: the driver's, say
                if isinstance(line, dict):
                    yield line

        threading.Thread(target=listen, daemon=True).start()
        try:
            with suppress(BrokenPipeError), process.stdin as stream:
                stream.write(json.dumps(request).encode() + b"\n")
            yield lines
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process is gone, killed if need be."""
    if process.poll() is None:
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            process.kill()
    try:
        process.wait(timeout=_ENDING)
    except subprocess.TimeoutExpired:
        return False
    return True
