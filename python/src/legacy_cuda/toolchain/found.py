"""A toolkit and a host compiler that are installed on this machine, checked against the catalog."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from legacy_cuda import catalog, paths, sizes
from legacy_cuda.catalog.toolchains import Toolchain
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import folder, smoke

_RELEASE = re.compile(r"release (\d+\.\d+), V(\d+\.\d+\.\d+)")
_MACRO = "__GNUC__ __GNUC_MINOR__ __GNUC_PATCHLEVEL__ __GLIBC__ __GLIBC_MINOR__ __clang__"


@dataclass(frozen=True, slots=True)
class Compiler:
    """A host compiler: its path, gcc's version, and the glibc whose headers it includes."""

    path: Path
    version: tuple[int, int, int]
    glibc: tuple[int, int]
    clang: bool = False

    def __str__(self) -> str:
        kind = "clang" if self.clang else "gcc"
        return f"{kind} {'.'.join(map(str, self.version))} ({self.path})"


def find_toolkit(toolchain: Toolchain, given: Path | None = None) -> Path:
    """The root of an installed toolkit of the toolchain's version: it has ``bin/nvcc``.

    Looked at, in order: ``given`` alone if it is given; else CUDA_HOME, CUDA_PATH, the folders of
    NVIDIA's installer and packages, and the nvcc on PATH (in a Nix shell, a store path).

    Raises:
        UserError: ``given`` has no nvcc, or one of another version.
        SurroundingsError: none of the right version is installed.
    """
    seen = []
    for root in [given] if given is not None else _candidates(toolchain.name):
        version = nvcc_version(root / "bin" / "nvcc")
        if version is None:
            if given is not None:
                raise UserError(
                    f"{given} is no CUDA toolkit",
                    f"there is no {root / 'bin' / 'nvcc'} that says its version",
                    "name the folder that has bin/nvcc, such as /usr/local/cuda-" + toolchain.name,
                )
            continue
        if version[0] == toolchain.name:
            return root.resolve()
        seen.append(f"{root}: CUDA {version[0]}")
    message = "; ".join(dict.fromkeys(seen)) or "none at all"
    if given is not None:
        raise UserError(f"{given} is not CUDA {toolchain.name}", message, "name another folder")
    raise SurroundingsError(
        f"no CUDA {toolchain.name} is installed",
        f"found: {message}",
        f"leave --found out to have it downloaded ({sizes.mib(toolchain.download)} MiB)",
    )


def _candidates(name: str) -> Iterator[Path]:
    for variable in paths.TOOLKIT_VARIABLES:
        if value := os.environ.get(variable):
            yield Path(value)
    for usual in (f"/usr/local/cuda-{name}", *paths.TOOLKITS):
        yield Path(usual)
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        yield Path(nvcc).resolve().parents[1]


