"""A pytest plugin: one part of many of the tests, and results line by line as JSON.

Processes that run ``--shard 1/8`` to ``--shard 8/8`` share the tests among them. With
``--results FILE`` each test's start and outcome is written at once, so that whoever started the
process knows which test ended it. A CUDA error that spoils the context ends the process.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

SPOILED = 17
"""The exit code after such an error: what is left wants a new process."""

_SPOILING = (
    "device-side assert",
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "illegal instruction",
)


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("shards")
    group.addoption("--shard", metavar="I/N", help="run the I-th of N parts of the tests")
    group.addoption("--every", type=int, default=1, metavar="N", help="run every N-th test")
    group.addoption("--results", metavar="FILE", help="append results to this file, as JSON lines")
    group.addoption("--skip-from", metavar="FILE", help="leave out the tests named in this file")
    group.addoption("--only-from", metavar="FILE", help="run only the tests named in this file")


def parse_shard(text: str) -> tuple[int, int]:
    """``"3/8"`` as the pair (2, 8): which, counted from 0, of how many.

    Raises:
        pytest.UsageError: it is not of that form.
    """
    first, slash, second = text.partition("/")
    if slash and first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second):
        return int(first) - 1, int(second)
    raise pytest.UsageError(f"--shard {text!r}: expected I/N, for example 3/8")


def pytest_configure(config: Any) -> None:
    path = config.getoption("--results", None)
    if path:
        config.pluginmanager.register(Results(Path(path)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    kept = items[:: config.getoption("--every", 1)]
    only, skip = config.getoption("--only-from", None), config.getoption("--skip-from", None)
    if only:
        wanted = set(Path(only).read_text().splitlines())
        kept = [item for item in kept if item.nodeid in wanted]
    shard = config.getoption("--shard", None)
    if shard:
        which, count = parse_shard(shard)
        kept = kept[which::count]
    if skip:
        done = set(Path(skip).read_text().splitlines())
        kept = [item for item in kept if item.nodeid not in done]
    chosen = {item.nodeid for item in kept}
    gone = [item for item in items if item.nodeid not in chosen]
    if gone:
        config.hook.pytest_deselected(items=gone)
    items[:] = kept


class Results:
    """Writes what happens to each test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spoiled = ""

    def _write(self, **line: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, started=time.time())

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        line = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 3)}
        if outcome in ("failed", "error"):
            line |= describe(report)
            if any(text in line["message"] for text in _SPOILING):
                self._spoiled = line["message"]
        elif outcome == "skipped" and isinstance(report.longrepr, tuple):
            line["message"] = str(report.longrepr[2])
        self._write(**line)

    def pytest_runtest_logfinish(self) -> None:
        if self._spoiled:
            pytest.exit(f"the GPU's context is spoiled: {self._spoiled[:200]}", SPOILED)


def describe(report: Any) -> dict[str, str]:
    """A failure's message, and the innermost statement of the test's own file that led to it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", [])
    paths = [getattr(getattr(entry, "reprfileloc", None), "path", "") for entry in entries]
    statement = ""
    for entry, path in zip(entries, paths, strict=True):
        lines = [text[1:] for text in getattr(entry, "lines", []) if text.startswith(">")]
        if lines and path == paths[0]:
            statement = lines[-1].strip()
    return {"message": message[:4000], "statement": statement}
