"""``up`` with a tiny stack: the real uv, a real index on loopback, real files; no network."""

from __future__ import annotations

import dataclasses
import fcntl
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny

from legacy_cuda import environment
from legacy_cuda.build import backend
from legacy_cuda.catalog import find_engine, find_gpu, locks
from legacy_cuda.catalog.recipes import find_recipe
from legacy_cuda.cli import up
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.resolve import Stack, resolve


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tiny.Box, Any]]:
    """A box in which the environment has been made; tests that share it only look."""
    with tiny.box(tmp_path_factory.mktemp("made")) as box:
        done = box.run("up", "p40", "--json")
        assert done.returncode == 0, done.stderr
        yield box, json.loads(done.stdout)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tiny.Box]:
    with tiny.box(tmp_path) as fresh:
        yield fresh


@pytest.fixture
def ready(box: tiny.Box) -> tiny.Box:
    """A box of one's own with the environment made."""
    done = box.run("up", "p40")
    assert done.returncode == 0, done.stderr
    return box


def beside(target: Path) -> list[str]:
    """What lies beside an environment, its lock aside."""
    lock = f".{target.name}.legacy-cuda-lock"
    if not target.parent.exists():
        return []
    names = {path.name for path in target.parent.iterdir()}
    return sorted(names - {target.name, lock})


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every file with its inode and time of change: the same only if nothing was touched."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            status = path.lstat()
            found[str(path.relative_to(root))] = (status.st_ino, status.st_mtime_ns)
    return found


def p40() -> Stack:
    answer = resolve([find_gpu("p40")], find_engine("torch"))
    assert isinstance(answer, Stack)
    return dataclasses.replace(answer, facts=dataclasses.replace(answer.facts, patched=()))


