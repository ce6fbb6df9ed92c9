"""stacks.toml and the locks: well-formed, complete, and refused when they are not."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import io
import itertools
import json
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.locks import (
    LOCK_DIRECTORY,
    Lock,
    LockedFile,
    LockError,
    UnsupportedPythonError,
    load_lock,
    lock_names,
    parse_lock,
)
from legacy_cuda.catalog.recipes import find_recipe, recipes
from legacy_cuda.catalog.toolchains import toolchains

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = LOCK_DIRECTORY.parent
SCHEMA = DATA.parent / "schema"
TOOL = Path(__file__).parents[2] / "tools" / "update_locks.py"
NAMES = lock_names()

SMALL = f"""
schema = 1
name = "small"
note = "for the tests"
roots = ["a"]
exclude_newer = "2026-01-01T00:00:00Z"
pythons = ["3.10", "3.11"]

[[package]]
name = "b"
version = "2"
requires = []
[[package.files]]
name = "b-2-py3-none-any.whl"
sha256 = "{"b" * 64}"
size = 5
unpacked = 9
pythons = ["3.10", "3.11"] # both

[[package]]
name = "a"
version = "1"
requires = ["b"]
[[package.files]]
name = "a-1-cp310-cp310-manylinux1_x86_64.whl"
sha256 = "{"a" * 64}"
size = 3
unpacked = 4
pythons = ["3.10"] # old
[[package.files]]
name = "a-1-cp311-cp311-manylinux_2_28_x86_64.manylinux2014_x86_64.whl"
sha256 = "{"c" * 64}"
size = 30
unpacked = 40
pythons = ["3.11"] # new
"""


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def validate(data: dict[str, Any], schema: str) -> None:
    rules = json.loads((SCHEMA / schema).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    jsonschema.Draft202012Validator(rules).validate(data)


@pytest.fixture(scope="module")
def stacks() -> list[dict[str, Any]]:
    data = read(DATA / "stacks.toml")
    validate(data, "stacks.schema.json")
    found: list[dict[str, Any]] = data["stack"]
    return found


# The catalog's own stacks and locks.


def test_every_architecture_has_its_stack(stacks: list[dict[str, Any]]) -> None:
    torch = [stack for stack in stacks if stack["engine"] == "torch"]
    assert [stack["name"] for stack in torch] == ["kepler", "maxwell", "pascal", "volta"]
    for stack in torch:
        assert stack["architecture"].lower() == stack["name"]


def test_stacks_are_ordered_by_engine_and_cuda(stacks: list[dict[str, Any]]) -> None:
    for engine in dict.fromkeys(stack["engine"] for stack in stacks):
        own = [stack for stack in stacks if stack["engine"] == engine]
        numbers = [Version(stack["cuda"]) for stack in own]
        assert numbers == sorted(numbers)
        assert stacks.index(own[-1]) - stacks.index(own[0]) == len(own) - 1
        assert engine in {item.name for item in catalog.engines()}


def test_what_is_compiled_has_a_recipe_with_the_stacks_toolkit(
    stacks: list[dict[str, Any]],
) -> None:
    seen = 0
    for stack in stacks:
        homes = set(map(Capability.parse, stack["home"]))
        covers = set(map(Capability.parse, stack["covers"]))
        for name in stack.get("compiled", ()):
            recipe = find_recipe(name)
            assert covers <= set(recipe.capabilities)
            for size in range(1, len(covers) + 1):
                for wanted in map(set, itertools.combinations(sorted(covers), size)):
                    way = recipe.way(wanted)
                    assert way is not None
                    if wanted & homes:  # else another stack is taken
                        assert recipe.local or way.toolchain == stack["toolkit"]
                    seen += 1
    assert seen


def test_maxwell_and_pascal_share_one_lock(stacks: list[dict[str, Any]]) -> None:
    locks = {stack["name"]: stack["lock"] for stack in stacks}
    assert locks["maxwell"] == locks["pascal"]
    assert len(set(locks.values())) == len(stacks) - 1
    toolkits = {toolchain.lock for toolchain in toolchains()}
    builds = {recipe.lock for recipe in recipes()}
    assert set(locks.values()) | toolkits | builds == set(NAMES)


def test_a_stack_is_at_home_only_where_it_covers(stacks: list[dict[str, Any]]) -> None:
    homes = [(stack["engine"], capability) for stack in stacks for capability in stack["home"]]
    assert len(homes) == len(set(homes)), "a capability has one home for an engine"
    for stack in stacks:
        assert set(stack["home"]) <= set(stack["covers"])
        for key in ("home", "covers"):
            parsed = [Capability.parse(text) for text in stack[key]]
            assert parsed == sorted(parsed)


def test_stacks_of_one_lock_cover_the_same(stacks: list[dict[str, Any]]) -> None:
    for one in stacks:
        for other in stacks:
            if one["lock"] == other["lock"]:
                assert (one["cuda"], one["covers"]) == (other["cuda"], other["covers"])


def test_the_lock_serves_the_pythons_of_its_stack(stacks: list[dict[str, Any]]) -> None:
    for stack in stacks:
        assert set(stack["pythons"]) == set(load_lock(stack["lock"]).pythons)


def test_the_title_names_the_locked_torch(stacks: list[dict[str, Any]]) -> None:
    for stack in stacks:
        if stack["engine"] != "torch":
            continue
        torch = load_lock(stack["lock"]).package("torch").version
        assert stack["lock"] == f"torch-{torch}"
        assert f"PyTorch {torch} with CUDA {stack['cuda']}," in stack["title"]


def test_the_toolkit_is_known_and_compiles_for_home(stacks: list[dict[str, Any]]) -> None:
    toolkits = {item["version"]: item for item in read(DATA / "toolkits.toml")["toolkit"]}
    for stack in stacks:
        assert stack["cuda"] in toolkits
        toolkit = toolkits[stack["toolkit"]]
        for capability in map(Capability.parse, stack["home"]):
            assert Capability.parse(toolkit["capability_min"]) <= capability
            assert capability <= Capability.parse(toolkit["capability_max"])


def test_the_cuda_of_a_stack_is_what_its_lock_installs(stacks: list[dict[str, Any]]) -> None:
    for stack in stacks:
        lock = load_lock(stack["lock"])
        runtime = f"nvidia-cuda-runtime-cu{stack['cuda'].split('.')[0]}"
        assert lock.package(runtime).version.startswith(f"{stack['cuda']}.")


@pytest.mark.parametrize("name", NAMES)
def test_lock_follows_its_schema(name: str) -> None:
    validate(read(LOCK_DIRECTORY / f"{name}.toml"), "lock.schema.json")


def supports(tags: frozenset[Tag], python: str) -> bool:
    """Whether a CPython may install the wheel: its own ABI, an older stable one, or none."""
    minor = int(python.split(".")[1])
    for tag in tags:
        match = re.fullmatch(r"(cp|py)3(\d*)", tag.interpreter)
        if match is None:
            continue
        made_for = int(match[2] or 0)
        if tag.abi == f"cp3{minor}" and made_for == minor:
            return True
        if tag.abi in ("abi3", "none") and made_for <= minor:
            return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_each_python_gets_one_fitting_file_of_every_package(name: str) -> None:
    lock = load_lock(name)
    assert list(lock.pythons) == sorted(lock.pythons, key=Version)
    for package in lock.packages:
        assert package.name == canonicalize_name(package.name)
        for python in lock.pythons:
            assert sum(python in file.pythons for file in package.files) == 1
        for file in package.files:
            project, version, _, tags = parse_wheel_filename(file.name)
            assert (project, version) == (package.name, Version(package.version))
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.size > 0
            assert file.unpacked > 0
            for python in file.pythons:
                assert supports(tags, python), (file.name, python)
            assert file.glibc_min is None or file.glibc_min <= (2, 28)
    sums = [file.sha256 for package in lock.packages for file in package.files]
    assert len(sums) == len(set(sums))


@pytest.mark.parametrize("name", NAMES)
def test_the_roots_and_what_they_require_is_all_there_is(name: str) -> None:
    lock = load_lock(name)
    roots = [Requirement(root) for root in lock.roots]
    for root in roots:
        assert root.specifier.contains(lock.package(canonicalize_name(root.name)).version)
    reached: set[str] = set()
    waiting: list[str] = [canonicalize_name(root.name) for root in roots]
    while waiting:
        package = lock.package(waiting.pop())
        if package.name not in reached:
            reached.add(package.name)
            waiting += package.requires
    assert reached == {package.name for package in lock.packages}


@pytest.mark.parametrize("name", NAMES)
def test_requirements_say_what_select_gives(name: str) -> None:
    lock = load_lock(name)
    for python in lock.pythons:
        lines = lock.requirements(python).splitlines()
        files = lock.select(python)
        assert len(lines) == len(files) == len(lock.packages)
        for line, file in zip(lines, files, strict=True):
            pin, _, sha256 = line.partition(" --hash=sha256:")
            requirement = Requirement(pin)
            assert (requirement.name, str(requirement.specifier)) == (
                file.package,
                f"=={file.version}",
            )
            assert sha256 == file.sha256
        assert lock.download_bytes(python) == sum(file.size for file in files)
        assert lock.unpacked_bytes(python) > lock.download_bytes(python)


def test_torch_2_10_0_is_the_rebuilt_one() -> None:
    for file in load_lock("torch-2.10.0").package("torch").files:
        assert parse_wheel_filename(file.name)[2] == (3, "")


def test_glibc_floors() -> None:
    floors = {name: load_lock(name).glibc_min for name in NAMES}
    assert floors == {
        "build-cmake": (2, 17),
        "build-vllm": (2, 28),
        "cuda-11.8": (2, 17),
        "cuda-12.4": (2, 17),
        "llama-cpp-cuda-11.8": (2, 17),
        "llama-cpp-cuda-12.4": (2, 17),
        "torch-2.0.1": (2, 17),
        "torch-2.7.1": (2, 28),
        "torch-2.10.0": (2, 28),
        "vllm-0.14.0": (2, 28),
    }


# The loader, on a lock made up for the purpose.


def small(*replacements: tuple[str, str]) -> Lock:
    text = SMALL
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return parse_lock(text, "small")


def test_a_small_lock() -> None:
    validate(tomllib.loads(SMALL), "lock.schema.json")
    lock = small()
    assert [package.name for package in lock.packages] == ["a", "b"]
    assert [file.name for file in lock.select("3.10")] == [
        "a-1-cp310-cp310-manylinux1_x86_64.whl",
        "b-2-py3-none-any.whl",
    ]
    assert lock.requirements("3.11") == (
        f"a==1 --hash=sha256:{'c' * 64}\nb==2 --hash=sha256:{'b' * 64}\n"
    )
    assert (lock.download_bytes("3.10"), lock.unpacked_bytes("3.10")) == (8, 13)
    assert (lock.download_bytes("3.11"), lock.unpacked_bytes("3.11")) == (35, 49)
    assert lock.glibc_min == (2, 17)


@pytest.mark.parametrize("python", ["3.9", "3.12", "3.1", "", "3.110"])
def test_a_python_that_is_not_served(python: str) -> None:
    with pytest.raises(UnsupportedPythonError, match=r"it serves 3\.10, 3\.11"):
        small().select(python)


def test_the_digest_is_about_what_is_installed() -> None:
    digest = small().digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert small(('roots = ["a"]', 'roots = ["a", "b"]')).digest == digest
    assert small(("2026-01-01", "2026-02-01")).digest == digest
    assert small(("c" * 64, "d" * 64)).digest != digest
    assert small(('version = "2"', 'version = "3"'), ("b-2", "b-3")).digest != digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema 2 is unknown"),
        ("schema = 1", "", "'schema' is missing"),
        ("schema = 1", "schema =", "not TOML"),
        ('name = "small"', 'name = "large"', "says its name is 'large'"),
        ("size = 5", "size = 0", "size is 0"),
        ("size = 5", "size = true", "size is True"),
        ("size = 5", 'size = "5"', "size is '5'"),
        ("b" * 64, "b" * 63, "not a sha256"),
        ("b" * 64, "B" * 64, "not a sha256"),
        ("b-2-py3", "../b-2-py3", "not the name of a wheel"),
        ("b-2-py3-none-any.whl", "b-2.tar.gz", "not the name of a wheel"),
        ('requires = ["b"]', 'requires = ["b", "zz"]', "requires zz"),
        ('requires = ["b"]', 'requires = "b"', "not an array of strings"),
        ('name = "b"', 'name = "a"', "listed more than once"),
        ('["3.10", "3.11"] # both', '["3.10"]', "expected one each"),
        ('["3.11"] # new', '["3.10"]', "expected one each"),
        ("[[package", "[[packages", "'package' is missing"),
    ],
)
def test_a_malformed_lock_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(LockError, match=message):
        small((old, new))


@pytest.mark.parametrize("name", ["nope", "", "../stacks", "TORCH-2.7.1", "torch-2.7.1.toml"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(LockError, match=r"there is no lock .* known: .*torch-2\.7\.1"):
        load_lock(name)


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(LockError, match="has no package zz"):
        small().package("zz")


@pytest.mark.parametrize(
    ("tags", "floor"),
    [
        ("py3-none-any", None),
        ("cp311-cp311-manylinux1_x86_64", (2, 5)),
        ("cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64", (2, 27)),
        ("cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64", (2, 17)),
    ],
)
def test_glibc_of_a_file(tags: str, floor: tuple[int, int] | None) -> None:
    assert LockedFile("a", "1", f"a-1-{tags}.whl", "", 1, 1, ()).glibc_min == floor


@pytest.mark.parametrize("tag", ["win_amd64", "manylinux_2_28_aarch64", "musllinux_1_2_x86_64"])
def test_a_file_for_another_platform_has_no_glibc(tag: str) -> None:
    with pytest.raises(LockError, match="not a linux x86_64 platform tag"):
        _ = LockedFile("a", "1", f"a-1-cp311-cp311-{tag}.whl", "", 1, 1, ()).glibc_min


def test_importing_the_loader_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, legacy_cuda.catalog.locks; "
        "print(sorted({'packaging', 'requests', 'rich', 'uv', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# The tool, as far as it needs no network.


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("tomli_w", reason="tools/update_locks.py needs tomli-w (extra: dev)")
    spec = importlib.util.spec_from_file_location("update_locks", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def offer(*names: str) -> dict[str, Any]:
    wheels = [{"url": f"https://index.invalid/{n}", "hashes": {"sha256": "0" * 64}} for n in names]
    return {"name": "a", "version": "1", "wheels": wheels}


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["a-1-cp311-cp311-{28}", "a-1-3-cp311-cp311-{28}", "a-1-2-cp311-cp311-{28}"], 1),
        (["a-1-9-cp311-cp311-{17}", "a-1-10-cp311-cp311-{17}"], 1),
        (["a-1-cp311-cp311-{17}", "a-1-cp311-cp311-{28}", "a-1-cp311-cp311-{34}"], 1),
        (["a-1-2-py3-none-manylinux1_x86_64", "a-1-py3-none-manylinux2014_x86_64"], 1),
        (["a-1-py3-none-any", "a-1-cp39-abi3-{28}", "a-1-cp312-cp312-{28}"], 1),
        (["a-1-cp311-cp311t-{28}", "a-1-cp311-cp311-win_amd64", "a-1-py3-none-any"], 2),
    ],
)
def test_the_tool_takes_what_an_installer_would(
    tool: ModuleType, names: list[str], best: int
) -> None:
    files = [re.sub(r"{(\d+)}", r"manylinux_2_\1_x86_64", name) + ".whl" for name in names]
    for order in (files, files[::-1]):
        assert tool.choose(offer(*order), "3.11").file == files[best]


def test_the_tool_refuses_what_has_no_wheel(tool: ModuleType) -> None:
    with pytest.raises(tool.BadInputError, match=r"a 1 has no linux x86_64 wheel for Python 3\.13"):
        tool.choose(offer("a-1-cp311-cp311-manylinux1_x86_64.whl"), "3.13")


def test_the_tool_checks_what_wheels_ask_for(tool: ModuleType) -> None:
    assert tool.check_requirement(Requirement("A.b>=1"), {"a-b": "1.5"}, "x") == "a-b"
    assert tool.check_requirement(Requirement("a-b[c]"), {"a-b": "1.5"}, "x") == "a-b"
    for text in ("a-b>=2", "d"):
        with pytest.raises(tool.BadInputError, match="x asks for"):
            tool.check_requirement(Requirement(text), {"a-b": "1.5"}, "x")
    on_old = Requirement("tomli; python_version < '3.11'")
    assert tool.needs(on_old, "3.10")
    assert not tool.needs(on_old, "3.11")
    assert not tool.needs(Requirement("pytest; extra == 'test'"), "3.11")
    assert not tool.needs(Requirement("colorama; sys_platform == 'win32'"), "3.11")
    assert tool.needs(Requirement("pytest; extra == 'test'"), "3.11", {"test"})


def test_the_tool_follows_extras(tool: ModuleType) -> None:
    """Those that a root asks for, that these bring in turn, and no others."""
    asked = {
        "a": ("b[more]; extra == 'x'", "d; extra == 'y'", "e; python_version < '3.11'"),
        "b": ("c; extra == 'more'", "b[most]; extra == 'more'", "d; extra == 'most'"),
        "c": (),
        "d": (),
        "e": (),
    }
    wheels = {
        name: [(tool.Contents(1, 1, tuple(map(Requirement, lines))), ["3.11"])]
        for name, lines in asked.items()
    }
    found = tool.dependencies([Requirement("A[x]")], wheels)
    names = {name: [item.name for item in needed] for name, needed in found.items()}
    assert names == {"a": ["b"], "b": ["c", "b", "d"], "c": [], "d": [], "e": []}
    plain = tool.dependencies([Requirement("a")], wheels)
    assert not any(plain.values())


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file, by ranges or (``ranges`` false) only whole; counts the bytes it sends."""

    content = b""
    ranges = True
    sent = 0

    def do_GET(self) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        start, stop = int(match[1]), int(match[2]) + 1
        part = self.content[start:stop] if self.ranges else self.content
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(part)))
        if self.ranges:
            end = start + len(part) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(self.content)}")
        self.end_headers()
        type(self).sent += len(part)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


