"""Coverage-guided fuzzing of the readers: ``python -m tests.fuzz TARGET --seconds 600``.

Needs ``atheris``. Exit status 0: nothing found; 1: a crash, hang or too much memory, whose input
is left in the folder named by ``--artifacts``; to repeat it, give that file as ``--input``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]  # for `targets` and `builders`

from fuzz_names import NAMES  # noqa: E402  (found by the line above)

TIMEOUT = 5  # seconds an input may take
MEMORY = 1024  # MiB


def child(name: str, arguments: list[str]) -> None:
    """Run libFuzzer in this process, which it ends."""
    import atheris

    rooms = ["legacy_cuda.devicecode", "legacy_cuda.capability", "legacy_cuda.triton_backend"]
    rooms += ["legacy_cuda.toolchain.deb", "legacy_cuda.build.source", "tarfile"]
    rooms += ["legacy_cuda.doctor", "legacy_cuda.catalog.doctor", "legacy_cuda.planner"]
    with atheris.instrument_imports(include=rooms):
        import targets

    atheris.Setup([sys.argv[0], *arguments], targets.TARGETS[name].run)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def fuzz(
    name: str, seconds: int, artifacts: Path, corpus: Path, scratch: Path, verbose: bool
) -> int:
    """Fuzz one target in a process of its own. Returns 0 if nothing was found, else 1."""
    import targets

    target = targets.TARGETS[name]
    artifacts = artifacts.resolve()
    artifacts.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = corpus.with_name(f"{corpus.name}.words")
    words.write_text("".join(map(_quoted, target.words)), encoding="ascii")
    command = [sys.executable, str(HERE), name, "--child", f"-max_total_time={seconds}"]
    command += [f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}", "-max_len=8192"]
    command += [f"-dict={words}", f"-artifact_prefix={artifacts}/{name}-", "-print_final_stats=1"]
    executions = coverage = "0"
    lines: list[str] = []
    process = subprocess.Popen(
        [*command, str(corpus)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(scratch)},  # libFuzzer ends the process without cleaning
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if verbose:
            sys.stderr.write(line)
        lines = [*lines[-200:], line]
        if found := re.search(r"^#\d+.* cov: (\d+)", line):
            coverage = found[1]
        if found := re.search(r"stat::number_of_executed_units:\s*(\d+)", line):
            executions = found[1]
    if process.wait():
        sys.stderr.writelines(lines)
    verdict = "a failure" if process.returncode else "nothing found"
    print(f"{name}: {verdict}; {executions} executions, coverage {coverage}", flush=True)
    return 1 if process.returncode else 0


def main() -> int:
    """The command line."""
    if sys.argv[2:3] == ["--child"]:
        child(sys.argv[1], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=int, default=600, help="time for each target")
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(tempfile.gettempdir(), "legacy-cuda-fuzz-artifacts"),
        help="where inputs that fail are left",
    )
    parser.add_argument("--corpus", type=Path, help="keep what was learnt in this folder")
    parser.add_argument("--input", type=Path, help="run this one input instead")
    parser.add_argument("--verbose", action="store_true", help="show what libFuzzer says")
    options = parser.parse_args()
    chosen = NAMES if options.target == "all" else (options.target,)
    if options.input:
        import targets

        for name in chosen:
            targets.TARGETS[name].run(options.input.read_bytes())
        return 0
    scratch = Path(tempfile.mkdtemp(prefix="legacy-cuda-fuzz-"))
    status = 0
    try:
        for name in chosen:
            corpus = (options.corpus or scratch) / name
            status |= fuzz(
                name, options.seconds, options.artifacts, corpus, scratch, options.verbose
            )
    finally:
        shutil.rmtree(scratch)
    return status


if __name__ == "__main__":
    sys.exit(main())
