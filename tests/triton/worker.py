"""Runs inside a Python that has Triton: compiles one cell a request and measures it.

A line of JSON on stdout says what there is (`hello`), then every line on stdin asks for one cell
(``{"kernel": ..., "capability": [6, 1], "sass": true}``) and gets one line back. All other output
goes to the log on stderr, which the parent reads when this process dies.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .kernels import KERNELS, Kernel
from .measure import count_opcodes, first_error, read_ptxas

_HOME = Path(triton.__file__).parent
_TOOLS = _HOME / "backends/nvidia/bin"


def hello() -> dict[str, Any]:
    """The Triton of this process and the kernels it can be given, each with a digest."""
    digest = hashlib.sha256(triton.__version__.encode())
    for folder in ("backends/nvidia", "compiler", "language", "runtime"):
        for path in sorted((_HOME / folder).rglob("*.py")):
            digest.update(path.relative_to(_HOME).as_posix().encode() + b"\0" + path.read_bytes())
    legacy = (_HOME / "backends/nvidia/legacy").is_dir()
    return {
        "version": triton.__version__,
        "legacy": legacy,
        "digest": digest.hexdigest(),
        "kernels": {
            name: {
                "digest": _digest(kernel),
                "tags": sorted(kernel.tags),
                "proof": list(kernel.proof),
            }
            for name, kernel in KERNELS.items()
        },
    }


def _digest(kernel: Kernel) -> str:
    what = (
        kernel.function.cache_key,
        sorted(kernel.signature.items()),
        sorted((name, str(value)) for name, value in kernel.constexprs.items()),
        sorted(kernel.options.items()),
        sorted(map(str, kernel.attributes.items())),
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()


class Clock:
    """Seconds spent in named parts of the compilation of one cell."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class Probe:
    """Triton's own functions wrapped, so that each stage is timed and ptxas's report kept."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ptxas_log = ""
        # the class in use: Triton 3.3 loads the file a second time, under another name
        self.backend: Any = backends["nvidia"].compiler
        self._wrap_stages()
        self._wrap_front_end()
        self._wrap_ptxas()
        self.legalises = self._wrap_legaliser()

    def _wrap_stages(self) -> None:
        original = self.backend.add_stages

        def add_stages(backend: Any, stages: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            original(backend, stages, *args, **kwargs)
            for name, stage in list(stages.items()):
                stages[name] = self._timed(name, stage)

        self.backend.add_stages = add_stages

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.clock.part(name):
                return function(*args, **kwargs)

        return timed

    def _wrap_front_end(self) -> None:
        ASTSource.make_ir = self._timed("front end", ASTSource.make_ir)

    def _wrap_ptxas(self) -> None:
        original = subprocess.run

        def run(command: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(command, *args, **kwargs)
            finally:
                log = getattr(kwargs.get("stderr"), "name", None)
                if isinstance(log, str) and Path(log).exists():
                    self.ptxas_log = Path(log).read_text(errors="replace")

        subprocess.run = run  # type: ignore[assignment]

    def _wrap_legaliser(self) -> bool:
        """Time `legalize` wherever the patched back end keeps a reference to it."""
        try:
            from triton.backends.nvidia.legacy import legalize as module
        except ImportError:
            return False
        original = module.legalize
        timed = self._timed("legaliser", original)
        used = [vars(module), self.backend.make_ptx.__globals__]
        for names in used:
            for name, value in list(names.items()):
                if value is original:
                    names[name] = timed
        return used[1].get("legalize") is timed

    def start(self) -> None:
        self.clock.seconds.clear()
        self.ptxas_log = ""


def compile_cell(
    kernel: Kernel, capability: tuple[int, int], probe: Probe, sass: bool
) -> dict[str, Any]:
    """Compile one kernel for one capability and say what came of it."""
    source = ASTSource(
        fn=kernel.function,
        signature=kernel.signature,
        constexprs=dict(kernel.constexprs),
        attrs=kernel.attributes,
    )
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    probe.start()
    _clear_log()
    begin = time.perf_counter()
    try:
        compiled = triton.compile(source, target=target, options=dict(kernel.options))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {
            "ok": False,
            "error": type(error).__name__,
            "reason": _reason(error),
            "seconds": _rounded({"total": time.perf_counter() - begin, **probe.clock.seconds}),
        }
    seconds = {"total": time.perf_counter() - begin, **probe.clock.seconds}
    cell: dict[str, Any] = {
        "ok": True,
        "seconds": _rounded(seconds),
        "shared": compiled.metadata.shared,
        "resources": read_ptxas(probe.ptxas_log),
        "cubin_bytes": len(compiled.asm["cubin"]),
        "cubin_capability": cubin_capability(compiled.asm["cubin"]),
    }
    if sass:
        cell["opcodes"], cell["detailed"] = count_opcodes(_disassemble(compiled.asm["cubin"]))
    return cell


def cubin_capability(cubin: bytes) -> list[int] | None:
    """The capability a cubin was made for: the low byte of its ELF header's flags.

    So it is in the ELF files of CUDA 11 and 12 (ABI versions 7); None for anything else.
    """
    if cubin[:4] != b"\x7fELF" or cubin[8] != 7:
        return None
    number = cubin[48]
    return [number // 10, number % 10]


def _disassemble(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "nvdisasm"), "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"nvdisasm: {done.stderr.strip()}")
    return done.stdout


def _reason(error: BaseException) -> str:
    """The line of an error that says why."""
    if type(error).__name__ == "PTXASError":
        report = str(error).partition("stderr:")[2]
        return first_error(report) or str(error).splitlines()[0]
    sys.stderr.flush()
    if "PassManager::run failed" in str(error):
        return first_error(_read_log()) or "PassManager::run failed"
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:300]


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def _read_log() -> str:
    with open(os.environ["MATRIX_LOG"], errors="replace") as file:  # noqa: PTH123  # read back our own stderr
        return file.read()


def _clear_log() -> None:
    sys.stderr.flush()
    os.ftruncate(2, 0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    probe = Probe()
    # the first compilation of a process pays for imports, which is nobody's time
    compile_cell(KERNELS["add_fp32"], (8, 0), probe, sass=False)
    print(json.dumps({**hello(), "legalises": probe.legalises}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        capability = (asked["capability"][0], asked["capability"][1])
        cell = compile_cell(KERNELS[asked["kernel"]], capability, probe, asked["sass"])
        print(json.dumps(cell), file=answers, flush=True)


if __name__ == "__main__":
    main()
