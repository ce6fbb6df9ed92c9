"""Triton's own language tests under replay, with the patched wheel and the published one.

    python tests/replay/upstream.py FOLDER --capability 6.1 \\
        --triton patched=FOLDER --triton stock=FOLDER --jobs 16 --output result.json

FOLDER holds Triton's tests (``python/test/unit/language`` beside ``python/test/conftest.py``), of
the version that is installed; they are not part of this repository. ``--triton NAME=PATH`` puts a
folder that has a ``triton`` in it in front of PYTHONPATH, or nothing if PATH is empty. Every
process runs a part of the tests; one that dies or hangs is started again behind the test that did
it. Failures are sorted by what they are, and those that are nobody's excuse are run again without
replay, to see whether they fail there as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "python" / "src"))

from legacy_cuda.errors import UserError  # noqa: E402  # the path has to be set first
from legacy_cuda.replay import command, report  # noqa: E402
from legacy_cuda.replay.inside.settings import Settings  # noqa: E402

TESTS = (
    "test_core.py",
    "test_conversions.py",
    "test_standard.py",
    "test_random.py",
    "test_block_pointer.py",
    "test_annotations.py",
    "test_libdevice.py",
    "test_tuple.py",
    "test_compile_errors.py",
)

PTX_TEXT = "asserts on PTX text"
OTHER_TEXT = "asserts on other generated text"
SHARED = "needs more shared memory than a block has"
REFUSED = "does not assemble for the target"
NOT_COMPILED = "does not compile"
NOT_REFUSED = "asserts a refusal that the patches lift"
DIED = "ended or hung its process"
WITHOUT = "fails without replay as well"
REST = "other"


def classify(result: dict[str, Any]) -> str:
    """What kind of failure a result is, by the statement that failed and its message."""
    message, statement = result.get("message", ""), result.get("statement", "")
    if result["outcome"] in ("died", "hung"):
        return DIED
    if "DID NOT RAISE" in message:
        return NOT_REFUSED
    if "OutOfResources" in message or "OutOfSharedMemory" in message:
        if "shared memory" in message:
            return SHARED
    elif "PTXASError" in message or "`ptxas`" in message:
        return REFUSED
    elif "CompilationError" in message or "PassManager::run failed" in message:
        return NOT_COMPILED
    elif statement.startswith("assert") or "re." in statement:
        if re.search(r"\bptx\b", statement):
            return PTX_TEXT
        if re.search(r"\b(asm|sass|ttir|ttgir|llir)\b", statement):
            return OTHER_TEXT
    return REST


@dataclass
class Shard:
    """One part of the tests, and the process that runs it now."""

    number: int
    results: Path
    done: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    names: set[str] = field(default_factory=set)


class Runner:
    """Runs all parts of the tests, in one configuration."""

    def __init__(self, options: argparse.Namespace, variables: dict[str, str], folder: Path):
        self.options, self.variables, self.folder = options, variables, folder
        self.device = "cpu" if options.compile_only else "cuda"

    def run(self, jobs: int, only: set[str] | None = None) -> dict[str, dict[str, Any]]:
        """Returns each test's result by its name."""
        self.folder.mkdir(parents=True)
        shards = [
            Shard(number, self.folder / f"{number}.jsonl", self.folder / f"{number}.done")
            for number in range(1, jobs + 1)
        ]
        chosen = self.folder / "only"
        if only is not None:
            chosen.write_text("\n".join(sorted(only)))
        try:
            for shard in shards:
                self._start(shard, jobs, chosen if only is not None else None)
            waiting = list(shards)
            while waiting:
                time.sleep(0.5)
                for shard in list(waiting):
                    if self._settled(shard, jobs, chosen if only is not None else None):
                        waiting.remove(shard)
        finally:
            for shard in shards:
                if shard.process is not None and shard.process.poll() is None:
                    _end(shard.process)
        found: dict[str, dict[str, Any]] = {}
        for shard in shards:
            found |= outcomes(shard.results)[0]
        return found

    def _start(self, shard: Shard, jobs: int, only: Path | None) -> None:
        shard.starts += 1
        options = self.options
        words = [
            options.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "shards",
            "-c", os.devnull, "--rootdir", str(options.folder), "--confcutdir",
            str(options.folder), "--device", self.device, "--every", str(options.every),
            "--shard", f"{shard.number}/{jobs}", "--results", str(shard.results),
        ]  # fmt: skip
        if only is not None:
            words += ["--only-from", str(only)]
        if shard.done.exists():
            words += ["--skip-from", str(shard.done)]
        if options.select:
            words += ["-k", options.select]
        words += [str(path) for path in options.paths]
        with (self.folder / f"{shard.number}.log").open("ab") as log:
            shard.process = subprocess.Popen(
                words, env=self.variables, stdout=log, stderr=log, start_new_session=True
            )

    def _settled(self, shard: Shard, jobs: int, only: Path | None) -> bool:
        """Whether a part is finished; starts it again where it was cut short."""
        process = shard.process
        assert process is not None
        code = process.poll()
        found, open_test, since = outcomes(shard.results)
        if code is None:
            if not open_test or time.time() - since < self.options.patience:
                return False
            _end(process)
            self._append(shard, open_test, "hung", f"no answer in {self.options.patience} s")
        elif code in (0, 1, 5):  # all done, passed or not; 5: no tests for this part
            return True
        elif open_test:
            self._append(shard, open_test, "died", f"the process ended with {code}")
        elif code in (2, 3, 4) or shard.starts > 200:
            log = (self.folder / f"{shard.number}.log").read_text(errors="replace")
            raise SystemExit(f"pytest ended with {code}:\n{log[-3000:]}")
        found = outcomes(shard.results)[0]
        shard.done.write_text("\n".join(found))
        self._start(shard, jobs, only)
        return False

    @staticmethod
    def _append(shard: Shard, test: str, outcome: str, message: str) -> None:
        with shard.results.open("a", encoding="utf-8") as file:
            line = {"test": test, "outcome": outcome, "message": message, "statement": ""}
            file.write(json.dumps(line) + "\n")


