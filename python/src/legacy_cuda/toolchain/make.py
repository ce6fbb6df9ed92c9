"""A pinned toolchain, put together in the cache from packages of Debian and wheels.

The folder is relocatable and needs nothing of the machine but the kernel, ``/bin/sh`` and a C
library to run the compilers with::

    bin/             gcc, g++, nvcc, ld ..., which use what is in this folder and nothing else
    cuda/            the toolkit, laid out as NVIDIA's installer does: bin, include, lib64, nvvm
    sysroot/         the compiler's own files, and the C library that is compiled against
    toolchain.json   what went in
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from legacy_cuda import fetch
from legacy_cuda.build.make import file_sha256
from legacy_cuda.catalog.toolchains import DebianPackage, Toolchain
from legacy_cuda.errors import SurroundingsError
from legacy_cuda.toolchain import deb, environ, folder, mirrors, smoke

TRIPLET = "x86_64-linux-gnu"  # Debian's multiarch name, also in the names of its compilers

_BINUTILS = ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
# Libraries the compiler itself runs with. The rest of the sysroot must not be found at run time:
# a C library other than the machine's own does not work with its loader.
_RUN_WITH = ("libbfd", "libctf", "libgmp", "libisl", "libjansson", "libmpc", "libmpfr")
_RUN_WITH_TOO = ("libopcodes", "libsframe", "libz.so", "libzstd")
_UNUSED = ("usr/share", "usr/lib/nvidia-cuda-toolkit/compute-sanitizer", "usr/lib/ocaml")

# nvcc reads it beside its own binary; _HERE_ is that folder (CUDA Compiler Driver NVCC,
# "nvcc.profile").
_PROFILE = """\
TOP = $(_HERE_)/..
CICC_PATH = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(CICC_PATH):$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64/stubs" "-L$(TOP)/lib64"
"""

# Paths in what is compiled (__FILE__, debugging information) are those of no machine: the
# toolchain's and, where environ.ROOT is set, the build's. nvcc writes the toolchain's through bin,
# CMake does not; of two options that fit, gcc takes the last.
_MAPPED = f"""\
set -- "-ffile-prefix-map=$(cd "$here/.." && pwd -P)=/toolchain" \\
    "-ffile-prefix-map=$here/..=/toolchain" "$@"
[ -z "${environ.ROOT}" ] || set -- "-ffile-prefix-map=${environ.ROOT}={environ.MAPPED}" "$@"
[ -z "${environ.RELATIVE}" ] ||
    set -- "-ffile-prefix-map=${environ.RELATIVE}={environ.MAPPED}/" "$@"
"""

# The path of a source is hashed into the names of what is local to it: by cicc (seen with 11.8 and
# 12.4) and by cudafe++ (12.4). {program} is the one that is given another path.
#
# These names come from an identifier of the source, which one program makes for all. For a source
# that defines nothing which others can see, it has the working folder and the process's number in
# it; another is made then, of the path and of what the preprocessor left.
_SOURCE_MAPPED = f"""\
last= source= input= file= make=
for word do
    shift
    case $last in
        --orig_src_path_name)
            [ -z "${environ.ROOT}" ] || case $word in
                "${environ.ROOT}"/*) word="{environ.MAPPED}${{word#"${environ.ROOT}"}}" ;;
            esac
            source=$word ;;
        --module_id_file_name) file=$word ;;
    esac
    last=$word
    case $word in
        *.ii) input=$word ;;
        --gen_module_id_file) make=yes; continue ;;
    esac
    set -- "$@" "$word"
done
if [ -n "$make" ]; then
{{first}}    name=$(printf %s "${{source##*/}}" | tr -c A-Za-z0-9 _)
    printf _%.8s_%d_%s_%.8s "$(printf %s "$source" | sha256sum)" "${{#name}}" "$name" \\
        "$(grep -v '^# ' "$input" | sha256sum)" > "$file"
fi
exec "$here/{{program}}.bin" "$@"
"""

# cudafe++ makes the identifier with 12.4, and is quick: its own one is kept where it is the same
# anywhere. With 11.8 it is cicc.
_OWN_FIRST = """\
    "$here/cudafe++.bin" --gen_module_id_file "$@" || exit
    grep -Eq '_[0-9a-f]{8}_[0-9]+$' "$file" || exit 0