def no_traceback(done: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in done.stderr + done.stdout


# ------------------------------------------------------------------------------- it is made


def test_it_is_made_and_proven(made: tuple[tiny.Box, Any]) -> None:
    box, document = made
    assert document["schema"] == "legacy-cuda/up/1"
    assert (document["state"], document["good"]) == ("made", True)
    (verdict,) = document["audit"]
    assert (verdict["capability"], verdict["outcome"]) == ("6.1", "runs")
    (library,) = verdict["libraries"]
    assert library["path"] == "torch/lib/libtorch_cuda.so"
    assert library["distribution"] == "torch 2.7.1"
    assert (library["containers"], library["sass"]) == (2, 2)
    assert document["arch_flags"]["agree"]
    assert document["arch_flags"]["said"] == ["sm_50", "sm_60", "sm_61", "sm_70"]
    assert document["gpu_run"] == "not run"
    assert document["packages"] == {"torch": "2.7.1", "numpy": "2.2.6", "small": "1.0"}
    manifest = json.loads((box.target / "legacy-cuda.json").read_text())
    assert manifest["schema"] == environment.SCHEMA
    assert environment.fingerprint(box.target) == manifest["fingerprint"]
    assert beside(box.target) == []
    done = subprocess.run(
        [
            box.target / "bin" / "python",
            "-c",
            "import torch, numpy, small; print(torch.__version__)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2.7.1+cu126\n"


def test_the_report_tells_what_was_seen(made: tuple[tiny.Box, Any]) -> None:
    box, _ = made
    text = (box.target / "report.html").read_text()
    assert "Tesla P40" in text and "on a GPU: not run" in text and "libtorch_cuda.so" in text


def test_it_is_made_once(made: tuple[tiny.Box, Any]) -> None:
    box, _ = made
    before, asked = tree(box.target), len(box.index.asked)
    begin = time.monotonic()
    done = box.run("up", "p40", "--json")
    assert time.monotonic() - begin < 5
    assert json.loads(done.stdout)["state"] == "unchanged since it was made"
    assert done.returncode == 0
    assert tree(box.target) == before
    assert len(box.index.asked) == asked


def test_sizes_are_named_before_and_seconds_after(box: tiny.Box) -> None:
    done = box.run("up", "p40", "--json")
    assert re.search(r"download \d+ (Ki)?B .*on disk \d+ (Ki)?B", done.stderr)
    assert f"to {box.target}" in done.stderr.replace("~", str(box.home))
    document = json.loads(done.stdout)
    assert 0 < document["examine_seconds"] < document["seconds"]


def test_what_differs_is_told(made: tuple[tiny.Box, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    box, _ = made
    monkeypatch.setattr(locks, "LOCK_DIRECTORY", box.locks)
    manifest = environment.read_manifest(box.target)
    assert manifest is not None
    plan = environment.plan(p40(), target=box.target)
    assert environment.differences(manifest, plan) == []
    assert environment.stale(manifest, plan) == ""
    anew: list[tuple[str, Any, str]] = [
        ("lock", {"name": tiny.LOCK, "digest": "0"}, "has changed"),
        ("lock", {"name": "torch-1", "digest": "0"}, "torch-1"),
        ("stack", "volta", "volta stack"),
        ("python", "3.9", "Python 3.9"),
    ]
    for key, value, said in anew:
        (line,) = environment.differences({**manifest, key: value}, plan)
        assert said in line
    again: list[tuple[str, Any, str]] = [
        ("gpus", ["p4"], "made for p4"),
        ("engine", "other", "with other"),
        ("tool", "0", "legacy-cuda 0"),
        ("path", "/elsewhere", "moved here from /elsewhere"),
        ("fingerprint", "0", "has changed"),
    ]
    for key, value, said in again:
        changed = {**manifest, key: value}
        assert environment.differences(changed, plan) == []
        assert said in environment.stale(changed, plan)
    assert environment.stale({**manifest, "gpus": ["p40", "p40"]}, plan) == ""
    elsewhere = dataclasses.replace(plan, target=box.home)
    (line,) = environment.differences(manifest, elsewhere)
    assert "its Python is gone" in line


# ------------------------------------------------------- another environment is there already


def kept(box: tiny.Box, *arguments: str) -> str:
    """The message of a run that has to refuse to replace the environment."""
    before = tree(box.target)
    done = box.run("up", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--recreate" in done.stderr and "--path" in done.stderr
    assert "packages you added" in done.stderr
    no_traceback(done)
    assert tree(box.target) == before
    return done.stderr


def edit_manifest(box: tiny.Box, **changes: Any) -> None:
    path = box.target / "legacy-cuda.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_lock_replaces_nothing_by_itself(ready: tiny.Box) -> None:
    (site(ready) / "mine.py").write_text("")
    index = ready.index
    index.wheels[2] = tiny.make_wheel("small", "1.1", {"small/__init__.py": b""})
    tiny.write_lock(ready.locks, index.wheels)
    assert "the lock torch-2.7.1 has changed" in kept(ready, "p40")
    done = ready.run("up", "p40", "--recreate", "--json")
    assert json.loads(done.stdout)["packages"]["small"] == "1.1"
    assert not (site(ready) / "mine.py").exists()


def test_another_stack_replaces_nothing_by_itself(ready: tiny.Box) -> None:
    text = (ready.locks / f"{tiny.LOCK}.toml").read_text()
    (ready.locks / "torch-2.0.1.toml").write_text(text.replace(tiny.LOCK, "torch-2.0.1"))
    message = kept(ready, "k80", "--path", str(ready.target), "--python", "3.10")
    assert "pascal stack (for p40)" in message and "kepler" in message


def test_more_of_the_same_gpu_changes_nothing(ready: tiny.Box) -> None:
    before = tree(ready.target)
    for gpus in (["2xp40"], ["p40", "p40"], ["p40"]):
        done = ready.run("up", *gpus)
        assert (done.returncode, "unchanged" in done.stdout) == (0, True)
    assert tree(ready.target) == before


def test_other_gpus_of_the_same_lock_keep_the_packages(ready: tiny.Box) -> None:
    (site(ready) / "mine.py").write_text("")
    where = ("--path", str(ready.target))
    done = ready.run("up", "p40", "gtx1060-6gb", "--json", *where)
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (0, "examined again")
    assert sorted(document["gpus"]) == ["gtx1060-6gb", "p40"]
    assert "was made for p40" in done.stderr
    assert (site(ready) / "mine.py").exists()
    assert "unchanged" in ready.run("up", "gtx1060-6gb", "p40", *where).stdout


def test_another_version_of_the_tool_keeps_the_packages(ready: tiny.Box) -> None:
    (site(ready) / "mine.py").write_text("")
    edit_manifest(ready, tool="0.0")
    done = ready.run("up", "p40", "--json")
    assert json.loads(done.stdout)["state"] == "examined again"
    assert "examined by legacy-cuda 0.0" in done.stderr
    assert (site(ready) / "mine.py").exists()
    assert "unchanged" in ready.run("up", "p40").stdout


def test_a_python_that_is_gone(ready: tiny.Box) -> None:
    python = ready.target / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    message = kept(ready, "p40")
    assert "its Python is gone" in message and "/nowhere/python3" in message
    done = ready.run("up", "p40", "--json", "--recreate")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "made")


def test_the_python_of_an_environment_is_kept(ready: tiny.Box) -> None:
    edit_manifest(ready, python="3.9")  # of an older catalog, which still had wheels for it
    assert "Python 3.9" in kept(ready, "p40")
    other = next(version for version in tiny.PYTHONS if version != tiny.PYTHON)
    edit_manifest(ready, python=tiny.PYTHON)
    assert f"it has Python {tiny.PYTHON}, not {other}" in kept(ready, "p40", "--python", other)


def test_a_moved_environment_is_brought_up_to_date(ready: tiny.Box) -> None:
    moved = ready.home / "moved to here"
    ready.target.rename(moved)
    done = ready.run("up", "p40", "--json", "--path", str(moved))
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (0, "examined again")
    assert "was moved here from" in done.stderr
    assert document["path"] == str(moved)
    for name in ("activate", "report.html", "legacy-cuda.json"):
        assert str(ready.target) not in (moved / name).read_text(), name
    assert "unchanged" in ready.run("up", "p40", "--path", str(moved)).stdout


# ---------------------------------------------------------------- it is looked at again


def site(box: tiny.Box) -> Path:
    return environment._site_packages(box.target)


def replace(path: Path, text: str) -> None:
    """Write a file anew, so that uv's cache keeps the old one."""
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("what", ["changed", "missing"])
def test_a_file_that_is_not_as_in_the_lock_is_noticed(ready: tiny.Box, what: str) -> None:
    path = site(ready) / "small" / "part7.py"
    if what == "changed":
        replace(path, "N = 8\n")
    else:
        path.unlink()
    done = ready.run("up", "p40")
    assert done.returncode == 1
    assert "has changed since it was made" in done.stderr
    assert "small/part7.py" in done.stdout and "--recreate" in done.stdout
    again = ready.run("up", "p40", "--json")
    assert again.returncode == 1, "a second look must not forget it"
    assert json.loads(again.stdout)["altered"] == ["small/part7.py"]
    assert "small/part7.py" in (ready.target / "report.html").read_text()
    healed = ready.run("up", "p40", "--recreate", "--json")
    assert healed.returncode == 0
    assert json.loads(healed.stdout)["altered"] == []


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_file_altered_in_the_cache_too_is_not_installed_again(tmp_path: Path, size: str) -> None:
    """Small files are read at every making, large ones with --recreate."""
    with tiny.box(tmp_path, tiny.make_stack(filler=2 << 20)) as box:
        assert box.run("up", "p40").returncode == 0
        name = "small/part7.py" if size == "small" else "torch/filler.bin"
        package = name.partition("/")[0]
        path = site(box) / name
        if path.stat().st_nlink < 2:
            pytest.skip("uv copies or clones on this file system: the cache cannot be reached")
        with path.open("a") as file:  # in place: the same bytes as in uv's cache
            file.write("N = 8\n")
        assert box.run("up", "p40").returncode == 1
        before = tree(box.target)
        second = box.run("up", "p40", "--path", str(box.home / "second"))
        assert second.returncode == (3 if size == "small" else 0)
        done = box.run("up", "p40", "--recreate")
        for failure in (done, second)[: 2 if size == "small" else 1]:
            assert failure.returncode == 3
            assert f"uv's cache is damaged: files of {package} are" in failure.stderr
            assert name in failure.stderr
        assert tree(box.target) == before
        (cure,) = (
            line.partition("again: ")[2] for line in done.stderr.splitlines() if "again: " in line
        )
        assert Path(cure.split()[0]).is_absolute() and cure.endswith(f"uv cache clean {package}")
        bare = {**box.variables, "PATH": "/usr/bin:/bin"}
        subprocess.run(cure, shell=True, check=True, env=bare, capture_output=True)
        asked = len(box.index.asked)
        assert box.run("up", "p40", "--recreate").returncode == 0
        assert {file.partition("-")[0] for file, _ in box.index.asked[asked:]} == {package}


def test_a_place_without_packages_is_said_so(ready: tiny.Box) -> None:
    shutil.rmtree(site(ready))
    done = ready.run("up", "p40")
    assert done.returncode == 3
    assert "is not a whole environment" in done.stderr and "--recreate" in done.stderr
    no_traceback(done)


def test_another_package_beside_is_audited_and_allowed(ready: tiny.Box) -> None:
    (site(ready) / "extra.py").write_text("")
    done = ready.run("up", "p40", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (0, "examined again")
    assert json.loads(ready.run("up", "p40", "--json").stdout)["state"].startswith("unchanged")


def test_a_library_for_other_gpus_is_noticed(ready: tiny.Box) -> None:
    one = tiny.builders.container(tiny.builders.entry(number=90))
    (site(ready) / "other.so").write_bytes(tiny.builders.library(one))
    done = ready.run("up", "p40")
    assert done.returncode == 1
    assert "does not run" in done.stdout and "other.so" in done.stdout


@pytest.mark.parametrize("name", ["activate", "report.html"])
def test_our_own_files_are_written_again(ready: tiny.Box, name: str) -> None:
    before = (ready.target / name).read_text()
    (ready.target / name).unlink()
    assert ready.run("up", "p40").returncode == 0
    assert (ready.target / name).exists()
    if name == "activate":
        assert (ready.target / name).read_text() == before


def test_torch_that_cannot_be_imported_is_a_verdict(ready: tiny.Box) -> None:
    (site(ready) / "torch" / "broken").write_text("")
    done = ready.run("up", "p40")
    assert done.returncode == 1
    assert "PyTorch is not usable: ImportError" in " ".join(done.stdout.split())
    assert "undefined symbol" in done.stdout


# ------------------------------------------------------------------------ verdicts of the whole


def test_arch_flags_that_disagree_are_a_verdict(tmp_path: Path) -> None:
    wheels = [tiny.make_torch(flags="sm_61 sm_90")]
    with tiny.box(tmp_path, wheels) as box:
        done = box.run("up", "p40")
        assert done.returncode == 1
        assert "NOT as audited" in done.stdout
        assert environment.read_manifest(box.target) is not None


def test_what_was_built_for_which_is_said_of_the_one_that_says_it() -> None:
    flags = {"said": ["sm_60", "sm_70"], "held": ["sm_60", "sm_70"], "agree": True}
    check = {"version": "2.7.1+cu126", "cuda": "12.6"}
    assert up._checked("PyTorch", check, flags) == (
        "PyTorch 2.7.1+cu126 (CUDA 12.6) is importable and says it was built for sm_60 sm_70: "
        "as audited"
    )
    check = {"version": "0.14.0+cu124.sm61", "cuda": "12.6", "torch": "2.7.1+cu126"}
    assert up._checked("vLLM", check, flags) == (
        "vLLM 0.14.0+cu124.sm61 is importable, with torch 2.7.1+cu126 (CUDA 12.6), which says it "
        "was built for sm_60 sm_70: as audited"
    )
    check, flags = {"version": "0.3.36"}, {"said": [], "held": ["sm_61"], "agree": None}
    assert up._checked("llama.cpp", check, flags) == "llama.cpp 0.3.36 is importable"


def test_a_stack_without_code_for_the_gpu_is_a_verdict(tmp_path: Path) -> None:
    with tiny.box(tmp_path, [tiny.make_torch(held=(75, 90))]) as box:
        done = box.run("up", "p40")
        assert done.returncode == 1
        assert "does not run" in done.stdout
        assert "does not run" in (box.target / "report.html").read_text()


def test_a_stack_without_torch_is_a_verdict(tmp_path: Path) -> None:
    only = tiny.make_wheel("small", "1.0", {"small.py": b""}, "py3-none-manylinux_2_17_x86_64")
    with tiny.box(tmp_path, [only]) as box:
        done = box.run("up", "p40")
        assert done.returncode == 1
        assert "PyTorch is not usable: ModuleNotFoundError" in " ".join(done.stdout.split())
        assert (box.target / "legacy-cuda.json").is_file()


def test_a_corrupt_library_is_not_installed(tmp_path: Path) -> None:
    cut = tiny.builders.library(tiny.builders.container(tiny.builders.entry()))[:-100]
    torch = tiny.make_torch()
    bad = tiny.make_wheel("bad", "1.0", {"bad/lib.so": cut})
    with tiny.box(tmp_path, [torch, bad]) as box:
        done = box.run("up", "p40")
        assert done.returncode == 3
        assert "bad/lib.so" in done.stderr
        assert not box.target.exists() and beside(box.target) == []


def device(name: str, capability: str, ran: bool = True) -> dict[str, Any]:
    return {"name": name, "capability": capability, "ran": ran}


def test_only_gpus_of_the_stack_are_judged() -> None:
    def said(*devices: dict[str, Any]) -> str:
        return environment.gpu_run({"devices": list(devices)}, {"6.1"})

    assert environment.gpu_run({}, {"6.1"}) == said() == "not run"
    assert said(device("A", "6.1")) == "ran on A"
    assert said(device("A", "6.1"), device("B", "7.5", False)) == "ran on A; other: B"
    assert said(device("B", "7.5", False)) == "not run; other: B"
    broken = {**device("A", "6.1", False), "error": "no kernel image"}
    assert said(device("B", "7.5"), broken) == "failed on A: no kernel image; other: B"
    assert said(device("A", "6.1", False)) == "failed on A: wrong result"


# ------------------------------------------------------------- what fails leaves nothing behind


def failed(box: tiny.Box, *arguments: str, **options: Any) -> str:
    """The message of a run that has to fail with 3 and to leave nothing behind."""
    before = tree(box.target)
    done = box.run("up", "p40", *arguments, **options)
    assert done.returncode == 3, done.stdout + done.stderr
    no_traceback(done)
    assert tree(box.target) == before
    assert beside(box.target) == []
    return done.stderr


def test_a_wrong_sha256(box: tiny.Box) -> None:
    tiny.write_lock(box.locks, box.index.wheels, wrong=frozenset({"small"}))
    message = failed(box)
    assert "does not have the sha256 of the lock" in message
    assert "small" in message and "UV_DEFAULT_INDEX" in message
    assert not box.target.exists()


def test_a_wrong_sha256_leaves_the_environment_that_is_there(ready: tiny.Box) -> None:
    tiny.write_lock(ready.locks, ready.index.wheels, wrong=frozenset({"small"}))
    failed(ready, "--recreate")
    tiny.write_lock(ready.locks, ready.index.wheels)
    assert "unchanged" in ready.run("up", "p40").stdout


def test_a_mirror_that_serves_another_file(box: tiny.Box) -> None:
    other = tiny.make_wheel("small", "1.0", {"small/__init__.py": b"import os\n"})
    box.index.lies[other.name] = other.data
    assert "sha256" in failed(box)


def test_an_index_that_cannot_be_reached(box: tiny.Box) -> None:
    dead = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple/"}
    assert "the package index cannot be reached" in failed(box, variables=dead)


def test_an_index_without_the_file(box: tiny.Box) -> None:
    box.index.gone.add(box.index.wheels[2].name)
    assert "small" in failed(box)
    box.index.gone.clear()
    assert box.run("up", "p40").returncode == 0


def test_a_download_that_breaks_off(box: tiny.Box) -> None:
    wheel = box.index.wheels[0]
    box.index.cuts[wheel.name] = [200] * 20
    assert "torch" in failed(box)
    box.index.cuts.clear()
    assert box.run("up", "p40").returncode == 0


def test_offline_with_an_empty_cache(box: tiny.Box) -> None:
    message = failed(box, "--offline")
    assert "uv's cache does not hold everything" in message and "without --offline" in message
    assert box.index.asked == []


def test_offline_with_a_full_cache(ready: tiny.Box) -> None:
    asked = len(ready.index.asked)
    assert ready.run("up", "p40", "--offline", "--recreate").returncode == 0
    assert len(ready.index.asked) == asked


@pytest.mark.parametrize("where", ["environment", "cache"])
def test_a_full_disk(tmp_path: Path, where: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    try:
        with tiny.box(tmp_path / "home", tiny.make_stack(filler=2 << 20)) as box:
            name = "LEGACY_CUDA_HOME" if where == "environment" else "UV_CACHE_DIR"
            variables = {name: str(disk)}
            target = disk / "p40" if where == "environment" else box.target
            done = box.run("up", "p40", variables=variables)
            assert done.returncode == 3
            assert "not enough room" in done.stderr and "--path" in done.stderr
            # What the lock says may be too little (here: 1 byte a file): then it fills up.
            wheels = [dataclasses.replace(wheel, unpacked=1) for wheel in box.index.wheels]
            tiny.write_lock(box.locks, wheels)
            done = box.run("up", "p40", variables=variables)
            assert done.returncode == 3, done.stdout
            assert "the disk is full" in done.stderr
            no_traceback(done)
            assert not target.exists() and beside(target) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("held", "free", "fits"),
    [
        (0, 50, False),
        (1, 50, False),
        (1, 200, True),
        (40, 50, False),
        (40, 70, True),
        (60, 1, True),
    ],
)
def test_room_is_looked_at_before(
    box: tiny.Box, monkeypatch: pytest.MonkeyPatch, held: int, free: int, fits: bool
) -> None:
    """Of 100 bytes: what uv's cache holds, what is free. A little in the cache is not enough."""
    monkeypatch.setattr(locks, "LOCK_DIRECTORY", box.locks)
    for name, value in box.variables.items():
        monkeypatch.setenv(name, value)
    if held:
        folder = box.home / "uv-cache" / "archive-v0" / "x"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * held)
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    plan = environment.plan(p40(), target=box.home / "p40")
    plan = dataclasses.replace(plan, unpacked=100)
    if fits:
        environment.check_space(plan)
    else:
        with pytest.raises(SurroundingsError, match="not enough room for the environment"):
            environment.check_space(plan)


# ----------------------------------------------------------------------------- places


def test_a_folder_that_cannot_be_written(box: tiny.Box) -> None:
    sealed = box.home / "sealed"
    sealed.mkdir()
    mounted = os.geteuid() == 0  # whom permissions do not stop
    if mounted:
        mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(sealed)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("root may write everywhere, and mounting is not allowed here")
    else:
        sealed.chmod(0o555)
    try:
        done = box.run("up", "p40", "--path", str(sealed / "p40"))
    finally:
        if mounted:
            subprocess.run(["umount", str(sealed)], check=True)
        else:
            sealed.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "cannot be made" in done.stderr and "--path" in done.stderr
    no_traceback(done)


def test_a_place_below_a_file(box: tiny.Box) -> None:
    (box.home / "file").write_text("mine")
    done = box.run("up", "p40", "--path", str(box.home / "file" / "p40"))
    assert done.returncode == 2
    no_traceback(done)


@pytest.mark.parametrize("recreate", [(), ("--recreate",)])
@pytest.mark.parametrize("kind", ["folder", "file", "other manifest", "no JSON", "a list"])
def test_what_is_not_ours_is_left_alone(
    box: tiny.Box, kind: str, recreate: tuple[str, ...]
) -> None:
    place = box.home / "place"
    contents = {
        "folder": ("precious", "data"),
        "other manifest": ("legacy-cuda.json", '{"schema": "somebody/else/1"}'),
        "no JSON": ("legacy-cuda.json", "{"),
        "a list": ("legacy-cuda.json", "[]"),
    }
    if kind == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / contents[kind][0]).write_text(contents[kind][1])
    before = tree(place) or place.read_text()
    done = box.run("up", "p40", "--path", str(place), *recreate)
    assert done.returncode == 2
    assert "was not made by legacy-cuda" in done.stderr
    assert (tree(place) or place.read_text()) == before
    no_traceback(done)


def test_an_environment_of_another_version(ready: tiny.Box) -> None:
    path = ready.target / "legacy-cuda.json"
    path.write_text(json.dumps({"schema": "legacy-cuda/environment/0"}))
    done = ready.run("up", "p40")
    assert done.returncode == 2
    assert "--recreate" in done.stderr
    assert ready.run("up", "p40", "--recreate").returncode == 0


def test_an_empty_folder_is_a_place(box: tiny.Box) -> None:
    place = box.home / "place with 'quotes' $HOME"
    place.mkdir()
    assert box.run("up", "p40", "--path", str(place)).returncode == 0
    assert environment.read_manifest(place) is not None
    script = '. "$0/activate" && printf %s "$VIRTUAL_ENV"'
    done = subprocess.run(["sh", "-c", script, str(place)], capture_output=True, text=True)
    assert done.stdout == str(place), done.stderr


def test_a_link_to_a_place_stays_a_link(box: tiny.Box) -> None:
    (box.home / "real").mkdir()
    link = box.home / "link"
    link.symlink_to("real")
    for _ in range(2):
        assert box.run("up", "p40", "--recreate", "--path", str(link)).returncode == 0
    assert link.is_symlink()
    assert environment.read_manifest(box.home / "real") is not None


def test_settings_of_the_project_one_stands_in_do_not_count(box: tiny.Box) -> None:
    project = box.home / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "1"\n[tool.uv.pip]\ntarget = "elsewhere"\n'
    )
    assert box.run("up", "p40", "--path", ".venv", cwd=project).returncode == 0
    assert not (project / "elsewhere").exists()


@pytest.mark.parametrize(
    "variable",
    [
        "UV_LINK_MODE=symlink",
        "UV_SYSTEM_PYTHON=1",
        "UV_NO_CACHE=1",
        "UV_EXCLUDE_NEWER=2000-01-01",
        "UV_CONSTRAINT=/nowhere/constraints.txt",
        "UV_OVERRIDE=/nowhere/overrides.txt",
        "UV_TORCH_BACKEND=no-such-backend",
        "UV_RESOLUTION=lowest",
        "UV_PRERELEASE=allow",
    ],
)
def test_settings_of_uv_that_must_not_matter(box: tiny.Box, variable: str) -> None:
    name, _, value = variable.partition("=")
    assert box.run("up", "p40", variables={name: value}).returncode == 0


# ------------------------------------------------------------------------ several at once


def test_the_second_of_two_says_who_holds_the_lock(box: tiny.Box) -> None:
    box.index.gate = threading.Event()
    first = subprocess.Popen(
        [*tiny.command(box.own), "up", "p40"],
        env=box.variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        limit = time.monotonic() + 30
        while not box.index.asked and time.monotonic() < limit:
            time.sleep(0.02)
        done = box.run("up", "p40")
        assert done.returncode == 3
        assert "is being made by another legacy-cuda" in done.stderr
        assert f"process {first.pid} holds" in done.stderr
    finally:
        box.index.gate.set()
        assert first.wait(60) == 0
    assert "unchanged" in box.run("up", "p40").stdout


def test_a_lock_file_alone_holds_nobody_up(box: tiny.Box) -> None:
    lock = box.target.with_name(".p40.legacy-cuda-lock")
    lock.parent.mkdir()
    lock.write_text("12345678")
    with environment.exclusive(box.target), lock.open() as file:
        assert file.read() == str(os.getpid())
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(SurroundingsError, match="another legacy-cuda"):
            environment.exclusive(box.target).__enter__()
    with environment.exclusive(box.target):
        pass


def test_what_a_killed_run_left_is_cleared(ready: tiny.Box) -> None:
    new = ready.target.with_name(".p40.legacy-cuda-new")
    old = ready.target.with_name(".p40.legacy-cuda-old")
    for folder in (new, old):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "half").write_text("")
    assert "unchanged" in ready.run("up", "p40").stdout
    assert beside(ready.target) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_the_new_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Also where the system cannot let two folders change places in one step."""
    if not at_once:
        monkeypatch.setattr(environment, "_exchange", lambda one, other: False)
    target, building = tmp_path / "p40", tmp_path / ".p40.legacy-cuda-new"
    for folder in (target, building):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    environment._swap(building, target)
    assert (target / "name").read_text() == building.name
    assert (building / "name").read_text() == "p40"
    assert beside(target) == [building.name]


def test_killed_between_the_two_renames(ready: tiny.Box) -> None:
    ready.target.rename(ready.target.with_name(".p40.legacy-cuda-old"))
    asked = len(ready.index.asked)
    assert "unchanged" in ready.run("up", "p40").stdout
    assert beside(ready.target) == []
    assert len(ready.index.asked) == asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_cleans_up(box: tiny.Box, number: signal.Signals) -> None:
    box.index.gate = threading.Event()
    run = subprocess.Popen(
        [*tiny.command(box.own), "up", "p40"],
        env=box.variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 30
    while not box.index.asked and time.monotonic() < limit:
        time.sleep(0.02)
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert "Traceback" not in errors
    assert not box.target.exists() and beside(box.target) == []


def kill_up() -> ModuleType:
    """tests/bench/kill_up.py as a module."""
    path = Path(__file__).parents[1] / "bench" / "kill_up.py"
    spec = importlib.util.spec_from_file_location("kill_up", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_up"] = module
    spec.loader.exec_module(module)
    return module


def test_killed_at_random_moments(tmp_path: Path) -> None:
    with tiny.box(tmp_path, tiny.make_stack(filler=1 << 20)) as box:
        command = [*tiny.command(box.own), "up", "p40"]
        summary = kill_up().campaign(command, box.variables, box.target, kills=10, seed=3)
    assert summary.good, summary
    assert sum(not kill.ended for kill in summary.kills) >= 5


# --------------------------------------------------------------------- Python and machine


def test_a_python_without_wheels(box: tiny.Box) -> None:
    done = box.run("up", "p40", "--python", "3.9")
    assert done.returncode == 2
    assert "3.10, 3.11, 3.12, 3.13" in done.stderr and "--python" in done.stderr
    assert not box.target.exists()


def test_a_python_that_is_not_on_the_machine(box: tiny.Box) -> None:
    other = next(version for version in tiny.PYTHONS if version != tiny.PYTHON)
    bare = {"PATH": "/nonexistent", "UV_PYTHON_INSTALL_DIR": str(box.home / "none")}
    done = box.run("up", "p40", "--python", other, variables=bare)
    if done.returncode == 0:
        pytest.skip(f"uv found a Python {other} all the same")
    assert done.returncode == 3
    assert f"no Python {other} on this machine" in done.stderr
    assert beside(box.target) == []


def unsupported(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> UserError:
    for name, value in facts.items():
        monkeypatch.setattr(platform, name, lambda value=value: value)
    with pytest.raises(UserError) as caught:
        environment.plan(p40())
    assert caught.value.exit_code == 2
    return caught.value


def test_machines_without_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        assert "Linux aarch64" in unsupported(patch, machine="aarch64").what
    with monkeypatch.context() as patch:
        assert "Darwin" in unsupported(patch, system="Darwin").what
    with monkeypatch.context() as patch:
        assert "glibc 2.5" in unsupported(patch, libc_ver=("glibc", "2.5")).what
    with monkeypatch.context() as patch:
        assert "no glibc" in unsupported(patch, libc_ver=("", "")).what


# ------------------------------------------------------------------------------ activation

SHELLS = ["sh", "bash", "dash", "zsh", "ksh", "busybox"]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("how", ["absolute", "beside", "below CDPATH"])
def test_activate(made: tuple[tiny.Box, Any], shell: str, how: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    command = [program, "sh"] if shell == "busybox" else [program]
    box, _ = made
    source = {
        "absolute": f'cd / && . "{box.target}/activate"',
        "beside": f'cd "{box.target}" && . ./activate && cd /',
        "below CDPATH": f'cd "{box.home}" && . environments/p40/activate && cd / >/dev/null',
    }[how]
    script = (
        f"{source}\n"
        'printf "%s\\n" "$VIRTUAL_ENV" "$TORCH_CUDA_ARCH_LIST" "$CUDAARCHS" "$CUDA_DEVICE_ORDER"'
        ' "$CUDA_MODULE_LOADING" "$CUDA_CACHE_MAXSIZE" "$(command -v python)"\n'
        "python -c 'import sys, torch; print(sys.prefix)'\n"
    )
    variables = {**box.variables}
    if how == "below CDPATH":
        variables["CDPATH"] = f".:{box.home}"
    done = subprocess.run(
        [*command, "-c", script], env=variables, capture_output=True, text=True, check=False
    )
    target = str(box.target)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        target,
        "6.1",
        "61",
        "PCI_BUS_ID",
        "LAZY",
        "4294967296",
        f"{target}/bin/python",
        target,
    ]


ACTIVE = (
    "TORCH_CUDA_ARCH_LIST",
    "CUDAARCHS",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "CUDA_CACHE_MAXSIZE",
)


def run_shell(shell: str, script: str, box: tiny.Box, **more: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    command = [program, "sh"] if shell == "busybox" else [program]
    variables = {
        name: value
        for name, value in box.variables.items()
        if name not in ACTIVE and not name.startswith("VIRTUAL_ENV")  # of whoever runs the tests
    }
    done = subprocess.run(
        [*command, "-c", script],
        env={**variables, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("times", [1, 2])
def test_activate_can_be_undone(made: tuple[tiny.Box, Any], shell: str, times: int) -> None:
    """All variables are as before, those that were set too, and nothing of ours is left."""
    box, _ = made
    source = f'. "{box.target}/activate"\n' * times
    look = "set | grep -e '^_*legacy_cuda' -e ^_LEGACY -e '^SCRIPT' -e ^deact; env | sort\n"
    given = {"CUDAARCHS": "70;75", "VIRTUAL_ENV_DISABLE_PROMPT": "1", "PATH": "/usr/bin:/bin"}
    before = run_shell(shell, look, box, **given)
    script = f"{source}deactivate\n{look}command -v deactivate _legacy_cuda_restore"
    after = run_shell(shell, script, box, **given)
    assert after == before and "CUDAARCHS=70;75" in after
    script = f'{source}printf "%s\\n" "$CUDAARCHS"; deactivate; {source}echo "$CUDAARCHS"'
    assert run_shell(shell, script, box) == "61\n61\n"


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_one_environment_after_another(ready: tiny.Box, shell: str) -> None:
    second = ready.home / "second"
    assert ready.run("up", "p40", "gtx1060-6gb", "--path", str(second)).returncode == 0
    script = f'''. "{ready.target}/activate"; . "{second}/activate"; echo "$VIRTUAL_ENV"
    deactivate; echo "${{VIRTUAL_ENV-none}} ${{CUDAARCHS-none}} $PATH"'''
    path = ready.variables["PATH"]
    assert run_shell(shell, script, ready).splitlines() == [str(second), f"none none {path}"]


def test_activate_in_a_moved_environment(ready: tiny.Box) -> None:
    """bash says which file it reads, so that the environment may be moved; dash does not."""
    moved = ready.home / "moved"
    ready.target.rename(moved)
    script = f'. "{moved}/activate"; python -c "import sys; print(sys.prefix)"; deactivate'
    assert run_shell("bash", script, ready).strip() == str(moved)
    dash = shutil.which("dash")
    if dash is None:
        pytest.skip("dash is not installed; bash passed")
    script = f'. "{moved}/activate"; echo "$? ${{VIRTUAL_ENV-none}} ${{CUDAARCHS-none}}"'
    done = subprocess.run(
        [dash, "-c", script], env=ready.variables, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 none none\n"
    assert f"no longer at {ready.target}" in done.stderr
    assert "source it with bash or zsh" in done.stderr
    assert ready.run("up", "p40", "--path", str(moved)).returncode == 0
    script = f'. "{moved}/activate"; python -c "import sys; print(sys.prefix)"'
    assert run_shell("dash", script, ready).strip() == str(moved)


def test_a_python_without_headers_is_not_compiled_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def python(name: str, include: Path) -> str:
        path, here = tmp_path / name, f"sysconfig.get_path = lambda name: {str(include)!r}"
        path.write_text(
            f'#!/bin/sh\necho noise\nexec {sys.executable} -c "import sysconfig; {here}\n$3"\n'
        )
        path.chmod(0o755)
        return str(path)

    bare, whole = python("bare", tmp_path / "include"), python("whole", tmp_path)
    (tmp_path / "Python.h").touch()
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(sys, "_base_executable", bare, raising=False)
    found: dict[str, str] = {}
    monkeypatch.setattr(environment, "_find_python", found.get)
    assert environment.choose_python((running,)) == (running, bare)
    assert environment.choose_python((running, "3.9"), headers=True) == (running, running)
    found["3.9"] = whole
    assert environment.choose_python((running, "3.9"), headers=True) == ("3.9", whole)
    assert not environment.has_headers(str(tmp_path / "gone"))
    # what uv downloads has them, and it does not take the machine's instead
    assert environment.has_headers(running)
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_PYTHON_PREFERENCE", "system")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    lock = locks.load_lock("build-vllm")
    (version,) = lock.pythons
    with pytest.raises(SurroundingsError) as error:
        backend.make_environment(lock, version, version, tmp_path / "tools")
    assert "in managed installations" in error.value.why
    assert f"install Python {version} with its headers" in str(error.value.next_step)


def test_up_compiles_without_headers_only_what_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    (version,) = locks.load_lock("build-vllm").pythons
    plan = SimpleNamespace(python=version, interpreter="/bare/python")
    monkeypatch.setattr(environment, "has_headers", lambda path: path == version)
    monkeypatch.setattr(environment, "_find_python", lambda version: "/bare/python")
    for package, expected in (("vllm", version), ("llama-cpp-python", "/bare/python")):
        need = SimpleNamespace(recipe=find_recipe(package))
        assert up._interpreter(need, plan) == (version, expected)
