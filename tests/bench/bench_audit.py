#!/usr/bin/env python3
"""How fast device code is read out of a wheel, against unzip + cuobjdump and against bare inflate.

    bench_audit.py torch-2.7.1-...whl --cuobjdump PATH [--repeat 5] [--json FILE]
    bench_audit.py --tree SITE_PACKAGES --cuobjdump PATH

Everything runs in one go, in turn, each time in a fresh process; the wheel is read once before, so
that it lies in the page cache for all. Wall time and peak memory (ru_maxrss of wait4) are those of
the whole process, the interpreter's start included; no peak can read less than this script's own
size. The peers that only inflate are told where the members begin, so they are spared the reading
of the archive's directory, the looking into all other members, and the CRCs. ``ratio`` is the
peer's median wall time divided by ours, above 1 we are faster; ``of min`` is the same of the
shortest times, which other work on the machine disturbs least.

Peers that cannot run here are listed as ``not run`` with the reason.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INPUT = 1 << 17
OUTPUT = 1 << 18

Inflate = Callable[[int, "Member"], int]


@dataclass
class Member:
    """A deflated member: where its data lies in the archive. Sizes in bytes."""

    name: str
    offset: int
    stored: int
    size: int
    crc: int


@dataclass
class Cost:
    """What one run took: wall and processor seconds, peak MiB."""

    wall: float
    cpu: float
    peak: float


@dataclass
class Result:
    """Wall seconds, processor seconds and peak MiB of each round."""

    name: str
    rounds: list[Cost] = field(default_factory=list)

    def median(self, what: str) -> float:
        return statistics.median(getattr(cost, what) for cost in self.rounds)

    def least(self) -> float:
        """The shortest wall time: what other work on the machine disturbed least."""
        return min(cost.wall for cost in self.rounds)


# ---------------------------------------------------------------- what the fresh processes do


def _inputs(fd: int, member: Member) -> Iterator[bytes]:
    at, end = member.offset, member.offset + member.stored
    while at < end:
        piece = os.pread(fd, min(INPUT, end - at), at)
        at += len(piece)
        yield piece


def inflate_isal(fd: int, member: Member) -> int:
    from isal.igzip_lib import DECOMP_DEFLATE, IgzipDecompressor

    inflater = IgzipDecompressor(flag=DECOMP_DEFLATE)
    pieces = _inputs(fd, member)
    count = 0
    while not inflater.eof:
        packed = next(pieces) if inflater.needs_input else b""
        count += len(inflater.decompress(packed, OUTPUT))
    return count


def _inflate_zlib(module: Any) -> Inflate:
    def inflate(fd: int, member: Member) -> int:
        inflater = module.decompressobj(-15)
        count = 0
        for packed in _inputs(fd, member):
            count += len(inflater.decompress(packed))
        return count + len(inflater.flush())

    return inflate


def inflate_zlib(fd: int, member: Member) -> int:
    import zlib

    return _inflate_zlib(zlib)(fd, member)


def inflate_zlib_ng(fd: int, member: Member) -> int:
    from zlib_ng import zlib_ng

    return _inflate_zlib(zlib_ng)(fd, member)


def inflate_libdeflate(fd: int, member: Member) -> int:
    import deflate

    packed = b"".join(_inputs(fd, member))
    return len(deflate.deflate_decompress(packed, member.size))


INFLATERS: dict[str, tuple[str, Inflate]] = {
    "isal": ("isal", inflate_isal),
    "zlib-ng": ("zlib_ng", inflate_zlib_ng),
    "zlib": ("zlib", inflate_zlib),
    "libdeflate": ("deflate", inflate_libdeflate),
}


def child_inflate(name: str, threads: int, wheel: str, members: list[Member]) -> None:
    """Inflate the members, largest first, in so many threads; nothing else."""
    inflate = INFLATERS[name][1]
    queue = deque(members)
    counts: list[int] = []
    fd = os.open(wheel, os.O_RDONLY)

    def work() -> None:
        while True:
            try:
                member = queue.popleft()
            except IndexError:
                return
            counts.append(inflate(fd, member))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expect(sum(counts), members)


def child_rapidgzip(threads: int, folder: str, members: list[Member]) -> None:
    """Inflate the members one after the other, each with parallel decoders."""
    import rapidgzip

    count = 0
    buffer = bytearray(1 << 22)
    for number in range(len(members)):
        with rapidgzip.RapidgzipFile(f"{folder}/{number}.gz", parallelization=threads) as file:
            while taken := file.readinto(buffer):
                count += taken
    expect(count, members)


def expect(count: int, members: list[Member]) -> None:
    total = sum(member.size for member in members)
    if count != total:
        raise SystemExit(f"inflated {count} bytes, not {total}")


def child_wheel(wheel: str) -> None:
    from legacy_cuda.devicecode import scan_wheel

    if not any(code.containers for code in scan_wheel(Path(wheel))):
        raise SystemExit("no device code found")


def child_tree(root: str) -> None:
    from legacy_cuda.devicecode import scan_tree

    if not any(code.containers for code in scan_tree(Path(root))):
        raise SystemExit("no device code found")


def child_read(paths: list[str]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with Path(path).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# ------------------------------------------------------------------------------- measuring


def measure(command: list[str], quiet: bool = False) -> Cost:
    """Run a command to its end.

    Raises:
        SystemExit: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    # cuobjdump ends with 255 where a file has no code of its kind
    if process.returncode not in ((0, 255) if quiet else (0,)):
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure_all(commands: list[list[str]]) -> Cost:
    """Run commands one after the other; the sum of their times and the highest of their peaks."""
    costs = [measure(command, quiet=True) for command in commands]
    return Cost(
        sum(cost.wall for cost in costs),
        sum(cost.cpu for cost in costs),
        max(cost.peak for cost in costs),
    )