"""

Tell = Callable[[str, int, int], None]
"""Called with what is being done, and how many bytes of how many are; 0 where that is unknown."""


def place(toolchain: Toolchain) -> Path:
    """Where the toolchain is, or would be: another content or another layout, another folder."""
    digest = hashlib.sha256(toolchain.digest.encode())
    for module in (__file__, deb.__file__, environ.__file__, folder.__file__):
        digest.update(Path(module).read_bytes())
    return folder.place(f"{toolchain.name}-{digest.hexdigest()[:16]}")


def make(toolchain: Toolchain, tell: Tell) -> tuple[Path, bool]:
    """The toolchain's folder, made if it is not there; and whether it was made now.

    It is whole or not there: it is put together beside its place, compiles and links a program
    for every GPU it is for, and is then renamed.

    Raises:
        SurroundingsError: the network, the disk, or this machine cannot run its compilers.
    """
    target = place(toolchain)

    def work(root: Path) -> dict[str, Any]:
        _fill(toolchain, root, tell)
        tell("trying it", 0, 0)
        return {**_content(toolchain), **smoke.check(root, toolchain)}

    return target, folder.fill(target, toolchain.name, work)


def _fill(toolchain: Toolchain, root: Path, tell: Tell) -> None:
    addresses = mirrors.mirrors()
    total = toolchain.download
    done = unpacked = 0
    ours: list[Path] = []  # downloaded for this alone: what matters of it is in the toolchain then

    def get(remote: fetch.Remote) -> Path:
        nonlocal done
        before = done

        def told(now: int, _: int) -> None:
            tell("downloading", before + now, total)

        path = fetch.cached_path(remote)
        if path.is_file() and file_sha256(path) != remote.sha256:
            path.unlink()  # damaged on the disk
        if not path.is_file():
            ours.append(fetch.download(remote, progress=told))
        done = before + remote.size
        return path

    sysroot, toolkit = root / "sysroot", root / "toolkit"
    for where, packages in (
        (sysroot, toolchain.host.packages),
        (toolkit, toolchain.packages),
    ):
        for package in packages:
            path = _get_debian(package, addresses, get)
            try:
                deb.unpack(path, where, _is_used)
            except deb.DebError as error:
                raise SurroundingsError(f"{path.name} cannot be unpacked", str(error)) from error
            unpacked += package.size
            tell("unpacking", unpacked, total)
    cuda = root / "cuda"
    _lay_out(toolkit, cuda)
    shutil.rmtree(toolkit)
    for wheel in toolchain.wheels:
        remote = fetch.Remote(wheel.package, wheel.version, wheel.name, wheel.sha256, wheel.size)
        path = get(remote)
        _unpack_wheel(path, cuda)
        unpacked += wheel.size
        tell("unpacking", unpacked, total)
    _complete_sysroot(sysroot)
    _write_commands(root)
    _complete_libraries(root)
    for path in ours:
        path.unlink(missing_ok=True)


def _is_used(path: PurePosixPath) -> bool:
    if path.name == "copyright":
        return True
    return not any(path.is_relative_to(unused) for unused in _UNUSED)


def _get_debian(
    package: DebianPackage,
    addresses: tuple[str, ...],
    get: Callable[[fetch.Remote], Path],
) -> Path:
    """The package from the first mirror that has it.

    Raises:
        SurroundingsError: no mirror has it, or the network failed.
    """
    problems = []
    for address in addresses:
        remote = fetch.Remote(
            package.name,
            package.version,
            package.file.rpartition("/")[2],
            package.sha256,
            package.size,
            address + package.file,
        )
        try:
            return get(remote)
        except SurroundingsError as error:
            problems.append(f"{error.what}: {error.why}")
    raise SurroundingsError(
        f"{package.name} {package.version} of Debian cannot be had",
        "\n".join(problems),
        f"a mirror that keeps old packages may have it: set {mirrors.VARIABLE} to its address, or "
        "use an installed toolkit with --found",
    )


def _lay_out(debian: Path, cuda: Path) -> None:
    """Debian's paths to those of NVIDIA's installer, which nvcc and CMake know."""
    own = debian / "usr" / "lib" / "nvidia-cuda-toolkit"
    (cuda / "bin").mkdir(parents=True)
    for path in (debian / "usr" / "bin").iterdir():
        if path.name != "nvcc":  # Debian's is a script with an absolute path
            path.rename(cuda / "bin" / path.name)
    (own / "bin" / "nvcc").rename(cuda / "bin" / "nvcc")
    (own / "bin" / "crt").rename(cuda / "bin" / "crt")
    (cuda / "nvvm" / "bin").mkdir(parents=True)
    (own / "bin" / "cicc").rename(cuda / "nvvm" / "bin" / "cicc")
    for program in (cuda / "nvvm" / "bin" / "cicc", cuda / "bin" / "cudafe++"):
        program.rename(program.with_name(f"{program.name}.bin"))
        text = _SOURCE_MAPPED.replace("{first}", _OWN_FIRST if program.name == "cudafe++" else "")
        folder.script(program, text.replace("{program}", program.name))
    (own / "libdevice").rename(cuda / "nvvm" / "libdevice")
    (cuda / "bin" / "nvcc.profile").write_text(_PROFILE, encoding="utf-8")
    for path in (debian / "usr" / "share" / "doc").glob("*/copyright"):
        path.rename(cuda / f"LICENSE.{path.parent.name}")


def _unpack_wheel(wheel: Path, cuda: Path) -> None:
    """Headers and libraries of a wheel such as ``nvidia/cublas``, where a toolkit has them."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            parts = PurePosixPath(item.filename).parts
            if len(parts) < 4 or parts[0] != "nvidia" or item.is_dir() or ".." in parts:
                continue
            if parts[-1] == "__init__.py" or parts[2] not in ("include", "lib"):
                continue
            kind = "lib64" if parts[2] == "lib" else "include"
            target = cuda.joinpath(kind, *parts[3:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(item) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def _complete_sysroot(sysroot: Path) -> None:
    """Put what the compiler itself runs with in a folder of its own."""
    run_with = sysroot / "run"
    run_with.mkdir()
    for libraries in (sysroot / "usr" / "lib" / TRIPLET, sysroot / "lib" / TRIPLET):
        for path in libraries.glob("lib*.so*"):
            if path.name.startswith(_RUN_WITH + _RUN_WITH_TOO):
                (run_with / path.name).symlink_to(os.path.relpath(path, run_with))


def _write_commands(root: Path) -> None:
    """The commands in ``bin``: each sees the toolchain's own tools, and no other."""
    commands = root / "bin"
    commands.mkdir()
    run = 'export LD_LIBRARY_PATH="$here/../sysroot/run"\n'
    tool = f'exec "$here/../sysroot/usr/bin/{TRIPLET}-'
    scripts = {}
    for name in ("gcc", "g++", "cpp"):
        version = next((root / "sysroot/usr/bin").glob(f"{TRIPLET}-{name}-[0-9]*")).name
        version = version.removeprefix(f"{TRIPLET}-")
        path = 'export PATH="$here:$PATH"\n'
        scripts[name] = f'{run}{path}{_MAPPED}{tool}{version}" --sysroot="$here/../sysroot" "$@"\n'
    scripts["cc"], scripts["c++"] = scripts["gcc"], scripts["g++"]
    for name in _BINUTILS:
        scripts[name] = f'{run}{tool}{name}" "$@"\n'
    # nvcc looks for its programs on PATH first, whatever toolkit they are of.
    scripts["nvcc"] = (
        'export PATH="$here/../cuda/bin:$here:$PATH"\n'
        'exec "$here/../cuda/bin/nvcc" -ccbin "$here/g++" -cudadevrt none '
        '-Wno-deprecated-gpu-targets "$@"\n'
    )
    for name, text in scripts.items():
        folder.script(commands / name, text)
    for program in (root / "cuda" / "bin").iterdir():
        if program.is_file() and os.access(program, os.X_OK) and program.name not in scripts:
            (commands / program.name).symlink_to(os.path.relpath(program, commands))


def _complete_libraries(root: Path) -> None:
    """What a linker looks for and wheels leave out.

    Names without a version; the driver's library, of which a program needs only the names; the
    static runtime, for which the shared one stands, as the programs built here use the wheels' own
    libraries. The device runtime is an empty archive that only the host's linker sees: kernels
    that launch kernels do not link.
    """
    libraries = root / "cuda" / "lib64"
    for path in sorted(libraries.glob("lib*.so.*")):
        plain = libraries / f"{path.name.partition('.so.')[0]}.so"
        if not plain.exists():
            plain.symlink_to(path.name)
    (libraries / "libcudart_static.a").write_text("INPUT ( -lcudart )\n", encoding="utf-8")
    _run([str(root / "bin" / "ar"), "rcD", str(libraries / "libcudadevrt.a")])
    header = (root / "cuda" / "include" / "cuda.h").read_text(encoding="utf-8", errors="replace")
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", header)))
    assembly = ".text\n" + "".join(
        f".globl {name}\n.type {name}, @function\n{name}: ret\n" for name in names
    )
    assembly += '.section .note.GNU-stack,"",@progbits\n'
    stubs = libraries / "stubs"
    stubs.mkdir()
    command = [str(root / "bin" / "gcc"), "-shared", "-nostdlib", "-x", "assembler", "-"]
    command += ["-Wl,-soname,libcuda.so.1", "-o", str(stubs / "libcuda.so")]
    _run(command, assembly)


def _run(command: list[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise smoke.cannot_run(done.stderr or done.stdout)


def _content(toolchain: Toolchain) -> dict[str, Any]:
    packages = (*toolchain.host.packages, *toolchain.packages)
    return {
        "source": "pinned",
        "digest": toolchain.digest,
        "nvcc": toolchain.nvcc,
        "gcc": toolchain.host.gcc,
        "glibc": toolchain.host.glibc,
        "packages": [
            {"name": item.name, "version": item.version, "sha256": item.sha256} for item in packages
        ],
        "wheels": [
            {"name": item.package, "version": item.version, "sha256": item.sha256}
            for item in toolchain.wheels
        ],
    }
