"""recipes.toml, and the pure parts of the builder: what is told to whom, what is refused."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from legacy_cuda import catalog
from legacy_cuda.build import backend, finish, source
from legacy_cuda.build import compile as building
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.recipes import Recipe, find_recipe, recipes
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.toolchain import smoke

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LLAMA = find_recipe("llama-cpp-python")
KEPLER, MAXWELL, PASCAL = Capability(3, 7), Capability(5, 2), Capability(6, 1)


def order(*capabilities: Capability, code: str = "sass", recipe: Recipe = LLAMA) -> Any:
    way = recipe.way(set(capabilities))
    assert way is not None
    return building.Order(recipe, way, tuple(sorted(capabilities)), Path("/t"), code, 2, None)


def test_the_file_follows_its_schema() -> None:
    folder = catalog.DATA.parent / "schema"
    schema = json.loads((folder / "recipes.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    data = tomllib.loads((catalog.DATA / "recipes.toml").read_text(encoding="utf-8"))
    jsonschema.validate(data, schema)


@pytest.mark.parametrize("recipe", recipes(), ids=lambda item: item.package)
def test_a_recipe_fits_the_rest_of_the_catalog(recipe: Recipe) -> None:
    assert set(recipe.capabilities) <= {gpu.capability for gpu in catalog.gpus() if gpu.legacy}
    assert load_lock(recipe.lock).roots
    names = [way.toolchain for way in recipe.ways]
    assert names == sorted(names, key=catalog.version_tuple)
    for way in recipe.ways:
        toolchain = find_toolchain(way.toolchain)
        assert list(way.capabilities) == sorted(set(way.capabilities))
        assert set(way.capabilities) <= set(smoke.targets(toolchain))
        for library in toolchain.libraries:
            wanted = Requirement(library.requires)
            lock = load_lock(toolchain.lock)
            assert wanted.specifier.contains(lock.package(wanted.name).version)
    changes = source.changes(recipe)
    for patch in changes.patches:
        assert set(patch.capabilities) <= set(recipe.capabilities), patch.name


def test_the_newest_toolkit_that_serves_all() -> None:
    old, volta, pascal = LLAMA.ways
    assert LLAMA.way({PASCAL}) == LLAMA.way({MAXWELL, PASCAL}) == pascal
    assert LLAMA.way({PASCAL, Capability(7, 0)}) == volta
    assert LLAMA.way({KEPLER}) == LLAMA.way({KEPLER, PASCAL}) == old
    assert LLAMA.way({Capability(8, 0)}) is None


def test_names_and_targets() -> None:
    assert order(KEPLER).version == f"{LLAMA.version}+cu118.sm37"
    assert order(PASCAL, MAXWELL).version == f"{LLAMA.version}+cu124.sm52.sm61"
    assert order(PASCAL, code="ptx").version.endswith("+cu124.sm61.replay")
    assert building.architectures(order(PASCAL, MAXWELL)) == "52-real;61-real"
    assert building.architectures(order(PASCAL, MAXWELL, code="sass+ptx")) == (
        "52-real;61-real;61-virtual"
    )
    assert building.architectures(order(PASCAL, MAXWELL, code="ptx")) == "52-virtual;61-virtual"
    told = building.settings(order(KEPLER), "/somewhere/tree")
    assert told["cmake.define.CMAKE_CUDA_ARCHITECTURES"] == "37-real"
    assert told["build-dir"] == "/somewhere/tree"
    assert not any("{" in value for value in told.values())


def test_variables() -> None:
    vllm = find_recipe("vllm")
    way = vllm.ways[-1]
    wanted = building.Order(vllm, way, way.capabilities, Path("/t"), "sass+ptx", 2, None)
    told = building.environment(wanted, "/somewhere/tree")
    assert told["CUDAARCHS"] == "60-real;61-real;61-virtual"
    assert "$ORIGIN/../torch/lib" in told["CMAKE_ARGS"]
    assert building.environment(order(PASCAL), "/somewhere/tree") == {}
    changed = replace(vllm, environment={**vllm.environment, "CMAKE_BUILD_TYPE": "Debug"})
    digests = {building.digest(replace(wanted, recipe=item), NOTHING) for item in (vllm, changed)}
    assert len(digests) == 2


def test_an_unknown_package_names_those_there_are() -> None:
    with pytest.raises(CatalogError) as caught:
        find_recipe("llama.cpp")
    assert "llama-cpp-python" in caught.value.near


def test_as_many_compilers_as_there_is_memory_for() -> None:
    way = replace(LLAMA.ways[0], memory=3 << 30)
    assert building.jobs(way, 8, 10 << 30) == 3
    assert building.jobs(way, 2, 64 << 30) == 2
    assert building.jobs(way, 8, 1 << 30) == 1
    assert building.available_memory() > 0


def test_requirements_of_a_build() -> None:
    lock = load_lock("build-cmake")
    fine = ["scikit-build-core[pyproject]>=0.9.2", "tomli>=1; python_version < '3.11'", "Ninja"]
    assert backend.missing(fine, lock, "3.12") == []
    assert backend.missing(["cmake>=99", "torch"], lock, "3.12") == ["cmake>=99", "torch"]


# What is unpacked.


def archive(path: Path, *items: tuple[str, bytes, bytes]) -> Path:
    """A source distribution with members of name, type and content (or target of a link)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, content in items:
            item = tarfile.TarInfo(name)
            item.type = kind
            if kind == tarfile.REGTYPE:
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))
            else:
                item.linkname = content.decode()
                tar.addfile(item)
    return path


