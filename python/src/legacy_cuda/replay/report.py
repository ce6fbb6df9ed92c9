"""The records of all processes of a replay as one document."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from legacy_cuda import __version__
from legacy_cuda.capability import Capability
from legacy_cuda.errors import UserError
from legacy_cuda.replay.inside.settings import Settings, dotted
from legacy_cuda.replay.native import answers, verdict


def gather(settings: Settings, command: list[str], exit_code: int | None) -> dict[str, Any]:
    """What the record says: one entry a kernel, a refusal and a program.

    ``registers`` are a thread's, ``shared``, ``static_shared``, ``stack`` and ``spill_*`` are in
    bytes, all of them the old target's ptxas's. ``refused`` counts what a program may well have
    expected, a configuration that its autotuner passes over, say. ``host`` is what programs in C++
    asked of the GPU, and whether the code that ran was the old card's.
    """
    lines = []
    path = Path(settings.record)
    if settings.record and path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [line for text in file if (line := _read(text))]
    kernels: dict[tuple[str, str], dict[str, Any]] = {}
    refused: dict[tuple[str, str], int] = {}
    programs: dict[tuple[str, str, str, bool], set[int]] = {}
    asked: list[dict[str, Any]] = []
    launches = 0
    for line in lines:
        kind = line.pop("kind", "")
        pid = line.pop("pid", 0)
        if kind == "kernel":
            kernels[line["name"], line["ptx"]] = line
        elif kind == "refused":
            key = line["name"], line["error"]
            refused[key] = refused.get(key, 0) + int(line.get("times", 1))
        elif kind == "process":
            package = line["package"], line["version"], line["program"], line["patched"]
            programs.setdefault(package, set()).add(pid)
        elif kind == "launches":
            launches += line["count"]
        elif kind in ("host", "answered", "unanswered"):
            asked.append({"kind": kind, "pid": pid, **line})
    pids_of_python = {pid for pids in programs.values() for pid in pids}
    return {
        "legacy_cuda": __version__,
        "capability": dotted(settings.capability),
        "words": settings.words,
        "gpu": {"name": settings.gpu_name, "capability": dotted(settings.gpu)}
        if settings.gpu
        else None,
        "compile_only": settings.compile_only,
        "launches_left_out": launches if settings.compile_only else None,
        "command": command,
        "exit_code": exit_code,
        "programs": [
            {
                "package": package,
                "version": version,
                "patched": patched,
                "program": program,
                "processes": len(pids),
            }
            for (package, version, program, patched), pids in sorted(programs.items())
        ],
        "kernels": [kernels[key] for key in sorted(kernels)],
        "refused": [
            {"name": name, "error": error, "times": times}
            for (name, error), times in sorted(refused.items())
        ],
        "host": _host(settings, asked, pids_of_python),
    }


def _host(
    settings: Settings, lines: list[dict[str, Any]], pids_of_python: set[int]
) -> dict[str, Any] | None:
    """What the shim wrote: libraries that asked, questions answered in another way than the GPU
    would have, and programs that used the driver out of its reach. None without a GPU."""
    if settings.gpu is None:
        return None
    libraries: dict[str, dict[str, Any]] = {}
    told: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == "host":
            row = libraries.setdefault(line["library"], {"through": set(), "programs": set()})
            row["through"].add(Path(line["through"]).name)
            row["programs"].add(line["program"])
        elif line["kind"] == "answered":
            number = line["question"]
            row = {"question": answers.question(number), "gpu": line["gpu"], "told": line["told"]}
            told.setdefault(number, {**row, "processes": 0})["processes"] += 1
    unanswered = {
        line["program"]
        for line in lines
        if line["kind"] == "unanswered" and line["pid"] not in pids_of_python
    }
    capability, gpu = Capability(*settings.capability), Capability(*settings.gpu)
    return {
        "libraries": [
            {
                "path": path,
                "through": sorted(row["through"]),
                "programs": sorted(row["programs"]),
                **verdict.judge(Path(path), capability, gpu),
            }
            for path, row in sorted(libraries.items())
        ],
        "answered": [told[number] for number in sorted(told)],
        "unanswered": sorted(unanswered),
    }


def _read(text: str) -> dict[str, Any]:
    """One line of the record; nothing of one that a killed process left half-written."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}


def check_target(path: Path) -> None:
    """Whether a report can be written there, before the work it is about is done.

    Raises:
        UserError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with _beside(path).open("wb"):
            pass
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {path}", str(error), "name another file"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _beside(path).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def write(document: dict[str, Any], path: Path) -> None:
    """Write the document, whole or not at all."""
    put(json.dumps({"schema": "legacy-cuda/replay/1", **document}, indent=1) + "\n", path)


def put(text: str, path: Path) -> None:
    """Write a text, whole or not at all."""
    try:
        _beside(path).write_text(text, encoding="utf-8")
        _beside(path).replace(path)
    finally:
        _beside(path).unlink(missing_ok=True)


def summary(document: dict[str, Any]) -> str:
    """One line for people."""
    kernels, refused, host = document["kernels"], document["refused"], document["host"] or {}
    asked = [
        row
        for row in host.get("libraries", [])
        if row["same_code"] is not None or not document["programs"]
    ]
    if not document["programs"] and not asked:
        if host.get("unanswered"):
            return (
                "nothing was replayed: the GPU was used without a shared CUDA runtime that could "
                f"be answered ({host['unanswered'][0]})"
            )
        return (
            "nothing was replayed: no Python program that imports Triton or PyTorch was started, "
            "or they were started with -S, -E or -I, which ignore PYTHONPATH; and no program that "
            "asks a shared CUDA runtime about its GPU"
        )
    parts = []
    if document["programs"]:
        parts.append(_count(len(kernels), "kernel"))
    spilling = sum(1 for kernel in kernels if kernel.get("spill_stores"))
    if spilling:
        parts.append(f"{spilling} of them spill registers on the old target")
    if asked:
        parts.append(f"the host code of {', '.join(Path(row['path']).name for row in asked)}")
    if refused:
        parts.append(f"{len(refused)} refused for the old target")
    if document["launches_left_out"]:
        parts.append(f"{_count(document['launches_left_out'], 'launch', 'launches')} left out")
    text = f"{document['words']}: {', '.join(parts)}"
    for row in asked:
        if row["same_code"] is False:
            text += f". Not replayed: {Path(row['path']).name} ran {row['device_code']}"
    if host.get("unanswered"):
        text += f". Not answered: {', '.join(host['unanswered'])}"
    return text


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
