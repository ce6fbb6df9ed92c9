#!/usr/bin/env python3
"""``legacy-cuda up`` is killed at random moments; what is on disk must be whole or not there.

    kill_up.py [--kills 30] [--seed 1] [--gpu p40] [--folder DIR] [--json FILE]

First runs that are not disturbed give the duration T. Then so many runs are started and their main
process (no other) gets SIGKILL at moments spread over 0 to T, every other one while a complete
environment is being replaced (``--recreate``, with a T of its own). After each kill:

- the environment is complete (its manifest parses, the fingerprint of its files matches), or not
  there; while one is replaced, it is there, or whole beside its place for the next run to restore,
- no process of the run is left: they are found by a variable in their environment.

At last a run that is not disturbed has to succeed and leave nothing beside the environment. uv's
cache is the one that is set (UV_CACHE_DIR): with a full one the network is not needed.
Exit code 1 if anything of this does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from legacy_cuda import environment
from legacy_cuda.errors import UserError

MARK = "LEGACY_CUDA_KILL_RUN"
GRACE = 5.0  # seconds for the processes of a killed run to end


@dataclass
class Kill:
    """One killed run. Times in seconds; ``state`` what was found in the environment's place."""

    number: int
    mode: str
    moment: float
    ended: bool
    state: str = ""
    survivors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """A whole campaign."""

    fresh_s: float
    replace_s: float
    kills: list[Kill] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.violations and not any(kill.violations for kill in self.kills)


def state_of(target: Path) -> str:
    """``absent``, ``complete``, or what is wrong."""
    if not target.exists():
        return "absent"
    try:
        manifest = environment.read_manifest(target)
    except UserError as error:
        return f"broken: {error.what}: {error.why}"
    if manifest is None:
        return "broken: an empty folder"
    if environment.fingerprint(target) != manifest["fingerprint"]:
        return "broken: the fingerprint differs"
    return "complete"


def processes(mark: str) -> list[str]:
    """The processes that have the mark in their environment, as ``pid command``."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found.append(f"{folder.name} {words.decode('utf-8', 'replace')[:120]}")
    return found


def wait_for_end(mark: str) -> list[str]:
    """Wait until no process with the mark is left; those that stay."""
    limit = time.monotonic() + GRACE
    while (left := processes(mark)) and time.monotonic() < limit:
        time.sleep(0.05)
    return left


def start(command: Sequence[str], variables: Mapping[str, str], mark: str) -> subprocess.Popen[str]:
    """Start a run in the background."""
    return subprocess.Popen(
        command,
        env={**variables, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def undisturbed(command: Sequence[str], variables: Mapping[str, str], target: Path) -> float:
    """One run to its end; its duration in seconds.

    Raises:
        RuntimeError: it failed, or the environment is not complete.
    """
    begin = time.monotonic()
    process = start(command, variables, uuid.uuid4().hex)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(
            f"a run that was not disturbed ended with {process.returncode}: {errors}"
        )
    seconds = time.monotonic() - begin
    if (state := state_of(target)) != "complete":
        raise RuntimeError(f"a run that was not disturbed left: {state}")
    return seconds


def kill_once(
    number: int,
    moment: float,
    command: Sequence[str],
    variables: Mapping[str, str],
    target: Path,
) -> Kill:
    """Start a run, kill its main process at the moment, look at what is left."""
    before = state_of(target)
    mark = uuid.uuid4().hex
    process = start(command, variables, mark)
    try:
        process.wait(moment)
        ended = True
    except subprocess.TimeoutExpired:
        ended = False
    process.kill()
    process.communicate()
    kill = Kill(number, "replace" if before == "complete" else "fresh", moment, ended)
    kill.survivors = wait_for_end(mark)
    if kill.survivors:
        kill.violations.append(f"still running after {GRACE:.0f} s: {'; '.join(kill.survivors)}")
    kill.state = state_of(target)
    if kill.state == "absent" and before == "complete":
        # Killed between the two renames: the next run puts the old one back.
        old = target.with_name(f".{target.name}.legacy-cuda-old")
        if state_of(old) != "complete":
            kill.violations.append("the environment that was there is gone")
    elif kill.state not in ("absent", "complete"):
        kill.violations.append(kill.state)
    return kill


def campaign(
    command: Sequence[str],
    variables: Mapping[str, str],
    target: Path,
    kills: int,
    seed: int,
    tell: bool = False,
) -> Summary:
    """Kill so many runs of ``command``, which makes ``target``.

    Raises:
        RuntimeError: a run that was not disturbed failed at the start.
    """
    again = [*command, "--recreate"]
    first = undisturbed(command, variables, target)
    shutil.rmtree(target)
    # The first run may have filled caches; then the second one's duration counts.
    lengths = (
        min(first, undisturbed(command, variables, target)),
        undisturbed(again, variables, target),
    )
    summary = Summary(*lengths)
    chance = random.Random(seed)
    shares = [(number + chance.random()) / kills * 1.02 for number in range(kills)]
    chance.shuffle(shares)
    for number, share in enumerate(shares):
        moment = share * lengths[number % 2]
        if number % 2 and state_of(target) != "complete":
            undisturbed(command, variables, target)
        elif number % 2 == 0 and target.exists():
            shutil.rmtree(target)
        kill = kill_once(number, moment, again if number % 2 else command, variables, target)
        summary.kills.append(kill)
        if tell:
            print(row(kill), flush=True)
    try:
        undisturbed(command, variables, target)
    except RuntimeError as error:
        summary.violations.append(str(error))
    own = {target.name, f".{target.name}.legacy-cuda-lock"}
    left = sorted(path.name for path in target.parent.iterdir() if path.name not in own)
    if left:
        summary.violations.append(f"left beside the environment: {', '.join(left)}")
    return summary


def row(kill: Kill) -> str:
    """A line of the table."""
    when = "ended before" if kill.ended else "killed"
    text = "; ".join(kill.violations) or "as it should be"
    return (
        f"{kill.number:>4}  {kill.mode:<8}{kill.moment:>8.2f} s  {when:<13}{kill.state:<10}{text}"
    )


def main() -> int:
    """Run the campaign; 1 for a violation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="how many (default 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    parser.add_argument("--gpu", default="p40", help="whose stack (default p40)")
    parser.add_argument("--folder", type=Path, help="where environments are made, on uv's disk")
    parser.add_argument("--json", type=Path, help="also write the summary here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-up-", dir=arguments.folder) as folder:
        variables = {**os.environ, "LEGACY_CUDA_HOME": folder}
        command = [sys.executable, "-m", "legacy_cuda", "up", arguments.gpu]
        try:
            summary = campaign(
                command,
                variables,
                Path(folder) / arguments.gpu,
                arguments.kills,
                arguments.seed,
                tell=True,
            )
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
    killed = sum(not kill.ended for kill in summary.kills)
    bad = sum(bool(kill.violations) for kill in summary.kills)
    print(
        f"{len(summary.kills)} runs (undisturbed {summary.fresh_s:.1f} s, replacing "
        f"{summary.replace_s:.1f} s): {killed} killed, {bad} with violations"
    )
    for text in summary.violations:
        print(f"violation: {text}")
    if arguments.json:
        document = {"schema": "legacy-cuda/kill-up/1", "good": summary.good, **asdict(summary)}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if summary.good else 1


if __name__ == "__main__":
    sys.exit(main())