def outcomes(path: Path) -> tuple[dict[str, dict[str, Any]], str, float]:
    """Results by test; the test that was begun and not ended, if any, and when it was."""
    found: dict[str, dict[str, Any]] = {}
    begun, since = "", 0.0
    if not path.exists():
        return found, begun, since
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut short by the end of its process
            continue
        if "started" in line:
            begun, since = line["test"], line["started"]
            continue
        earlier = found.get(line["test"])
        if earlier is None or earlier["outcome"] == "passed":
            found[line["test"]] = line
        if line["test"] == begun:
            begun = ""
    return found, begun, since


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours with those it started; it leads a session of its own."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tally(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Numbers and, for each kind of failure, the tests' names."""
    counts = Counter(result["outcome"] for result in found.values())
    bad = {name: result for name, result in found.items()
           if result["outcome"] not in ("passed", "skipped")}  # fmt: skip
    kinds: dict[str, list[dict[str, str]]] = {}
    for name, result in sorted(bad.items()):
        kind = result.get("kind") or classify(result)
        kinds.setdefault(kind, []).append(
            {
                "test": name,
                "statement": result.get("statement", ""),
                "message": result.get("message", "")[:500],
            }
        )
    return {
        "collected": len(found),
        "executed": len(found) - counts["skipped"],
        "passed": counts["passed"],
        "failed": len(bad),
        "skipped": counts["skipped"],
        "by_kind": {kind: len(tests) for kind, tests in sorted(kinds.items())},
        "failures": kinds,
    }


def contrast(found: dict[str, dict[str, Any]], options: argparse.Namespace, work: Path) -> None:
    """Run the failures that nothing explains without replay, on the GPU as it is, and mark those
    that fail there too."""
    names = {
        name
        for name, result in found.items()
        if result["outcome"] not in ("passed", "skipped")
        and classify(result) in (REST, DIED, NOT_COMPILED)
    }
    if not names or options.compile_only:
        return
    runner = Runner(options, {**os.environ, "PYTHONPATH": python_path("")}, work)
    plain = runner.run(min(options.jobs, len(names)), names)
    for name, result in plain.items():
        if result["outcome"] not in ("passed", "skipped"):
            found[name]["kind"] = WITHOUT


def python_path(first: str) -> str:
    """PYTHONPATH with a Triton in front; this folder is in it for the plugin."""
    return os.pathsep.join(
        part for part in (first, str(HERE), os.environ.get("PYTHONPATH", "")) if part
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="Triton's tests: conftest.py and language/")
    parser.add_argument("--capability", required=True)
    parser.add_argument("--triton", action="append", metavar="NAME=PATH", default=[])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, help="run every N-th test")
    parser.add_argument("--tests", default=",".join(TESTS), help="files, by commas")
    parser.add_argument("-k", dest="select", default="", help="as for pytest")
    parser.add_argument("--patience", type=float, default=180, help="seconds for one test")
    parser.add_argument("--compile-only", action="store_true", help="no GPU: most tests fail")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.folder = options.folder.resolve()
    options.paths = [options.folder / "language" / name for name in options.tests.split(",")]
    for path in options.paths:
        if not path.is_file():
            parser.error(f"there is no {path}")
    options.triton = options.triton or ["installed="]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if the first Triton's failures all have an excuse."""
    options = parse(arguments)
    document: dict[str, Any] = {"capability": options.capability, "every": options.every}
    excused = {PTX_TEXT, SHARED, WITHOUT}
    code = 0
    with tempfile.TemporaryDirectory(prefix="legacy-cuda-upstream-") as text:
        work = Path(text)
        for number, item in enumerate(options.triton):
            name, _, path = item.partition("=")
            record = work / f"{name}.record"
            record.touch()
            try:
                settings = command.prepare(options.capability, options.compile_only, True, record)
            except UserError as error:
                print(
                    f"error: {error.what}\n  {error.why}\n  -> {error.next_step}", file=sys.stderr
                )
                return error.exit_code
            started = time.time()
            found = replayed(options, settings, path, work / name)
            if number == 0:
                contrast(found, options, work / f"{name}-plain")
            row = tally(found)
            kernels = report.gather(settings, [], None)
            row |= {
                "seconds": round(time.time() - started),
                "words": settings.words,
                "kernels": len(kernels["kernels"]),
                "versions": sorted(
                    {f"{item['package']} {item['version']}" for item in kernels["programs"]}
                ),
            }
            document[name] = row
            report.write(document, options.output)
            print(f"{name}: {settings.words}: {row['passed']} of {row['executed']} executed cases "
                  f"pass, {row['skipped']} skipped, {row['seconds']} s; {row['by_kind']}",
                  flush=True)  # fmt: skip
            if number == 0 and set(row["by_kind"]) - excused:
                code = 1
    return code


def replayed(
    options: argparse.Namespace, settings: Settings, path: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Run the tests with one Triton under replay."""
    before = {**os.environ, "PYTHONPATH": python_path(path)}
    return Runner(options, {**before, **command.environment(settings, before)}, folder).run(
        options.jobs
    )


if __name__ == "__main__":
    sys.exit(main())