NOTHING = source.Changes((), (), {})


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([("p-1/../x", tarfile.REGTYPE, b"")], "leads out"),
        ([("/p-1/x", tarfile.REGTYPE, b"")], "leads out"),
        ([("p-1/x", tarfile.SYMTYPE, b"/etc/passwd")], "neither a file"),
        ([("p-1/x", tarfile.LNKTYPE, b"p-1/y")], "neither a file"),
        ([("p-1/x", tarfile.FIFOTYPE, b"")], "neither a file"),
        ([("p-1", tarfile.REGTYPE, b"")], "neither a file"),
        ([("p-1/x", tarfile.REGTYPE, b""), ("q-1/x", tarfile.REGTYPE, b"")], "several top"),
        ([("p-1/x", tarfile.REGTYPE, b""), ("p-1/x", tarfile.REGTYPE, b"")], "twice"),
    ],
)
def test_what_is_not_unpacked(
    tmp_path: Path, items: list[tuple[str, bytes, bytes]], said: str
) -> None:
    path = archive(tmp_path / "p-1.tar.gz", *items)
    with pytest.raises(source.SourceError, match=said):
        source.prepare(path, NOTHING, tmp_path / "out")
    assert not (tmp_path / "x").exists()


@given(st.binary(max_size=400), st.integers(0, 300), st.integers(0, 255))
def test_damaged_archives(tmp_path_factory: Any, junk: bytes, at: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = archive(folder / "p.tar.gz", ("p-1/a/b", tarfile.REGTYPE, b"content" * 30))
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    for content in (bytes(data), bytes(data[:at]), junk):
        path.write_bytes(content)
        out = folder / f"out{len(list(folder.iterdir()))}"
        try:
            source.prepare(path, NOTHING, out)
        except source.SourceError:
            continue
        assert [item.relative_to(out).parts[0] for item in out.rglob("*")] in ([], ["a", "a"])


def test_what_is_laid_over(tmp_path: Path) -> None:
    path = archive(tmp_path / "p-1.tar.gz", ("p-1/a.txt", tarfile.REGTYPE, b"old"))
    changes = source.Changes((), (), {"a.txt": b"new", "more/b.txt": b"added"})
    source.prepare(path, changes, tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"new"
    assert (tmp_path / "out" / "more" / "b.txt").read_bytes() == b"added"


# What is released.

CUDA = find_toolchain("12.4")


def elf(*needed: str, search: tuple[str, ...] = (), path: str = "pkg/lib/liba.so") -> finish.Elf:
    return finish.Elf(path, "liba.so", needed, search, (2, 34))


def test_requirements_come_from_what_is_needed() -> None:
    search = ("$ORIGIN", "$ORIGIN/../../nvidia/cublas/lib")
    wanted = elf("libc.so.6", "libcublas.so.12", "libb.so", "libcuda.so.1", search=search)
    found = finish.requirements([wanted], {"libb.so": "pkg/lib"}, CUDA)
    assert [Requirement(item).name for item in found] == ["nvidia-cublas-cu12"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (elf("libcublas.so.13"), "which nothing brings"),
        (elf("libgomp.so.1"), "which nothing brings"),
        (elf("libcublas.so.12"), "does not find libcublas.so.12"),
        (elf("libcublas.so.12", search=("$ORIGIN/../nvidia/cublas/lib",)), "does not find"),
        (elf("libb.so", search=("$ORIGIN/..",)), "does not find libb.so"),
        (elf(search=("/usr/lib",)), "not below site-packages"),
        (elf(search=("$ORIGIN/../../..",)), "not below site-packages"),
        (elf(search=("$ORIGINAL/lib",)), "not below site-packages"),
    ],
)
def test_what_would_not_run_elsewhere(file: finish.Elf, said: str) -> None:
    with pytest.raises(finish.FinishError, match=said):
        finish.requirements([file], {"libb.so": "pkg/lib"}, CUDA)


def test_the_stable_abi() -> None:
    module = replace(elf(path="pkg/_C.abi3.so"), python=("PyModule_Create2", "PyBaseObject_Type"))
    finish.check_abi3([module, elf()], "cp38")
    later = replace(module, python=("PyModule_Create2", "PyType_GetName"))  # from 3.11 on
    finish.check_abi3([later], "cp311")
    for name in ("PyType_GetName", "_PyObject_GetDictPtr", "PyUnicode_AsUTF8"):
        with pytest.raises(finish.FinishError, match=f"pkg/_C.abi3.so needs {name}, which"):
            finish.check_abi3([replace(module, python=(name,))], "cp38")


@pytest.mark.parametrize(
    ("symbols", "glibc"),
    [
        ("GLIBC_2.34", (2, 34)),
        ("GLIBC_2.2.5", (2, 2)),
        ("GLIBC_PRIVATE", (0, 0)),
        ("GLIBCXX_3.4.28", (0, 0)),
        ("GLIBCXX_3.4.30", (2, 35)),
        ("CXXABI_1.3.13", (0, 0)),
    ],
)
def test_which_systems_have_the_symbols(symbols: str, glibc: tuple[int, int]) -> None:
    assert finish._needs_glibc(symbols, "a.so") == glibc


def test_symbols_of_no_known_system() -> None:
    with pytest.raises(finish.FinishError, match=r"GLIBCXX_3\.4\.99"):
        finish._needs_glibc("GLIBCXX_3.4.99", "a.so")


def wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, text in members.items():
            made.writestr(name, text)
    return path


def finished(tmp_path: Path, name: str, members: dict[str, str]) -> finish.Finished:
    built = wheel(tmp_path / name, members)
    return finish.finish(built, tmp_path / "f", "1.0+x.1", CUDA, Path("/strip"), {}, LLAMA)


METADATA = (
    "Metadata-Version: 2.1\nName: a_b\nVersion: 1.0\nRequires-Dist: numpy\nLicense: MIT\n\n"
    "Version: 1.0 of the text\n"
)
PURE = {
    "a_b/__init__.py": "x = 1\n",
    "a_b-1.0.dist-info/METADATA": METADATA,
    "a_b-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n\n",
    "a_b-1.0.dist-info/RECORD": "",
}


def test_a_wheel_is_named_anew(tmp_path: Path) -> None:
    made = finished(tmp_path, "a_b-1.0-py3-none-any.whl", PURE)
    assert made.name == "a_b-1.0+x.1-py3-none-any.whl"
    text = made.members["a_b-1.0+x.1.dist-info/METADATA"]
    assert text == METADATA.replace("Version: 1.0\n", "Version: 1.0+x.1\n", 1).encode()
    assert made.members["a_b-1.0+x.1.dist-info/WHEEL"] == b"Wheel-Version: 1.0\nTag: py3-none-any\n"
    finish.write(made, {f"{made.info}/sboms/a.json": b"{}"}, tmp_path / made.name)
    with zipfile.ZipFile(tmp_path / made.name) as archive:
        names = archive.namelist()
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names[-1] == "a_b-1.0+x.1.dist-info/RECORD"
    assert names[:-1] == ["a_b/__init__.py", *sorted(names[1:-1])]
    assert not any("1.0.dist-info" in name.replace("1.0+x.1", "") for name in names)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("a_b-1.0.whl", PURE),
        ("a_b-1.0-1-py3-none-any.whl", PURE),
        ("a_b-1.0-py2.py3-none-any.whl", PURE),
        ("a_b-1.0-py3-none-any.whl", {"a_b/__init__.py": ""}),
        ("a_b-1.0-py3-none-any.whl", {**PURE, "../x": ""}),
        ("a_b-1.0-py3-none-any.whl", {**PURE, "/x": ""}),
        ("a_b-1.0-py3-none-any.whl", {**PURE, "c-1.dist-info/METADATA": ""}),
    ],
)
def test_what_is_no_wheel(tmp_path: Path, name: str, members: dict[str, str]) -> None:
    with pytest.raises(finish.FinishError):
        finished(tmp_path, name, members)
    assert not (tmp_path / "x").exists()


@given(st.binary(max_size=300))
def test_what_is_no_library(tmp_path_factory: Any, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("elf") / "a.so"
    path.write_bytes(b"\x7fELF" + junk)
    try:
        finish.read_elf(path, "a.so")
    except finish.FinishError as error:
        assert "a.so" in str(error)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    lines = [f"line {number}" for number in range(100)] + ["a.cu(3): error: too old"]
    log.write_text("\n".join([*lines, *(f"after {number}" for number in range(40))]))
    assert backend._end(log).splitlines()[0] == "a.cu(3): error: too old"
    begin = log.stat().st_size
    with log.open("a") as more:  # the next run's
        more.write("\nb.cu(4): error: another\n")
    assert backend._end(log, begin) == "b.cu(4): error: another"
    log.write_text("\n".join(lines[:100]))
    assert backend._end(log).splitlines()[-1] == "line 99"