def self_command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--child", *arguments]


def scanned_members(wheel: Path) -> list[Member]:
    """The deflated members that our scan reads in full, largest first."""
    from legacy_cuda.devicecode.archive import WheelReader
    from legacy_cuda.devicecode.scan import scan_wheel

    names = {code.path for code in scan_wheel(wheel)}
    found = []
    with WheelReader(wheel) as reader:
        for member in reader.members:
            if member.name in names and member.method == 8:
                head = reader.read(member.header_offset, 30)
                name_size, extra_size = struct.unpack("<HH", head[26:30])
                start = member.header_offset + 30 + name_size + extra_size
                found.append(
                    Member(member.name, start, member.stored_size, member.size, member.crc)
                )
    return sorted(found, key=lambda member: -member.size)


def read_members(listing: Path) -> list[Member]:
    return [Member(**row) for row in json.loads(listing.read_text())]


def child_files(root: Path, listing: Path) -> None:
    """The files below a folder that hold device code, and their sizes."""
    from legacy_cuda.devicecode import scan_tree

    codes = {code.path: code.size for code in scan_tree(root) if code.containers}
    listing.write_text(json.dumps(codes))


def prepare(*arguments: str) -> None:
    """Make a list in a process of its own: what a process forked from here has as its first peak
    is our own size."""
    subprocess.run(self_command(*arguments), check=True)


def wrap(wheel: Path, members: list[Member], folder: Path) -> None:
    """Each member as a gzip file, for rapidgzip: header, deflate stream as it is, trailer."""
    header = gzip.compress(b"", mtime=0)[:10]
    with wheel.open("rb") as file:
        for number, member in enumerate(members):
            file.seek(member.offset)
            with (folder / f"{number}.gz").open("wb") as out:
                out.write(header)
                left = member.stored
                while left:
                    piece = file.read(min(1 << 20, left))
                    out.write(piece)
                    left -= len(piece)
                out.write(struct.pack("<II", member.crc, member.size & 0xFFFFFFFF))


