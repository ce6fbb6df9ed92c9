"""Wheels that are compiled for GPUs: found in the cache or an index, installed by ``up``.

The wheels are small ones made here with the names of real ones; the index is made by
``legacy-cuda index`` and read from its folder and from a web server on loopback.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import builders
import jsonschema
import pytest
import tiny
import tomli_w

from legacy_cuda import catalog, environment
from legacy_cuda.build import compile as building
from legacy_cuda.build import provide
from legacy_cuda.build.provide import Need
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.compiled import CompiledWheel, compiled
from legacy_cuda.catalog.locks import LOCK_DIRECTORY
from legacy_cuda.catalog.recipes import find_recipe
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.cli import main
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import make

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PASCAL = Capability(6, 1)
LLAMA = find_recipe("llama-cpp-python")
LOCK = "llama-cpp-cuda-12.4"
TAG = "py3-none-manylinux_2_17_x86_64"


def llama_wheels(number: int = 61) -> list[tiny.Wheel]:
    """The binding with device code for one capability, and the tools without any."""
    library = builders.library(builders.container(builders.entry(number=number)))
    members = {"llama_cpp/__init__.py": b"", "llama_cpp/lib/libggml-cuda.so": library}
    return [
        tiny.make_wheel("llama_cpp_python", need().version, members, TAG),
        tiny.make_wheel("llama_cpp_tools", "0.3.36+legacy.1", {"llama_cpp_tools.py": b""}, TAG),
    ]


def need() -> Need:
    return replace(provide.need(LLAMA, [PASCAL]), recorded=None)


def recorded(wheel: tiny.Wheel, sha256: str = "") -> Need:
    """A need whose result is known to be that wheel."""
    facts = CompiledWheel(
        "llama-cpp-python",
        wheel.version,
        (PASCAL,),
        "0" * 64,
        wheel.name,
        sha256 or wheel.sha256,
        len(wheel.data),
        wheel.unpacked,
    )
    return replace(need(), recorded=facts)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_index(folder: Path, wheels: list[tiny.Wheel]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        (folder / wheel.name).write_bytes(wheel.data)
    assert main(["index", str(folder), "--json"]) == 0
    return folder


@pytest.fixture
def index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    made = make_index(tmp_path / "wheels", llama_wheels())
    capsys.readouterr()
    return made


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def served(index: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(index)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


# --------------------------------------------------------------------------------- the catalog


def test_the_file_of_results_follows_its_schema_and_the_recipes() -> None:
    schema = json.loads((catalog.DATA.parent / "schema" / "compiled.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = tomllib.loads((catalog.DATA / "compiled.toml").read_text(encoding="utf-8"))
    jsonschema.validate(data, schema)
    assert [(wheel.package, wheel.version) for wheel in compiled()] == sorted(
        {(wheel.package, wheel.version) for wheel in compiled()}
    )
    assert compiled()
    for wheel in compiled():
        wanted = provide.need(find_recipe(wheel.package), wheel.capabilities)
        assert wanted.recorded == wheel, f"{wheel.file}: its recipe has changed; build it anew"
        assert wanted.version == wheel.version
        assert wheel.file.split("-")[:2] == [wheel.package.replace("-", "_"), wheel.version]


def test_the_digest_is_of_all_that_goes_in() -> None:
    wanted = need()
    order = provide.order(wanted)
    changes = building.source.changes(LLAMA)
    base = building.digest(order, changes)
    assert base == wanted.inputs
    sdist = replace(LLAMA.sdist, sha256="1" * 64)
    others = {
        building.digest(replace(order, recipe=replace(LLAMA, sdist=sdist)), changes),
        building.digest(replace(order, pinned=False), changes),
        building.digest(replace(order, capabilities=(Capability(6, 0),)), changes),
        building.digest(replace(order, code="sass+ptx"), changes),
        building.digest(replace(order, way=replace(order.way, settings={"a": "b"})), changes),
        building.digest(order, replace(changes, overlay={"x": b"y"})),
        building.digest(order, replace(changes, patch_texts=(b"",) * len(changes.patches))),
    }
    assert len(others) == 7 and base not in others
    for same in (replace(order, jobs=9), replace(order, ccache="/usr/bin/ccache")):
        assert building.digest(same, changes) == base
    assert building.digest(
        replace(order, toolchain=Path("/y") / order.toolchain.name), changes
    ) == (base)


def test_one_wheel_of_the_tools_serves_every_card() -> None:
    tools = find_recipe("llama-cpp-tools")
    assert len({provide.need(tools, [item]).inputs for item in tools.capabilities}) == 1


# -------------------------------------------------------------------------- where it comes from


def test_nothing_anywhere(cache: Path) -> None:
    assert provide.find(need(), None, offline=False) is None
    with pytest.raises(SurroundingsError, match=r"does not hold llama-cpp-python .*sm61"):
        provide.build(need(), True, (tiny.PYTHON, sys.executable), lambda what, done, total: None)


def test_a_python_that_cannot_be_had_is_said_before_anything_is_downloaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    told: list[str] = []
    with pytest.raises(SurroundingsError, match=r"Python 3\.12.* could not be had"):
        provide.build(need(), False, ("3.12", "3.12"), lambda what, done, total: told.append(what))
    assert not told


def test_build_has_its_python_before_the_toolchain(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(environment, "choose_python", lambda pythons, headers: ("3.12", "3.12"))
    monkeypatch.setattr(building, "archive", lambda recipe, given, tell: tmp_path / "any.tar.gz")
    assert main(["build", "llama-cpp-python", "--for", "p40"]) == 3
    assert "Python 3.12, which the build needs, could not be had" in capsys.readouterr().err
    assert not make.place(find_toolchain(need().way.toolchain)).exists()


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/simple", "file://{}", "file://{}/simple/"])
def test_from_a_folder(cache: Path, index: Path, form: str) -> None:
    found = provide.find(need(), form.format(index), offline=True)
    assert found is not None
    (wheel, _) = llama_wheels()
    assert (found.path.name, found.sha256) == (wheel.name, wheel.sha256)
    assert found.path.is_relative_to(cache) and found.path.read_bytes() == wheel.data
    assert (found.origin, found.as_recorded) == ("index", None)
    shutil.rmtree(index)
    again = provide.find(need(), None, offline=True)  # the cache has it now
    assert again is not None and (again.path, again.origin) == (found.path, "index")
    known = provide.find(recorded(wheel), None, offline=True)
    assert known is not None and known.as_recorded is True


@pytest.mark.parametrize("form", ["{}", "{}/simple/"])
def test_from_a_server(cache: Path, served: str, form: str) -> None:
    (wheel, _) = llama_wheels()
    seen: list[int] = []
    found = provide.find(
        recorded(wheel), form.format(served), False, lambda done, total: seen.append(done)
    )
    assert found is not None and found.path.read_bytes() == wheel.data
    assert found.path.is_relative_to(cache) and found.as_recorded and seen[-1] == len(wheel.data)
    again = provide.find(recorded(wheel), "http://127.0.0.1:9", offline=True)
    assert again is not None and again.path == found.path


@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_wheel_in_the_cache_is_had_anew(cache: Path, served: str, known: bool) -> None:
    (wheel, _) = llama_wheels()
    wanted = recorded(wheel) if known else need()
    found = provide.find(wanted, served, offline=False)
    assert found is not None
    for path in cache.rglob("*.whl"):
        path.write_bytes(b"damaged")
    assert provide.find(wanted, None, offline=True) is None
    again = provide.find(wanted, served, offline=False)
    assert again is not None and again.path.read_bytes() == wheel.data


def test_the_recorded_bytes_of_an_index_go_before_others_of_the_cache(
    cache: Path, index: Path, tmp_path: Path
) -> None:
    other = tiny.make_wheel("llama_cpp_python", need().version, {"a.py": b""}, TAG)
    folder = make_index(tmp_path / "other", [other])
    (wheel, _) = llama_wheels()
    first = provide.find(need(), str(folder), offline=True)
    assert first is not None and first.sha256 == other.sha256
    kept = provide.find(recorded(wheel), None, offline=True)
    assert kept is not None and kept.as_recorded is False
    better = provide.find(recorded(wheel), str(index), offline=True)
    assert better is not None and better.as_recorded is True


def test_a_server_is_not_asked_offline(cache: Path, served: str) -> None:
    assert provide.find(need(), served, offline=True) is None
    assert provide.find(need(), "http://127.0.0.1:9", offline=True) is None  # nobody listens there


def test_other_versions_are_left_alone(cache: Path, tmp_path: Path) -> None:
    others = [
        tiny.make_wheel("llama_cpp_python", version, {"a.py": b""}, TAG)
        for version in ("0.3.36", "0.3.36+cu124.sm60", "0.3.36+cu124.sm61.ptx", "0.3.37")
    ]
    folder = make_index(tmp_path / "others", others)
    assert provide.find(need(), str(folder), offline=True) is None
    only_tools = make_index(tmp_path / "tools", llama_wheels()[1:])
    assert provide.find(need(), str(only_tools), offline=True) is None


def test_other_bytes_than_recorded_are_refused(cache: Path, index: Path) -> None:
    wanted = recorded(llama_wheels()[0], sha256="1" * 64)
    with pytest.raises(
        SurroundingsError, match=r"another .* than the one that is recorded"
    ) as caught:
        provide.find(wanted, str(index), offline=True)
    assert "1" * 64 in caught.value.why


def test_a_file_that_is_not_what_its_index_says(cache: Path, index: Path) -> None:
    (index / llama_wheels()[0].name).write_bytes(b"changed")
    with pytest.raises(SurroundingsError, match="is not what its index says"):
        provide.find(need(), str(index), offline=True)


def test_a_server_that_sends_something_else(cache: Path, index: Path, served: str) -> None:
    (index / llama_wheels()[0].name).write_bytes(b"changed")
    with pytest.raises(SurroundingsError, match="wrong sha256"):
        provide.find(need(), served, offline=False)
    assert not list(cache.rglob("*.whl"))


ROW = {"filename": llama_wheels()[0].name, "hashes": {"sha256": "0" * 64}, "url": "x.whl"}


@pytest.mark.parametrize(
    "change",
    [
        {"filename": 1},
        {"filename": "no-wheel.zip"},
        {"filename": f"../{ROW['filename']}"},
        {"filename": f"\x1b[2J{ROW['filename']}"},
        {"filename": str(ROW["filename"]).replace("x86_64", "aarch64")},
        {"filename": str(ROW["filename"]).replace("2_17", "2_99")},
        {"hashes": {}},
        {"hashes": None},
        {"hashes": {"sha256": "0" * 63}},
        {"hashes": {"sha256": "/" + "a" * 63}},
        {"hashes": {"sha256": "../" * 21 + "a"}},
        {"url": 1},
        {"url": "http://["},
        {"size": "abc"},
        {"size": -1},
        {"size": None},
    ],
)
def test_rows_that_are_none(cache: Path, index: Path, change: dict[str, Any]) -> None:
    page = index / "simple" / "llama-cpp-python" / "index.json"
    page.write_text(json.dumps({"files": [{**ROW, **change}]}))
    assert provide.find(need(), str(index), offline=True) is None


@pytest.mark.parametrize("url", ["file:///dev/zero", "file:///etc/hostname", "ftp://x/y.whl"])
def test_a_server_names_no_file_of_this_machine(
    cache: Path, index: Path, served: str, url: str
) -> None:
    page = index / "simple" / "llama-cpp-python" / "index.json"
    page.write_text(json.dumps({"files": [{**ROW, "url": url}]}))
    with pytest.raises(SurroundingsError, match="is at"):
        provide.find(need(), served, offline=False)


def test_a_page_that_does_not_end(
    cache: Path, index: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provide, "_PAGE", 100)
    with pytest.raises(SurroundingsError, match="is no page of a package index"):
        provide.find(need(), served, offline=False)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": 1}', "\x00"])
def test_pages_that_are_none(cache: Path, index: Path, text: str) -> None:
    (index / "simple" / "llama-cpp-python" / "index.json").write_text(text)
    with pytest.raises(SurroundingsError, match="is no page of a package index"):
        provide.find(need(), str(index), offline=True)


def test_places_that_are_no_index(cache: Path, tmp_path: Path, served: str) -> None:
    bad = (str(tmp_path), str(tmp_path / "none"), f"{served}/none", "ftp://x/", "gopher:x")
    for place in (*bad, "http://[", "file:///a%00b"):
        with pytest.raises(UserError, match=r"is no package index") as caught:
            provide.find(need(), place, offline=False)
        assert caught.value.next_step
    with pytest.raises(SurroundingsError, match="cannot be reached"):
        provide.find(need(), "http://127.0.0.1:9", offline=False)


# ------------------------------------------------------------------------------------------- up


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tiny.Box]:
    """The p40's stack for llama.cpp with a package of the lock that has nothing to do with it."""
    small = tiny.make_wheel("small", "1.0", {"small.py": b""}, TAG)
    with tiny.box(tmp_path, [small]) as made:
        tiny.write_lock(made.locks, [small], name=LOCK)
        for name in ("build-cmake", "cuda-11.8", "cuda-12.4"):  # which the digest is of
            (made.locks / f"{name}.toml").symlink_to(LOCK_DIRECTORY / f"{name}.toml")
        yield made


