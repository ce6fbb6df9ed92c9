"""What audit takes: wheels, libraries, folders, environments, packages; and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest
import tiny

from legacy_cuda import audit, evidence, targets
from legacy_cuda.capability import Capability
from legacy_cuda.errors import UserError

PASCAL = Capability(6, 1)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tiny.Index]:
    with tiny.serve([tiny.make_torch()]) as served:
        tiny.use(served, tmp_path, monkeypatch)
        yield served


def save(folder: Path, wheel: tiny.Wheel) -> Path:
    path = folder / wheel.name
    path.write_bytes(wheel.data)
    return path


def test_a_wheel(tmp_path: Path) -> None:
    wheel = tiny.make_torch()
    subject = targets.load(str(save(tmp_path, wheel)))
    assert (subject.kind, subject.package, subject.version) == ("wheel", "torch", "2.7.1")
    assert (subject.sha256, subject.scanned) == (wheel.sha256, "")
    assert audit.judge(subject.libraries, PASCAL).outcome == "runs"


def test_a_wheel_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "download"
    path.write_bytes(tiny.make_torch().data)
    subject = targets.load(str(path))
    assert (subject.kind, subject.package) == ("wheel", "")
    assert subject.libraries


def test_a_library(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(builders.library(builders.container(builders.entry(number=61))))
    told: list[int] = []
    subject = targets.load(str(path), progress=told.append)
    assert (subject.kind, subject.name) == ("library", "libx.so")
    assert sum(told) == path.stat().st_size


def test_a_folder_without_device_code(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x" * 1000)
    subject = targets.load(str(tmp_path))
    assert (subject.kind, subject.libraries) == ("folder", ())
    assert audit.judge(subject.libraries, PASCAL).outcome == "no-device-code"


def test_an_environment(tmp_path: Path) -> None:
    with tiny.box(tmp_path) as box:
        assert box.run("up", "p40").returncode == 0
        subject = targets.load(str(box.target))
        below = targets.load(str(next(box.target.glob("lib/python3*/site-packages"))))
    assert (subject.kind, subject.torch_cuda) == ("environment", (12, 6))
    ((path, owner),) = subject.owners
    assert path.endswith("site-packages/torch/lib/libtorch_cuda.so") and owner == "torch 2.7.1"
    assert below.kind == "environment"
    assert below.owners == (("torch/lib/libtorch_cuda.so", "torch 2.7.1"),)


def test_an_environment_whose_libraries_are_gone(tmp_path: Path) -> None:
    with tiny.box(tmp_path) as box:
        assert box.run("up", "p40").returncode == 0
        site = next(box.target.glob("lib/python3*/site-packages"))
        assert targets.load(str(box.target)).absent == ()
        (site / "torch/lib/libtorch_cuda.so").unlink()
        subject = targets.load(str(box.target))
        below = targets.load(str(site))
        done = box.run("audit", str(box.target), "--gpu", "p40")
    prefix = site.relative_to(box.target).as_posix()
    assert subject.absent == ((f"{prefix}/torch/lib/libtorch_cuda.so", "torch 2.7.1"),)
    assert below.absent == (("torch/lib/libtorch_cuda.so", "torch 2.7.1"),)
    assert done.returncode == 1
    assert "listed in RECORD of torch 2.7.1, not there" in " ".join(done.stdout.split())


def test_a_folder_of_wheels(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    save(tmp_path / "below", tiny.make_torch())
    (only,) = targets.load_all(str(tmp_path))
    assert (only.kind, only.libraries) == ("folder", ())
    wheels = [tiny.make_torch(), tiny.make_wheel("kernels", "1.0", {"k/k.so": _library(80)})]
    for wheel in wheels:
        save(tmp_path, wheel)
    subjects = targets.load_all(str(tmp_path))
    assert [subject.package for subject in subjects] == ["kernels", "torch"]
    assert [audit.judge(item.libraries, PASCAL).good for item in subjects] == [False, True]
    (tmp_path / "libx.so").write_bytes(_library(61))
    assert [item.kind for item in targets.load_all(str(tmp_path))] == ["folder", "wheel", "wheel"]


def test_a_library_counts_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages" / "vllm" / "vllm_flash_attn"
    folder.mkdir(parents=True)
    (folder / "x.so").write_bytes(_library(80))
    monkeypatch.chdir(folder)
    for target in ("x.so", ".", str(folder / "x.so"), str(folder.parent)):
        (library,) = targets.load(target).libraries
        assert audit.rule_for(library.path).role == "feature", target
    assert targets.load("x.so").name == "x.so"


def test_a_version_that_is_not_there(index: tiny.Index) -> None:
    index.wheels = [tiny.make_torch()]
    problem = refused("torch==2.7.99", 2)
    assert "torch" in problem.what and "2.7.1" in problem.next_step


def test_a_package_on_the_index(index: tiny.Index) -> None:
    index.wheels = [tiny.make_wheel("kernels", "1.0", {"k/k.so": _library(61)})]
    told: list[int] = []
    subject = targets.load("Kernels==1.0", tiny.PYTHON, progress=told.append)
    assert (subject.package, subject.version) == ("kernels", "1.0")
    assert audit.judge(subject.libraries, PASCAL).outcome == "runs"
    assert sum(told) >= len(index.wheels[0].data)


def _library(number: int) -> bytes:
    return builders.library(builders.container(builders.entry(number=number)))


def test_a_recorded_package_needs_no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in tiny.clean_variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    subject = targets.load("torch==2.7.1", "3.11")
    assert subject.scanned and subject.file in {item.file for item in evidence.known("torch")}


def test_evidence_is_taken_for_the_sha256_alone(tmp_path: Path) -> None:
    """A file with the name of a recorded wheel and other contents is read."""
    recorded = evidence.known("torch")[0]
    path = tmp_path / recorded.file
    path.write_bytes(tiny.make_torch(held=(90,)).data)
    subject = targets.load(str(path))
    assert subject.scanned == ""
    assert audit.judge(subject.libraries, PASCAL).outcome == "does-not-run"


def refused(target: Path | str, code: int = 2) -> UserError:
    with pytest.raises(UserError) as caught:
        targets.load(str(target), tiny.PYTHON)
    assert caught.value.exit_code == code
    return caught.value


@pytest.mark.parametrize("name", ["a.so", "a.whl", "a.bin", "a.ptx"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text\n" * 50, b"\x7fELF\x02\x01"])
def test_files_that_are_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert "cannot be judged" in refused(tmp_path / name).what


def test_a_broken_wheel(tmp_path: Path) -> None:
    wheel = tiny.make_torch()
    for size in (100, len(wheel.data) // 2, len(wheel.data) - 1):
        (tmp_path / wheel.name).write_bytes(wheel.data[:size])
        refused(tmp_path / wheel.name)


def test_a_wheel_whose_members_leave_it(tmp_path: Path) -> None:
    for name in ("../evil.so", "/evil.so", "a/../../evil.so"):
        path = tmp_path / "evil-1.0-py3-none-any.whl"
        path.write_bytes(builders.wheel({name: _library(61)}))
        assert "leaves the archive" in refused(path).why
    assert not list(tmp_path.parent.glob("evil.so"))


@pytest.mark.timeout(30)
def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "to-nowhere").symlink_to("nowhere")
    for target in (tmp_path / "fifo", tmp_path / "to-fifo", tmp_path / "to-nowhere", "/dev/null"):
        assert "not a regular file" in refused(target).what


def test_names_of_nothing() -> None:
    assert "neither a path nor" in refused("/no/such/file.so").why
    assert "empty" in refused("").what
    assert "name its version" in refused("torch").next_step


def test_a_python_that_is_none(index: tiny.Index) -> None:
    for text in ("foo", "3", "3.11.4", "2.7", "../x"):
        with pytest.raises(UserError) as caught:
            targets.load("nothing-recorded==1.0", text)
        assert caught.value.exit_code == 2
    assert index.asked == []


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "libx.so"
    path.write_bytes(_library(61))
    path.chmod(0)
    assert "cannot be read" in refused(path, 3).what


def test_the_cuda_of_torch_is_read_not_executed(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    version = tmp_path / "torch" / "version.py"
    assert targets.read_torch_cuda(tmp_path) is None
    for text, expected in (
        ("cuda = '11.7'\n", (11, 7)),
        ('cuda: Optional[str] = "12.8"\n', (12, 8)),
        ("cuda: Optional[str] = None\n", None),
        ("raise SystemExit\n", None),
    ):
        version.write_text(text)
        assert targets.read_torch_cuda(tmp_path) == expected
