"""Toolchains: packages of Debian made up here, mirrors, and what is installed; nothing compiles."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError
from legacy_cuda.catalog.toolchains import Toolchain, find_toolchain, toolchains
from legacy_cuda.cli import main
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import deb, environ, folder, found, make, mirrors, smoke

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# ------------------------------------------------------------------------------ the catalog


def test_the_file_follows_its_schema() -> None:
    data = tomllib.loads((catalog.DATA / "toolchains.toml").read_text(encoding="utf-8"))
    path = catalog.DATA.parent / "schema" / "toolchains.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)
    for row in (data["host"], *data["toolchain"]):
        assert [package["name"] for package in row["package"]] == sorted(row["names"])


@pytest.mark.parametrize("toolchain", toolchains(), ids=lambda item: item.name)
def test_the_compiler_is_within_the_toolkits_windows(toolchain: Toolchain) -> None:
    toolkit = toolchain.toolkit
    assert catalog.version_tuple(toolchain.host.gcc)[0] <= toolkit.gcc_max
    assert toolkit.glibc_below is not None
    glibc = catalog.version_tuple(toolchain.host.glibc)
    assert glibc < catalog.version_tuple(toolkit.glibc_below)
    (libc,) = [item for item in toolchain.host.packages if item.name == "libc6-dev"]
    assert libc.version.startswith(f"{toolchain.host.glibc}-")
    assert any(item.version.startswith(toolchain.host.gcc) for item in toolchain.host.packages)
    assert any(item.version.startswith(toolchain.nvcc) for item in toolchain.packages)
    assert toolchain.nvcc.startswith(f"{toolchain.name}.")


def test_every_legacy_capability_has_a_toolchain() -> None:
    served = {item for toolchain in toolchains() for item in smoke.targets(toolchain)}
    assert served == {gpu.capability for gpu in catalog.gpus() if gpu.legacy}
    assert Capability(3, 7) in smoke.targets(find_toolchain("11.8"))
    with pytest.raises(CatalogError) as caught:
        find_toolchain("12.9")
    assert "12.4" in caught.value.near


# ------------------------------------------------------------------------------ deb


def make_deb(members: list[tuple[str, Any]], name: str = "data.tar.xz") -> bytes:
    """A package: path and content, ``("link", target)``, ``("hard", target)``, or a type."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in members:
            item = tarfile.TarInfo(path)
            if isinstance(content, bytes):
                item.size, item.mode = len(content), 0o755 if path.endswith("sh") else 0o644
                archive.addfile(item, io.BytesIO(content))
                continue
            kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
            kinds |= {"pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}
            item.type, item.linkname = kinds[content[0]], content[-1]
            archive.addfile(item)
    return make_ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", b"odd"),
            (name, lzma.compress(out.getvalue())),
        ]
    )


def make_ar(members: list[tuple[str, bytes]]) -> bytes:
    text = b"!<arch>\n"
    for name, data in members:
        text += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        text += data + b"\n" * (len(data) % 2)
    return text


def unpack(tmp_path: Path, data: bytes, wanted: Any = lambda path: True) -> Path:
    package, root = tmp_path / "x.deb", tmp_path / "root"
    package.write_bytes(data)
    deb.unpack(package, root, wanted)
    return root


