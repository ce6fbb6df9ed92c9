"""The environment variables that a build sees: those of the toolchain, and none of the person's."""

from __future__ import annotations

from pathlib import Path

ROOT = "LEGACY_CUDA_BUILD_ROOT"
"""The variable with the folder of a build: compiled paths below it begin with :data:`MAPPED`."""

RELATIVE = "LEGACY_CUDA_BUILD_RELATIVE"
"""The variable with what stands for :data:`ROOT` at the beginning of a relative path, such as
``../``, where a program between (ccache) makes paths relative."""

MAPPED = "/build"

EPOCH = 315532800
"""1980-01-01, the first day that a ZIP file can name: the date of everything that is built."""

SYSTEM = "/usr/bin:/bin"  # sh, sed and the like; the toolchain's own commands come first


def variables(toolchain: Path, scratch: Path, root: Path) -> dict[str, str]:
    """A build's whole environment.

    Flags, search paths, proxies and locales that a person has set are not in it, so that they
    cannot change what is built. ``scratch`` is a folder for temporary files, and the home. What is
    compiled below ``root`` comes out the same in any folder, but for the names of temporary files
    in the symbols that ``strip`` removes.
    """
    commands = toolchain / "bin"
    return {
        ROOT: str(root),
        "PATH": f"{commands}:{SYSTEM}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "GIT_DIR": "/dev/null",  # sources are of no repository, whatever folder they lie below
        "CC": str(commands / "gcc"),
        "CXX": str(commands / "g++"),
        "CUDACXX": str(commands / "nvcc"),
        "CUDAHOSTCXX": str(commands / "g++"),
        "CUDA_HOME": str(toolchain / "cuda"),
        "CUDA_PATH": str(toolchain / "cuda"),
    }