def read_from_loopback(tool: ModuleType, content: bytes, ranges: bool = True) -> tuple[Any, int]:
    """What the tool reads from a wheel on a server, and how many bytes the server sent."""

    class OneFile(Handler):
        pass

    OneFile.content, OneFile.ranges = content, ranges
    with http.server.HTTPServer(("127.0.0.1", 0), OneFile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            wheel = tool.Wheel("a", "1", "a-1.whl", "", url=url)
            with tool.requests.Session() as session:
                session.trust_env = False
                return tool.read_wheel(session, wheel), OneFile.sent
        finally:
            server.shutdown()


def wheel_bytes(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


METADATA = b"Metadata-Version: 2.1\nName: a\nVersion: 1\nRequires-Dist: b>=2\n"


def test_the_tool_reads_only_a_part_of_a_wheel(tool: ModuleType) -> None:
    content = wheel_bytes(
        ("a/big.so", bytes(5_000_000)),
        ("a/vendor/x-1.dist-info/METADATA", b"not ours"),
        ("a-1.dist-info/METADATA", METADATA),
    )
    contents, sent = read_from_loopback(tool, content)
    assert contents.size == len(content)
    assert contents.unpacked == 5_000_000 + len(b"not ours") + len(METADATA)
    assert contents.requires == (Requirement("b>=2"),)
    assert sent < 1_000_000


def test_the_tool_says_what_is_wrong_with_a_server_or_a_file(tool: ModuleType) -> None:
    good = wheel_bytes(("a-1.dist-info/METADATA", METADATA))
    with pytest.raises(tool.requests.RequestException, match="does not answer range requests"):
        read_from_loopback(tool, good, ranges=False)
    for bad in (good[:-30], b"x", wheel_bytes(("a/b", b""))):
        with pytest.raises(tool.BadInputError, match=r"a-1\.whl is not a wheel"):
            read_from_loopback(tool, bad)


def test_the_locks_are_written_as_the_tool_writes(tool: ModuleType) -> None:
    for name in NAMES:
        path = LOCK_DIRECTORY / f"{name}.toml"
        header = tool.read_header(path)
        data = {**header, "package": read(path)["package"]}
        assert tool.HEADER + tool.tomli_w.dumps(data) == path.read_text(encoding="utf-8")