def test_unpacking(tmp_path: Path) -> None:
    members = [
        ("./", ("folder", "")),
        ("./usr/bin/", ("folder", "")),
        ("./usr/bin/tool.sh", b"#!/bin/sh\n"),
        ("./usr/lib/a.so.1", b"library"),
        ("./usr/lib/a.so", ("link", "a.so.1")),
        ("./usr/lib/abs.so", ("link", "/usr/lib/a.so.1")),
        ("./usr/lib/up.so", ("link", "../lib/a.so.1")),
        ("./usr/lib/hard.so", ("hard", "./usr/lib/a.so.1")),
        ("./usr/share/doc/x", b"left out"),
        ("./dev/pipe", ("pipe", "")),
    ]
    root = unpack(tmp_path, make_deb(members), lambda path: "doc" not in path.parts)
    assert os.access(root / "usr/bin/tool.sh", os.X_OK)
    for name in ("a.so", "abs.so", "up.so", "hard.so"):
        assert (root / "usr/lib" / name).read_bytes() == b"library", name
        assert (root / "usr/lib" / name).resolve().is_relative_to(root.resolve())
    assert not os.access(root / "usr/lib/a.so.1", os.X_OK)
    assert not (root / "usr/share").exists() and not (root / "dev").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("/etc/out", b"x")],
        [("a/../../out", b"x")],
        [("a", ("link", "../out"))],
        [("a/b", ("link", "../../out"))],
        [("a/b", ("link", "c/../../../out"))],
        [("a", ("hard", "../out"))],
        [("a", ("link", ".")), ("a/b", b"x")],
        [("b", b"x"), ("l", ("link", "d")), ("c", ("hard", "l/b"))],
    ],
    ids=str,
)
def test_nothing_leads_out(members: list[tuple[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(deb.DebError):
        unpack(tmp_path, make_deb(members))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n",
        b"not an archive",
        make_ar([("debian-binary", b"2.0\n")]),
        make_ar([("data.tar.xz", b"not xz")]),
        make_ar([("data.tar.xz", lzma.compress(b"not tar" * 999))]),
        make_deb([("a", b"x")], "data.tar.zst"),
        make_deb([("a", b"x" * 99999)])[:-40],
        make_deb([("a", b"x")])[:70],
    ],
    ids=range(9),
)
def test_damaged_packages_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(deb.DebError):
        unpack(tmp_path, data)


GOOD = make_deb([("./usr/a", b"content" * 50), ("./usr/l", ("link", "a")), ("./usr/b", b"")])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=8))
def test_altered_packages_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    with tempfile.TemporaryDirectory() as name:
        with contextlib.suppress(deb.DebError):
            unpack(Path(name), bytes(data))
        inside = {path.relative_to(name).parts[0] for path in Path(name).rglob("*")}
        assert inside <= {"x.deb", "root"}


# ------------------------------------------------------------------------------ mirrors


def test_mirrors_of_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mirrors.VARIABLE, raising=False)
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://h/commented/debian x main\n"
        "deb [signed-by=/k arch=amd64] http://h/one/debian bookworm main\n"
        "deb-src http://h/two/debian/ bookworm main\n"
        "deb http://h/one/debian-security bookworm-security main\n"
        "deb http://h/ubuntu jammy main\n"
        "deb http://h/one/debian bookworm-updates main\n"
    )
    (parts / "more.sources").write_text(
        "Types: deb\n# URIs: http://h/no/debian\nURIs: http://h/three/debian\n http://h/four/debian\n"
        "Suites: trixie\n\nTypes: deb\nuris: http://h/elsewhere\n"
    )
    assert mirrors.mirrors(tmp_path) == tuple(
        f"http://h/{name}/debian/" for name in ("one", "two", "three", "four")
    )
    monkeypatch.setenv(mirrors.VARIABLE, "http://h/mine http://h/other/")
    assert mirrors.mirrors(tmp_path) == ("http://h/mine/", "http://h/other/")


def test_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mirrors.VARIABLE, raising=False)
    with pytest.raises(SurroundingsError, match="no mirror") as caught:
        mirrors.mirrors(tmp_path)
    assert mirrors.VARIABLE in caught.value.next_step and "--found" in caught.value.next_step


# ------------------------------------------------------------------------------ what is installed


def fake_nvcc(root: Path, version: str) -> Path:
    (root / "bin").mkdir(parents=True)
    path = root / "bin" / "nvcc"
    short = ".".join(version.split(".")[:2])
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {short}, V{version}'\n")
    path.chmod(0o755)
    return root


@pytest.fixture
def toolchain() -> Toolchain:
    return find_toolchain("11.8")


def test_a_toolkit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolchain: Toolchain
) -> None:
    right, wrong = fake_nvcc(tmp_path / "a", "11.8.89"), fake_nvcc(tmp_path / "b", "12.4.131")
    monkeypatch.setenv("CUDA_HOME", str(wrong))
    monkeypatch.setenv("CUDA_PATH", str(right))
    assert found.find_toolkit(toolchain) == right
    assert found.find_toolkit(find_toolchain("12.4")) == wrong
    assert found.find_toolkit(toolchain, right) == right
    with pytest.raises(UserError, match=r"is not CUDA 11\.8") as caught:
        found.find_toolkit(toolchain, wrong)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="is no CUDA toolkit"):
        found.find_toolkit(toolchain, tmp_path)
    monkeypatch.delenv("CUDA_PATH")
    monkeypatch.setattr(found, "_candidates", lambda name: iter([wrong, tmp_path]))
    with pytest.raises(SurroundingsError, match=r"no CUDA 11\.8 is installed") as nothing:
        found.find_toolkit(toolchain)
    assert "CUDA 12.4" in nothing.value.why


