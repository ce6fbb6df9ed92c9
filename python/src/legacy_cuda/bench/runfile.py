"""The file of a run: written whole after every round, read again to continue or compare.

Its form is ``catalog/schema/bench-run.schema.json``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from legacy_cuda.bench.answer import Answer
from legacy_cuda.bench.figures import Point, Repeat
from legacy_cuda.errors import SurroundingsError, UserError

SCHEMA = "legacy-cuda/bench-run/1"


@dataclass
class Run:
    """A run as far as it is. ``settings`` decide what is measured: a run is only continued by
    equal ones, on the same ``server`` and ``machine``. ``skipped``: points and why."""

    tool: str
    created: str
    settings: dict[str, Any]
    server: dict[str, Any]
    machine: dict[str, Any]
    prompts: dict[str, Any]
    sessions: list[dict[str, str]] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)
    skipped: dict[Point, str] = field(default_factory=dict)

    @property
    def points(self) -> list[Point]:
        """What is to be measured, without what was skipped."""
        every = planned(self.settings)
        return [point for point in every if point not in self.skipped]

    def missing(self) -> list[tuple[Point, int]]:
        """Rounds that are not measured yet: the first of every point, then the second, ..."""
        done = {(repeat.point, repeat.number) for repeat in self.repeats if not repeat.unfinished}
        return [
            (point, number)
            for number in range(self.settings["repeat"])
            for point in self.points
            if (point, number) not in done
        ]


def planned(settings: dict[str, Any]) -> list[Point]:
    """Every point of a sweep."""
    return [
        Point(prompt, settings["generate"], concurrency)
        for prompt in settings["prompt"]
        for concurrency in settings["concurrency"]
    ]


FREE = ("repeat", "request_timeout_s", "stall_timeout_s", "note")
"""Settings that may change when a run is continued."""


def differences(
    run: Run, settings: dict[str, Any], server: dict[str, Any], machine: dict[str, Any]
) -> list[str]:
    """What keeps a run from being continued with these: empty if nothing does."""
    pairs = [
        (name, run.settings.get(name), value)
        for name, value in settings.items()
        if name not in FREE
    ]
    pairs += [
        (f"the server's {name}", run.server.get(name), value) for name, value in server.items()
    ]
    pairs += [
        (f"the machine's {name}", run.machine.get(name), machine.get(name))
        for name in ("of", "cpu", "gpus", "driver")
    ]
    return [f"{name}: {old!r} before, {new!r} now" for name, old, new in pairs if old != new]


def document(run: Run) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "schema": SCHEMA,
        "tool": run.tool,
        "created": run.created,
        "complete": not run.missing(),
        "settings": run.settings,
        "server": run.server,
        "machine": run.machine,
        "prompts": run.prompts,
        "sessions": run.sessions,
        "skipped": [{**point._asdict(), "why": why} for point, why in run.skipped.items()],
        "rounds": [
            {
                **repeat.point._asdict(),
                "number": repeat.number,
                "started": repeat.started,
                "seconds": repeat.seconds,
                "client_cpu": repeat.client_cpu,
                "unfinished": repeat.unfinished,
                "requests": [answer.record() for answer in repeat.answers],
            }
            for repeat in run.repeats
        ],
    }


def read(path: Path) -> Run:
    """A run from its file.

    Raises:
        UserError: there is no such file, or it holds no run.
        SurroundingsError: it cannot be read.
    """
    data = load(path)
    if data.get("schema") != SCHEMA:
        raise _not_a_run(path, f"its schema is {data.get('schema')!r}, not {SCHEMA!r}")
    try:
        return Run(
            str(data["tool"]),
            str(data["created"]),
            _settings(data["settings"]),
            _with(data["server"], "model engine version context slots"),
            _with(data["machine"], "of cpu gpus gpus_unknown driver"),
            _with(data["prompts"], "text fixed per_word counted_by words checked"),
            [dict(item) for item in data["sessions"]],
            [_repeat(item) for item in data["rounds"]],
            {_point(item): str(item["why"]) for item in data["skipped"]},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_run(path, f"{type(error).__name__}: {error}") from error


def load(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: there is no such file, or it holds none.
        SurroundingsError: it cannot be read.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be read", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _not_a_run(path, f"it is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise _not_a_run(path, "it is no JSON object")
    return data


def _not_a_run(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is no run of legacy-cuda bench", why, "name the file that bench run wrote"
    )


def _with(data: dict[str, Any], names: str) -> dict[str, Any]:
    """A part of the document that has at least these."""
    if missing := set(names.split()) - set(data):
        raise KeyError(sorted(missing)[0])
    return dict(data)


def _settings(data: dict[str, Any]) -> dict[str, Any]:
    _with(data, "url model api requests warmup same_prompt ignore_eos extra note")
    for name in ("generate", "repeat"):
        if not isinstance(data[name], int):
            raise ValueError(f"{name} is no number")
    for name in ("prompt", "concurrency"):
        if not all(isinstance(value, int) for value in data[name]):
            raise ValueError(f"{name} is no list of numbers")
    return dict(data)


def _point(data: dict[str, Any]) -> Point:
    return Point(int(data["prompt"]), int(data["generate"]), int(data["concurrency"]))


def _repeat(data: dict[str, Any]) -> Repeat:
    return Repeat(
        _point(data),
        int(data["number"]),
        str(data["started"]),
        float(data["seconds"]),
        float(data["client_cpu"]),
        tuple(_answer(item) for item in data["requests"]),
        str(data["unfinished"]),
    )


def _answer(data: dict[str, Any]) -> Answer:
    found = Answer(**data)
    times = [found.ttft_ms, found.latency_ms, *found.gaps_ms]
    counts = [found.prompt_tokens, found.completion_tokens, found.cached_tokens]
    if found.ok and not all(isinstance(value, (int, float)) for value in times):
        raise ValueError("a request without its times")
    if not all(value is None or isinstance(value, int) for value in counts):
        raise ValueError("a count that is no number")
    return found


def write(path: Path, run: Run) -> None:
    """Write a run, whole or not at all.

    Raises:
        SurroundingsError: the disk failed.
    """
    put(path, json.dumps(document(run), separators=(",", ":")) + "\n")


def put(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        SurroundingsError: the disk failed.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise SurroundingsError(
            f"{path} cannot be written", str(error), "free space, or choose another --output"
        ) from error


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on a run file's name.

    Raises:
        UserError: its folder cannot be written to.
        SurroundingsError: another run holds the lock.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written", str(error), "choose another --output"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SurroundingsError(
                f"{path} is being written by another legacy-cuda",
                f"it holds {lock}",
                "wait for it, or choose another --output",
            ) from error
        yield
    finally:
        os.close(descriptor)