def nvcc_version(nvcc: Path) -> tuple[str, str] | None:
    """``("11.8", "11.8.89")``; None where there is no such nvcc, or it does not work."""
    try:
        done = subprocess.run(
            [str(nvcc), "--version"], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _RELEASE.search(done.stdout)
    return (match[1], match[2]) if match else None


def read_compiler(path: Path) -> Compiler | None:
    """What a C++ compiler says of itself and of its C library; None where it does not work."""
    words = _MACRO.split()
    text = "#include <cstdlib>\n" + "".join(f"legacy_cuda_{word}={word}\n" for word in words)
    try:
        done = subprocess.run(
            [str(path), "-x", "c++", "-E", "-P", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = dict(re.findall(r"legacy_cuda_(\w+)=(\d+)", done.stdout))
    if done.returncode or not {"__GNUC__", "__GLIBC__"} <= set(said):
        return None
    number = [int(said.get(word, 0)) for word in words]
    return Compiler(
        path, (number[0], number[1], number[2]), (number[3], number[4]), "__clang__" in said
    )


def check_compiler(compiler: Compiler, toolchain: Toolchain) -> None:
    """Whether the toolkit takes the compiler and its C library.

    Raises:
        UserError: it does not; what it takes is said.
    """
    toolkit = toolchain.toolkit
    if compiler.clang:
        raise UserError(
            f"{compiler.path} is clang",
            "wheels are built with gcc only, which everything here was tried with",
            f"name a g++ of version {toolkit.gcc_max} or older with --compiler",
        )
    if compiler.version[0] > toolkit.gcc_max:
        raise UserError(
            f"gcc {compiler.version[0]} is too new for CUDA {toolchain.name}",
            f"its nvcc takes gcc {toolkit.gcc_max} or older; {compiler.path} is gcc "
            f"{'.'.join(map(str, compiler.version))} ({toolkit.source})",
            f"install g++-{toolkit.gcc_max} and name it with --compiler, or leave --found out: "
            f"the pinned toolchain brings gcc {toolchain.host.gcc}",
        )
    limit = toolkit.glibc_below
    if limit is not None and compiler.glibc >= catalog.version_tuple(limit):
        raise UserError(
            f"glibc {'.'.join(map(str, compiler.glibc))} is too new for CUDA {toolchain.name}",
            f"its headers compile only with a glibc older than {limit}, which declares cospi and "
            f"others differently from then on ({toolkit.source})",
            f"leave --found out: the pinned toolchain brings the headers of glibc "
            f"{toolchain.host.glibc}",
        )


def find_compiler(toolchain: Toolchain, given: Path | None = None) -> Compiler:
    """A host compiler that the toolkit takes, the newest first.

    Raises:
        UserError: the compiler that was given does not fit.
        SurroundingsError: none is installed that fits.
    """
    if given is not None:
        compiler = read_compiler(given)
        if compiler is None:
            raise UserError(
                f"{given} is no C++ compiler that works here",
                "it was asked for its version and its C library",
                "name a g++ with --compiler",
            )
        check_compiler(compiler, toolchain)
        return compiler
    numbered = [f"g++-{number}" for number in range(toolchain.toolkit.gcc_max, 6, -1)]
    names = [os.environ.get("CXX", ""), *numbered]
    why = ["no g++ is installed"]
    for name in (*names, "g++"):
        path = shutil.which(name) if name else None
        compiler = read_compiler(Path(path)) if path else None
        if compiler is None:
            continue
        try:
            check_compiler(compiler, toolchain)
        except UserError as error:
            why.append(f"{error.what}: {error.why}")
        else:
            return compiler
    raise SurroundingsError(
        f"no host compiler for CUDA {toolchain.name} is installed",
        "\n".join(why[1:] or why),
        f"install g++-{toolchain.toolkit.gcc_max}, or leave --found out: the pinned toolchain "
        f"brings gcc {toolchain.host.gcc}",
    )


def make(toolchain: Toolchain, toolkit: Path, compiler: Compiler) -> tuple[Path, bool]:
    """A toolchain's folder whose commands are those of an installed toolkit and compiler.

    Returns the folder, and whether it was made now. What it compiles need not be what another
    machine compiles: its manifest says ``found``.

    Raises:
        SurroundingsError: the toolkit and the compiler do not work together.
    """
    version = nvcc_version(toolkit / "bin" / "nvcc")
    assert version is not None  # find_toolkit asked it
    gxx = compiler.path.absolute()
    gcc = gxx.with_name(gxx.name.replace("g++", "gcc").replace("c++", "cc"))
    content = {
        "layout": "2",
        "source": "found",
        "nvcc": version[1],
        "gcc": ".".join(map(str, compiler.version)),
        "glibc": ".".join(map(str, compiler.glibc)),
        "toolkit": str(toolkit),
        "compiler": str(gxx),
    }
    digest = hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()
    target = folder.place(f"{toolchain.name}-found-{digest[:16]}")

    def fill(root: Path) -> dict[str, object]:
        commands = root / "bin"
        commands.mkdir()
        (root / "cuda").symlink_to(toolkit)
        for names, path in ((("g++", "c++"), gxx), (("gcc", "cc"), gcc)):
            for name in names:
                folder.script(commands / name, f'exec {shlex.quote(str(path))} "$@"\n')
        for name in ("ar", "ld", "ranlib", "strip"):
            folder.script(commands / name, f'exec {shlex.quote(_binutil(gxx, name))} "$@"\n')
        folder.script(
            commands / "nvcc",
            f'export PATH={shlex.quote(str(toolkit / "bin"))}:"$PATH"\n'
            f'exec {shlex.quote(str(toolkit / "bin" / "nvcc"))} -ccbin "$here/g++" "$@"\n',
        )
        return {**content, **smoke.check(root, toolchain)}

    return target, folder.fill(target, toolchain.name, fill)


def _binutil(compiler: Path, name: str) -> str:
    """The program of that name which the compiler itself would use (gcc, -print-prog-name)."""
    command = [str(compiler), f"-print-prog-name={name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return shutil.which(done.stdout.strip() or name) or name
