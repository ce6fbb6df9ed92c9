"""tools/bootstrap.py: an environment for the tool itself, where there is only Python."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a cache of its own and nothing of the person's settings."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in list(os.environ):
        if name.startswith(("UV_", "PIP_", "XDG_")):
            monkeypatch.delenv(name)
    for name, value in tiny.clean_variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    return module


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, bootstrap: ModuleType) -> Iterator[tiny.Index]:
    with tiny.serve(tiny.make_stack()) as served:
        monkeypatch.setenv("UV_DEFAULT_INDEX", served.simple)
        monkeypatch.setenv("PIP_INDEX_URL", served.simple)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield served


def requirements(folder: Path, index: tiny.Index, wrong: bool = False) -> Path:
    path = folder / "requirements.txt"
    lines = [
        f"{wheel.package}=={wheel.version} \\\n"
        f"    --hash=sha256:{'0' * 64 if wrong else wheel.sha256}\n"
        for wheel in index.wheels
    ]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def uv_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import uv

    folder = Path(uv.find_uv_bin()).parent
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("uv_on_path")
def test_an_environment_is_made_once(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pins = requirements(tmp_path, index)
    python = bootstrap.environment(pins)
    assert "first run" in capfd.readouterr().err
    assert python.parents[1].stat().st_mode & 0o777 == 0o755
    program = "import legacy_cuda, torch, small; print(legacy_cuda.__file__)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "python" / "src" / "legacy_cuda" / "__init__.py")
    asked = len(index.asked)
    assert bootstrap.environment(pins) == python
    assert capfd.readouterr().err == "" and len(index.asked) == asked
    assert [path.name for path in python.parents[2].iterdir()] == [python.parents[1].name]


@pytest.mark.usefixtures("uv_on_path")
def test_other_pins_are_another_environment(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path
) -> None:
    pins = requirements(tmp_path, index)
    first = bootstrap.environment(pins)
    index.wheels.pop()
    assert bootstrap.environment(requirements(tmp_path, index)) != first
    assert first.exists()


@pytest.mark.usefixtures("uv_on_path")
def test_a_wrong_sha256_leaves_nothing(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path
) -> None:
    with pytest.raises(bootstrap.BootstrapError, match="could not be installed"):
        bootstrap.environment(requirements(tmp_path, index, wrong=True))
    assert list((bootstrap.cache() / "tool").iterdir()) == []


@pytest.mark.usefixtures("uv_on_path")
def test_a_python_that_is_gone_is_made_anew(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path
) -> None:
    pins = requirements(tmp_path, index)
    python = bootstrap.environment(pins)
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert bootstrap.environment(pins) == python
    assert python.exists()


@pytest.mark.usefixtures("uv_on_path")
def test_what_dead_runs_left_goes_after_a_day(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path
) -> None:
    folder = bootstrap.cache() / "tool"
    for name, age in ((".new-dead", 90000), (".new-alive", 1000)):
        (folder / name / "bin").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    python = bootstrap.environment(requirements(tmp_path, index))
    names = {path.name for path in folder.iterdir()}
    assert names == {".new-alive", python.parents[1].name}


@pytest.mark.parametrize("why", ["a file in the way", "no home"])
def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bootstrap: ModuleType, why: str
) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("")
    if why == "no home":

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("LEGACY_CUDA_CACHE")
        monkeypatch.setattr(bootstrap.Path, "home", nobody)
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(bootstrap.BootstrapError, match="the cache folder") as caught:
        bootstrap.environment(pins)
    assert "LEGACY_CUDA_CACHE" in caught.value.next_step
    assert str(caught.value).splitlines()[-1].startswith("  -> ")


@pytest.mark.parametrize(
    ("message", "step"),
    [
        ("write: No space left on device", "free space"),
        ("Permission denied (os error 13)", "LEGACY_CUDA_CACHE"),
        ("Hash mismatch for `small`", "a mirror or a proxy changes files"),
        ("dns error", "check the network"),
        ("", "check the network"),
    ],
)
def test_every_failure_has_a_next_step(bootstrap: ModuleType, message: str, step: str) -> None:
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap._run("it could not be", ["sh", "-c", 'echo "$0" >&2; exit 7', message])
    assert str(caught.value).startswith("it could not be\n  ")
    assert step in caught.value.next_step
    assert message in caught.value.why and caught.value.why


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_the_pins_of_the_checkout_have_hashes(bootstrap: ModuleType, name: str) -> None:
    text = (ROOT / "python" / name).read_text()
    blocks = [block for block in text.replace("\\\n", " ").splitlines() if "==" in block]
    assert any(block.startswith("uv==") for block in blocks)
    assert all("--hash=sha256:" in block for block in blocks)


def test_uv_comes_through_pip_with_its_pin_alone(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this Python has no pip")
    script = b"#!/bin/sh\necho tiny uv\n"
    wheel = tiny.make_wheel("uv", "9.9.9", {"uv-9.9.9.data/scripts/uv": script})
    index.wheels.append(wheel)
    pins = tmp_path / "pins.txt"
    pins.write_text(
        "small==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
        f"uv==9.9.9 \\\n    --hash=sha256:{wheel.sha256} \\\n    --hash=sha256:{'1' * 64}\n"
        "    # via legacy-cuda\nzzz==1\n"
    )
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("uv"):
        pytest.skip("uv is installed for the whole system")
    program = bootstrap.find_uv(pins)
    assert program.is_relative_to(bootstrap.cache())
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == "tiny uv\n"
    assert {name for name, _ in index.asked} == {wheel.name}
    index.wheels.clear()
    assert bootstrap.find_uv(pins) == program
    assert [path.name for path in (bootstrap.cache() / "tool").iterdir()] == [program.parts[-3]]
    newer = tiny.make_wheel("uv", "9.9.10", {"uv-9.9.10.data/scripts/uv": script})
    index.wheels.append(newer)
    pins.write_text(f"uv==9.9.10 \\\n    --hash=sha256:{newer.sha256}\n")
    assert bootstrap.find_uv(pins) != program, "another pin is another uv"


def test_uv_with_another_sha256(
    bootstrap: ModuleType, index: tiny.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("this Python has no pip")
    index.wheels.append(tiny.make_wheel("uv", "9.9.9", {"uv/__init__.py": b""}))
    pins = tmp_path / "pins.txt"
    pins.write_text(f"uv==9.9.9 \\\n    --hash=sha256:{'1' * 64}\n")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if shutil.which("uv"):
        pytest.skip("uv is installed for the whole system")
    with pytest.raises(bootstrap.BootstrapError, match="could not be had") as caught:
        bootstrap.find_uv(pins)
    assert "a mirror or a proxy" in caught.value.next_step
    assert list((bootstrap.cache() / "tool").iterdir()) == []


def test_requirements_without_uv(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    pins = tmp_path / "pins.txt"
    pins.write_text("uvloop==1.0\n")
    with pytest.raises(bootstrap.BootstrapError, match="does not pin uv"):
        bootstrap.find_uv(pins)


def without_pip(folder: Path) -> Path:
    """A Python that has no pip, as Debian ships it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def test_neither_pip_nor_apt(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(without_pip(tmp_path / "bare")))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(bootstrap.BootstrapError, match="nothing to install") as caught:
        bootstrap.find_pip(tmp_path)
    assert "python3-pip" in str(caught.value)


