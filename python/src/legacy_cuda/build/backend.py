"""A build back end (PEP 517) at work: in its own environment, seeing nothing of the person's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from legacy_cuda.catalog.locks import Lock
from legacy_cuda.errors import SurroundingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# ninja's status, its own form: "[12/201] ..."
_STATUS = re.compile(r"\[(\d+)/(\d+)\] (.*)")
_SOURCE = re.compile(r"([\w.+-]+\.(?:cu|cpp|cc|cxx|c))(?:\.o)?(?:\s|$)")
_SETUPTOOLS = "setuptools.build_meta:__legacy__"  # PEP 517, where pyproject.toml names none
_SUPERVISE = Path(__file__).with_name("supervise.py")

Tell = Callable[[str, int, int], None]
"""Called with the file that is compiled, and how many steps of how many are done."""


class BackendError(RuntimeError):
    """The back end failed; the text is the end of what it printed."""


def build_system(source: Path) -> tuple[str, list[str], list[str]]:
    """The back end, its ``backend-path`` and what it requires (PEP 518, PEP 517).

    Raises:
        BackendError: pyproject.toml cannot be read.
    """
    path = source / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, OSError) as error:
        raise BackendError(f"pyproject.toml cannot be read: {error}") from error
    system: dict[str, Any] = table.get("build-system", {})
    requires = system.get("requires", ["setuptools"])
    return system.get("build-backend", _SETUPTOOLS), system.get("backend-path", []), requires


def missing(requires: list[str], lock: Lock, python: str) -> list[str]:
    """Requirements of a build that the lock does not meet."""
    versions = {package.name: package.version for package in lock.packages}
    unmet = []
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(text)
    return unmet


def build_wheel(
    source: Path,
    python: Path,
    out: Path,
    settings: Mapping[str, str],
    variables: Mapping[str, str],
    log: Path,
    keep_open: int,
    tell: Tell,
) -> Path:
    """Have the back end of the sources build a wheel into ``out``; its path.

    ``python`` is that of an environment with what the back end requires. What is printed goes to
    ``log``. A lock on the descriptor ``keep_open`` is held until the last process of the build has
    ended; they all end when this one does, even if it is killed.

    Raises:
        BackendError: it failed.
    """
    from pyproject_hooks import BackendUnavailable, BuildBackendHookCaller, HookMissing

    backend, path, _ = build_system(source)
    begin = log.stat().st_size if log.is_file() else 0
    caller = BuildBackendHookCaller(
        str(source),
        backend,
        path,
        runner=partial(_run, variables=variables, log=log, keep_open=keep_open, tell=tell),
        python_executable=str(python),
    )
    try:
        name = caller.build_wheel(str(out), config_settings=dict(settings))
    except (subprocess.CalledProcessError, BackendUnavailable, HookMissing) as error:
        raise BackendError(_end(log, begin)) from error
    return out / name


def _run(
    command: Sequence[str],
    cwd: str | None = None,
    extra_environ: Mapping[str, str] | None = None,
    *,
    variables: Mapping[str, str],
    log: Path,
    keep_open: int,
    tell: Tell,
) -> None:
    """Run the hook; everything it starts ends with it."""
    with log.open("a", encoding="utf-8", errors="backslashreplace") as written:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_SUPERVISE), str(os.getpid()), *command],
            cwd=cwd,
            env={**variables, **(extra_environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
            pass_fds=(keep_open,),
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                written.write(line)
                if status := _STATUS.match(line):
                    written.flush()
                    found = _SOURCE.findall(status[3])
                    tell(found[-1] if found else "", int(status[1]), int(status[2]))
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends everything below it
            process.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _end(log: Path, begin: int = 0) -> str:
    """The end of a log, of which what comes before byte ``begin`` is of an earlier run: from the
    first error of a compiler on where there is one."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    marks = [at for at, line in enumerate(lines) if re.search(r"\b(error|FAILED)\b", line)]
    start = max(marks[0], len(lines) - 400) if marks else len(lines) - 15
    return "\n".join(line[:300] for line in lines[max(0, start) : max(0, start) + 15])


def ensure_python(python: str, interpreter: str) -> None:
    """Have uv download a Python where none on the machine will do: before gigabytes of other things
    are. Arguments as for :func:`make_environment`.

    Raises:
        SurroundingsError: uv could not.
    """
    if interpreter == python:
        with tempfile.TemporaryDirectory() as folder:
            _make_venv(python, interpreter, Path(folder) / "venv")


def make_environment(lock: Lock, python: str, interpreter: str, target: Path) -> Path:
    """A virtual environment with the files of a lock, by their sha256; its Python.

    ``python`` is a version and ``interpreter`` its path, or the version again where none on the
    machine will do, so that uv takes one of its own.

    Raises:
        SurroundingsError: uv could not make it.
    """
    requirements = target.with_suffix(".txt")
    requirements.write_text(lock.requirements(python), encoding="utf-8")
    executable = target / "bin" / "python"
    _make_venv(python, interpreter, target)
    sync = ["pip", "sync", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    _uv(
        [*sync, "--python", str(executable), str(requirements)],
        "what the build needs could not be installed",
        "check the network and run again",
    )
    return executable


def _make_venv(python: str, interpreter: str, target: Path) -> None:
    make = ["venv", "--quiet", "--clear", "--python", interpreter, str(target)]
    if interpreter != python:
        _uv(make, f"no environment of {interpreter} could be made for the build", "")
        return
    _uv(
        [*make, "--managed-python"],
        f"Python {python}, which the build needs, could not be had",
        f"check the network and run again, or install Python {python} with its headers",
    )


def _uv(words: list[str], what: str, next_step: str) -> None:
    from legacy_cuda import fetch

    variables = fetch.uv_variables()
    if "--managed-python" in words:
        variables.pop("UV_PYTHON_PREFERENCE", None)  # uv refuses it beside that option
    command = [fetch.uv_binary(), *fetch.NO_PROJECT, *words]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SurroundingsError(what, done.stderr.strip(), next_step)