@pytest.mark.parametrize(
    ("version", "glibc", "clang", "message"),
    [
        ((12, 2, 0), (2, 36), False, "gcc 12 is too new for CUDA 11.8"),
        ((11, 4, 0), (2, 41), False, "glibc 2.41 is too new for CUDA 11.8"),
        ((11, 4, 0), (2, 36), True, "is clang"),
        ((11, 4, 0), (2, 36), False, ""),
        ((7, 5, 0), (2, 31), False, ""),
    ],
)
def test_windows_are_enforced(
    version: tuple[int, int, int],
    glibc: tuple[int, int],
    clang: bool,
    message: str,
    toolchain: Toolchain,
) -> None:
    compiler = found.Compiler(Path("/g++"), version, glibc, clang)
    if not message:
        found.check_compiler(compiler, toolchain)
        return
    with pytest.raises(UserError, match=message) as caught:
        found.check_compiler(compiler, toolchain)
    assert caught.value.exit_code == 2 and caught.value.why and caught.value.next_step


def test_a_compiler_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "g++"
    words = found._MACRO.split()
    lines = "\\n".join(
        f"legacy_cuda_{word}={value}"
        for word, value in zip(words, (11, 3, 0, 2, 36, "x"), strict=True)
    )
    path.write_text(f'#!/bin/sh\ncat > /dev/null\nprintf "{lines}\\n"\n')
    path.chmod(0o755)
    assert found.read_compiler(path) == found.Compiler(path, (11, 3, 0), (2, 36))
    path.write_text("#!/bin/sh\nexit 1\n")
    assert found.read_compiler(path) is None
    assert found.read_compiler(tmp_path / "none") is None


# ------------------------------------------------------------------------------ folders, commands


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "toolchains" / "x-1"
    left = tmp_path / "toolchains" / ".making-x-1-left"
    left.mkdir(parents=True)

    def fails(root: Path) -> dict[str, Any]:
        (root / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(SurroundingsError, match="could not be stored"):
        folder.fill(target, "x", fails)
    assert sorted(path.name for path in target.parent.iterdir()) == [".lock"]
    assert folder.fill(target, "x", lambda root: {"a": 1})
    assert folder.read_manifest(target) == {
        "schema": "legacy-cuda/toolchain/1",
        "name": "x",
        "a": 1,
    }
    assert not folder.fill(target, "x", fails), "it is there already"


def test_a_build_sees_nothing_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = {
        "CFLAGS": "-O0",
        "LD_LIBRARY_PATH": "/x",
        "PYTHONPATH": "/x",
        "NVCC_APPEND_FLAGS": "-G",
    }
    for name, value in poison.items():
        monkeypatch.setenv(name, value)
    made = environ.variables(Path("/t"), Path("/s"), Path("/b"))
    assert not set(poison) & set(made)
    assert made["PATH"].startswith("/t/bin:")


def test_another_content_is_another_folder(toolchain: Toolchain) -> None:
    assert make.place(toolchain) != make.place(find_toolchain("12.4"))
    assert make.place(toolchain).name.startswith("11.8-")


def test_the_licences_of_packages_are_kept() -> None:
    assert make._is_used(PurePosixPath("usr/share/doc/gcc-11-base/copyright"))
    assert not make._is_used(PurePosixPath("usr/share/man/man1/gcc.1.gz"))


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toolchain", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["toolchains"]
    assert [row["name"] for row in rows] == ["11.8", "12.4"]
    assert main(["toolchain"]) == 0
    assert "11.8.89" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["11.9"], 2, "no toolchain '11.9'"),
        (["11.8", "--compiler", "/x"], 2, "--compiler is for --found"),
        (["11.8", "--found", "/nowhere"], 2, "no CUDA toolkit"),
    ],
)
def test_what_is_refused(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toolchain", *words]) == code
    assert message in capsys.readouterr().err