def warm(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def machine() -> dict[str, Any]:
    info: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            info["processor"] = line.split(":", 1)[1].strip()
            break
    info["load_before"] = round(os.getloadavg()[0], 2)
    return info


Contenders = dict[str, Callable[[], Cost]]


def compete(contenders: Contenders, repeat: int) -> list[Result]:
    results = {name: Result(name) for name in contenders}
    for number in range(repeat):
        for name, contender in contenders.items():
            print(f"round {number + 1}/{repeat}: {name}", file=sys.stderr)
            results[name].rounds.append(contender())
    return list(results.values())


def wheel_contenders(
    wheel: Path, cuobjdump: str | None, scratch: Path, not_run: dict[str, str]
) -> tuple[Contenders, int]:
    listing = scratch / "members.json"
    prepare("members", str(wheel), str(listing))
    members = read_members(listing)
    warm([wheel])
    contenders: Contenders = {
        "ours": lambda: measure(self_command("wheel", str(wheel))),
    }
    unzip = shutil.which("unzip")
    if unzip is None or cuobjdump is None:
        not_run["unzip + cuobjdump"] = "unzip is not installed" if cuobjdump else "no --cuobjdump"
    else:

        def unzip_and_list() -> Cost:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                names = [member.name for member in members]
                commands = [[unzip, "-q", "-o", str(wheel), *names, "-d", folder]]
                for name in names:
                    for option in ("--list-elf", "--list-ptx"):
                        commands.append([cuobjdump, "-all", option, f"{folder}/{name}"])
                return measure_all(commands)

        contenders["unzip + cuobjdump"] = unzip_and_list

    def add(name: str, module: str, *arguments: str) -> None:
        if importlib.util.find_spec(module) is None:
            not_run[name] = f"Python has no module {module}"
        else:
            contenders[name] = lambda: measure(self_command(*arguments))

    for name, (module, _) in INFLATERS.items():
        for threads in ("1", "2"):
            label = f"inflate: {name}, {threads} thread{'s' * (threads != '1')}"
            add(label, module, name, threads, str(wheel), str(listing))
    if importlib.util.find_spec("rapidgzip") is not None:
        wrap(wheel, members, scratch)
    add("inflate: rapidgzip, 2 decoders", "rapidgzip", "rapidgzip", "2", str(scratch), str(listing))
    return contenders, sum(member.size for member in members)


def tree_contenders(
    root: Path, cuobjdump: str | None, scratch: Path, not_run: dict[str, str]
) -> tuple[Contenders, int]:
    listing = scratch / "files.json"
    prepare("files", str(root), str(listing))
    files = {root / path: size for path, size in json.loads(listing.read_text()).items()}
    paths = list(files)
    warm([path for path in root.rglob("*") if path.is_file()])
    contenders: Contenders = {"ours": lambda: measure(self_command("tree", str(root)))}
    if cuobjdump is None:
        not_run["cuobjdump"] = "no --cuobjdump"
    else:
        commands = [
            [cuobjdump, "-all", option, str(path)]
            for path in paths
            for option in ("--list-elf", "--list-ptx")
        ]
        contenders["cuobjdump"] = lambda: measure_all(commands)
    contenders["read"] = lambda: measure(self_command("read", *map(str, paths)))
    return contenders, sum(files.values())


def child(arguments: list[str]) -> None:
    what, rest = arguments[0], arguments[1:]
    if what == "wheel":
        child_wheel(rest[0])
    elif what == "tree":
        child_tree(rest[0])
    elif what == "members":
        rows = [vars(member) for member in scanned_members(Path(rest[0]))]
        Path(rest[1]).write_text(json.dumps(rows))
    elif what == "files":
        child_files(Path(rest[0]), Path(rest[1]))
    elif what == "read":
        child_read(rest)
    else:
        members = read_members(Path(rest[2]))
        if what == "rapidgzip":
            child_rapidgzip(int(rest[0]), rest[1], members)
        else:
            child_inflate(what, int(rest[0]), rest[1], members)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("wheel", nargs="?", type=Path, help="a wheel, such as torch 2.7.1's")
    what.add_argument("--tree", type=Path, help="an installed environment instead of a wheel")
    parser.add_argument("--cuobjdump", help="NVIDIA's cuobjdump, 12.8 for old and new code")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--only", help="only the peers whose name holds this")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--scratch", type=Path, help="folder with room for the unpacked libraries")
    arguments = parser.parse_args()
    cuobjdump = shutil.which(arguments.cuobjdump) if arguments.cuobjdump else None
    if arguments.cuobjdump and cuobjdump is None:
        parser.error(f"{arguments.cuobjdump} is no program")
    not_run: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        if arguments.wheel:
            contenders, size = wheel_contenders(
                arguments.wheel.resolve(), cuobjdump, Path(scratch), not_run
            )
        else:
            contenders, size = tree_contenders(
                arguments.tree.resolve(), cuobjdump, Path(scratch), not_run
            )
        if arguments.only:
            for name in list(contenders)[1:]:
                if arguments.only not in name:
                    del contenders[name]
                    not_run[name] = "not among --only"
        about = machine()
        results = compete(contenders, arguments.repeat)
    report(arguments, about, size, results, not_run)


def report(
    arguments: argparse.Namespace,
    about: dict[str, Any],
    size: int,
    results: list[Result],
    not_run: dict[str, str],
) -> None:
    ours, best_of_ours = results[0].median("wall"), results[0].least()
    subject = (arguments.wheel or arguments.tree).name
    print(f"{subject}: {size / 1e6:.0f} MB in files that can hold device code")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"{'':34}{'wall s':>8}{'(min':>8}{'max)':>8}{'cpu s':>8}{'peak MiB':>10}{'ratio':>8}"
        f"{'of min':>8}"
    )
    rows = []
    for result in results:
        walls = [cost.wall for cost in result.rounds]
        wall, cpu = result.median("wall"), result.median("cpu")
        peak = max(cost.peak for cost in result.rounds)
        rows.append(
            {
                "name": result.name,
                "wall_s": [round(value, 3) for value in walls],
                "median_wall_s": round(wall, 3),
                "median_cpu_s": round(cpu, 3),
                "peak_mib": round(peak, 1),
                "ratio": round(wall / ours, 3),
                "ratio_of_min": round(result.least() / best_of_ours, 3),
            }
        )
        print(
            f"{result.name:34}{wall:8.2f}{min(walls):8.2f}{max(walls):8.2f}{cpu:8.2f}"
            f"{peak:10.0f}{wall / ours:8.2f}{result.least() / best_of_ours:8.2f}"
        )
    for name, reason in not_run.items():
        print(f"{name:34}not run: {reason}")
    inflaters = [row for row in rows if row["name"].startswith("inflate")]
    if inflaters:
        best = min(inflaters, key=lambda row: row["median_wall_s"])
        print(
            f"against the fastest inflate ({best['name']}): {best['ratio']:.2f}, "
            f"of the minima {best['ratio_of_min']:.2f}"
        )
    if arguments.json:
        document = {
            "schema": "legacy-cuda/bench-audit/1",
            "subject": subject,
            "bytes": size,
            "machine": about,
            "results": rows,
            "not_run": not_run,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