def up(box: tiny.Box, *arguments: str) -> Any:
    return box.run("up", "p40", "--engine", "llama-cpp", *arguments)


def test_up_installs_from_an_index(box: tiny.Box, index: Path) -> None:
    done = up(box, "--index", str(index), "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 1  # the wheels are none: it cannot be loaded, and that is said
    assert document["check"]["error"] and not document["good"]
    assert document["name"] == "p40-llama-cpp"
    assert [item["origin"] for item in document["compiled"]] == ["index", "index"]
    assert document["packages"]["llama-cpp-python"] == need().version
    (verdict,) = document["audit"]
    assert (verdict["capability"], verdict["outcome"]) == ("6.1", "runs")
    assert verdict["libraries"][0]["path"] == "llama_cpp/lib/libggml-cuda.so"
    folder = box.folder("p40-llama-cpp")
    assert "TORCH_CUDA" not in (folder / "activate").read_text()
    report = (folder / "report.html").read_text()
    assert need().version in report and llama_wheels()[0].sha256 in report
    again = up(box, "--json")  # without the index: everything is there
    assert json.loads(again.stdout)["state"] == "unchanged since it was made"
    text = " ".join(up(box).stdout.split())
    assert f"llama-cpp-python {need().version} (from an index; its bytes are not recorded)" in text
    assert "llama.cpp is not usable" in text


def test_up_for_another_card_is_another_wheel(box: tiny.Box, index: Path, tmp_path: Path) -> None:
    up(box, "--index", str(index))
    folder = str(box.folder("p40-llama-cpp"))
    done = box.run("up", "v100", "--engine", "llama-cpp", "--path", folder, "--json")
    assert done.returncode == 2
    assert "its llama-cpp-python is 0.3.36+cu124.sm61, not 0.3.36+cu124.sm70" in done.stderr


def test_up_refuses_what_it_cannot_have(box: tiny.Box, index: Path) -> None:
    done = up(box, "--index", str(box.home), "--json")
    assert done.returncode == 2 and "is no package index" in done.stderr
    done = up(box, "--offline")
    assert done.returncode == 3 and "would have to be compiled" in done.stderr
    shutil.rmtree(index / "simple" / "llama-cpp-tools")
    done = up(box, "--offline", "--index", str(index))
    assert done.returncode == 3 and "llama-cpp-tools" in done.stderr
    assert not box.folder("p40-llama-cpp").exists()


def test_up_with_a_wheel_for_another_card_is_a_verdict(box: tiny.Box, tmp_path: Path) -> None:
    folder = make_index(tmp_path / "wrong", llama_wheels(number=70))
    document = json.loads(up(box, "--index", str(folder), "--json").stdout)
    assert document["audit"][0]["outcome"] == "does-not-run"


def test_a_variable_names_the_index(box: tiny.Box, index: Path) -> None:
    done = box.run(
        *("up", "p40", "--engine", "llama-cpp", "--json"),
        variables={"LEGACY_CUDA_INDEX": str(index)},
    )
    assert len(json.loads(done.stdout)["compiled"]) == 2


def test_an_empty_variable_names_none(box: tiny.Box) -> None:
    done = box.run(
        *("up", "p40", "--engine", "llama-cpp", "--offline"), variables={"LEGACY_CUDA_INDEX": ""}
    )
    assert done.returncode == 3 and "would have to be compiled" in done.stderr


def test_other_bytes_than_recorded_are_said(
    box: tiny.Box, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build of this machine, or an index of before, that came to other bytes."""
    up(box, "--index", str(index))
    shutil.rmtree(box.folder("p40-llama-cpp"))
    manifest = json.loads(up(box, "--json").stdout)  # from the cache
    assert [item["as_recorded"] for item in manifest["compiled"]] == [None, None]
    (wheel, _) = llama_wheels()
    row = {
        "package": "llama-cpp-python",
        "version": wheel.version,
        "capabilities": ["6.1"],
        "inputs": manifest["compiled"][0]["inputs"],
        "file": wheel.name,
        "sha256": "1" * 64,
        "size": 1,
        "unpacked": 1,
    }
    results = box.own / "data" / "compiled.toml"
    results.unlink()
    results.write_text(tomli_w.dumps({"wheel": [row]}))
    shutil.rmtree(box.folder("p40-llama-cpp"))
    done = up(box)
    assert f"is not what the catalog records: sha256 {wheel.sha256}" in done.stderr
    assert "NOT the recorded bytes" in " ".join(done.stdout.split())
    row["file"] = str(row["file"]).replace("2_17", "2_99")
    results.write_text(tomli_w.dumps({"wheel": [row]}))
    done = up(box, "--recreate")
    assert done.returncode == 2 and "its wheels need glibc 2.99 or newer" in done.stderr


def test_other_inputs_are_another_wheel(box: tiny.Box, index: Path) -> None:
    up(box, "--index", str(index))
    path = box.folder("p40-llama-cpp") / "legacy-cuda.json"
    manifest = json.loads(path.read_text())
    manifest["compiled"][0]["inputs"] = "0" * 64
    path.write_text(json.dumps(manifest))
    done = up(box)
    assert done.returncode == 2
    assert "what its llama-cpp-python 0.3.36+cu124.sm61 is compiled from has changed" in done.stderr


def test_what_is_looked_at_again_keeps_what_was_compiled(box: tiny.Box, index: Path) -> None:
    up(box, "--index", str(index))
    (site,) = box.folder("p40-llama-cpp").glob("lib/python3*/site-packages")
    (site / "more.py").write_text("")
    document = json.loads(up(box, "--json").stdout)
    assert document["state"] == "examined again"
    assert [item["package"] for item in document["compiled"]] == [
        "llama-cpp-python",
        "llama-cpp-tools",
    ]


def test_what_it_takes_is_said_before(box: tiny.Box, index: Path) -> None:
    shutil.rmtree(index / "simple" / "llama-cpp-tools")
    done = up(box, "--offline", "--index", str(index))
    said = " ".join(done.stderr.split())
    assert f"compiled llama-cpp-python {need().version}: built already" in said
    assert "tools 0.3.36+legacy.1: not in the index; to be compiled here, about" in said
    assert "the toolchain 11.8: 0.5 GiB to download" in said or "MiB to download" in said