def test_pip_out_of_the_distributions_package(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt-get is a stand-in that delivers a package made here; dpkg-deb is the real one."""
    real = shutil.which("dpkg-deb")
    if real is None:
        pytest.skip("dpkg-deb is not installed")
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: python3-pip-whl\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost>\nDescription: for a test\n"
    )
    wheels = package / "usr" / "share" / "python-wheels"
    wheels.mkdir(parents=True)
    (wheels / "pip-1-py3-none-any.whl").write_bytes(b"")
    deb = tmp_path / "made.deb"
    subprocess.run([real, "--build", package, deb], check=True, capture_output=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "dpkg-deb").symlink_to(real)
    apt = programs / "apt-get"
    apt.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/asked\n'
        f'case "$*" in *update*) : > {tmp_path}/lists;; *download*)'
        f" [ -e {tmp_path}/lists ] && /bin/cp {deb} python3-pip-whl_1_all.deb;; esac\n"
    )
    apt.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(without_pip(tmp_path / "bare")))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command, variables = bootstrap.find_pip(scratch)
    assert command[1:] == ["-m", "pip"]
    assert Path(variables["PYTHONPATH"]).name == "pip-1-py3-none-any.whl"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["python3-pip-whl", "update", "python3-pip-whl"]
    assert all(str(scratch) in line for line in asked), "nothing of the system is written to"


def test_a_python_that_is_too_old(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 99))
    with pytest.raises(bootstrap.BootstrapError, match="too old"):
        bootstrap.environment(tmp_path / "requirements.txt")


def test_the_cache_is_the_tools_own(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from legacy_cuda import paths

    for variables in (
        {"LEGACY_CUDA_CACHE": str(tmp_path / "own")},
        {"LEGACY_CUDA_CACHE": "", "XDG_CACHE_HOME": str(tmp_path / "xdg")},
        {"LEGACY_CUDA_CACHE": "", "XDG_CACHE_HOME": ""},
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert bootstrap.cache() == paths.cache_directory()


@pytest.mark.usefixtures("index")
def test_the_script_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./legacy-cuda with an empty index: exit code 3, no traceback."""
    done = subprocess.run(
        [sys.executable, ROOT / "legacy-cuda", "gpus"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "error: " in done.stderr and "->" in done.stderr and "Traceback" not in done.stderr


def test_nothing_of_the_working_folder_is_run(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "random", "queue", "legacy_cuda"):
        (tmp_path / f"{name}.py").write_text('raise SystemExit("it was run")\n')
    started: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "start", lambda _, arguments: started.append(arguments))
    monkeypatch.setitem(sys.modules, "bootstrap", bootstrap)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["legacy-cuda", "gpus", "--json"])
    runpy.run_path(str(ROOT / "legacy-cuda"))
    (arguments,) = started
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"schema": "legacy-cuda/gpus/' in done.stdout
