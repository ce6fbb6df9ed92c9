"""``legacy-cuda index``: what it writes, what installers make of it, and what it never touches.

The wheels are made here and hold real fat binaries; pip and uv install them from the index by
file:// and from web servers on loopback.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import builders
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from legacy_cuda import audit, catalog
from legacy_cuda.capability import Capability
from legacy_cuda.cli import main
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.fetch import uv_binary
from legacy_cuda.index import make, overview, publish, simple, wheels

PASCAL = Capability(6, 1)
KEPLER = Capability(3, 7)
TAG = "py3-none-manylinux_2_17_x86_64"


def library(*numbers: int, ptx: tuple[int, ...] = ()) -> bytes:
    """A library with SASS for these, and PTX that every driver compiles."""
    sass = [builders.entry(number=number) for number in numbers]
    text = [builders.entry(builders.PTX, number, isa=(7, 0)) for number in ptx]
    return builders.library(builders.container(*sass, *text))


def llama(local: str, *numbers: int, ptx: tuple[int, ...] = (), requires: str = "") -> tiny.Wheel:
    """A build that differs from others in its local version and its device code."""
    members = {
        "llama_cpp/__init__.py": f"BUILD = {local!r}\n".encode(),
        "llama_cpp/lib/libggml-cuda.so": library(*numbers, ptx=ptx),
    }
    return tiny.make_wheel("llama_cpp_python", f"0.3.36+{local}", members, TAG, requires)


K80 = llama("cu118.sm37", 37, requires="small>=1")
P40 = llama("cu124.sm61", 61, requires="small>=1")
SMALL = tiny.make_wheel("small", "1.0", {"small/__init__.py": b"N = 1\n"})


def fill(folder: Path, *made: tiny.Wheel) -> Path:
    """A folder with these wheels in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in made:
        (folder / wheel.name).write_bytes(wheel.data)
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a build for the K80, one for the P40, and a package without device code."""
    return fill(tmp_path / "wheels", K80, P40, SMALL)


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder; links and empty folders too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}".encode()
        else:
            found[name] = path.read_bytes() if path.is_file() else b"a folder"
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is no wheel."""
    return {
        name: data
        for name, data in tree(folder).items()
        if data != b"a folder" and not name.endswith(".whl")
    }


class Page(HTMLParser):
    """Tags with attributes, text, and links with theirs; every tag has to be closed."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.links: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "a":
            self.links.append(("", dict(attrs)))
        if ("class", "line") in attrs:
            self.lines.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "a" in self.open:
            self.links[-1] = (self.links[-1][0] + data, self.links[-1][1])
        if "pre" in self.open:
            self.lines[-1] += data


def listed(page: Path) -> list[str]:
    """The file names that a page of installers lists."""
    return [text for text, _ in Page(page.read_text(encoding="utf-8")).links]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The real command line; no traceback may come out of it."""
    done = subprocess.run(
        [*tiny.command(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert "Traceback" not in done.stderr
    return done


# ----------------------------------------------------------------------------- what is written


def test_what_each_index_lists(shelf: Path) -> None:
    made = make.make(shelf)
    assert made.capabilities == (KEPLER, PASCAL)
    assert listed(shelf / "simple/llama-cpp-python/index.html") == [K80.name, P40.name]
    assert listed(shelf / "sm37/simple/llama-cpp-python/index.html") == [K80.name]
    assert listed(shelf / "sm61/simple/llama-cpp-python/index.html") == [P40.name]
    for index in ("", "sm37/", "sm61/"):
        assert listed(shelf / f"{index}simple/index.html") == ["llama-cpp-python", "small"]
        assert listed(shelf / f"{index}simple/small/index.html") == [SMALL.name]
    assert not [path for path in shelf.iterdir() if path.name.startswith(("sm35", "sm70", "."))]


def test_the_sub_indexes_are_what_audit_says(tmp_path: Path) -> None:
    """Held against the command that people ask, GPU by GPU."""
    shelf = fill(
        tmp_path / "wheels",
        K80,
        P40,
        SMALL,
        llama("all", 37, 50, 52, 60, 61, 70),
        llama("maxwell", 50, ptx=(50,)),
        llama("new", 80, ptx=(80,)),
    )
    made = make.make(shelf)
    gpus = {gpu.capability: gpu.name for gpu in catalog.gpus() if gpu.legacy}
    done = run("audit", *map(str, shelf.glob("*.whl")), "--gpu", ",".join(gpus.values()), "--json")
    subjects = json.loads(done.stdout)["subjects"]
    expected: dict[str, set[str]] = {}
    for subject in subjects:
        for verdict in subject["verdicts"]:
            if verdict["outcome"] != "does-not-run":
                expected.setdefault(verdict["gpu"], set()).add(subject["name"])
    for capability, gpu in gpus.items():
        root = shelf / f"{simple.prefix(capability)}simple"
        if capability not in made.capabilities:
            assert expected[gpu] == {SMALL.name} and not root.exists()
            continue
        found = {name for page in root.glob("*/index.html") for name in listed(page)}
        assert found == expected[gpu], gpu
    assert made.capabilities == tuple(sorted(gpus))[1:]  # all but 3.5


def check_links(root: Path, page: Path) -> None:
    """Every link leads to a file of the folder with the sha256 and the metadata it says."""
    base = page.parent.as_uri() + "/"
    document = json.loads((page.parent / "index.json").read_text(encoding="utf-8"))
    links = Page(page.read_text(encoding="utf-8")).links
    assert [item["filename"] for item in document["files"]] == [text for text, _ in links]
    for (text, attributes), item in zip(links, document["files"], strict=True):
        href = attributes["href"]
        assert href is not None and href.isascii() and not urlsplit(href).scheme
        address, fragment = urldefrag(urljoin(base, href))
        target = Path(unquote(urlsplit(address).path))
        assert target.parent == root and target.name == text
        data = target.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        assert fragment == f"sha256={sha256}"
        with zipfile.ZipFile(target) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
            metadata = archive.read(name)
        assert target.with_name(f"{text}.metadata").read_bytes() == metadata
        digest = hashlib.sha256(metadata).hexdigest()
        assert attributes["data-core-metadata"] == f"sha256={digest}"
        assert "data-dist-info-metadata" not in attributes  # pip 22.3 to 23.0 stumbles over it
        assert urljoin(base, item["url"]) == address
        assert item["hashes"] == {"sha256": sha256} and item["size"] == len(data)
        assert item["core-metadata"] == {"sha256": digest}
        assert item.get("requires-python") == attributes.get("data-requires-python")
    assert document["name"] == page.parent.name
    assert document["meta"] == {"api-version": "1.1"}


def test_links_hashes_and_metadata(shelf: Path) -> None:
    make.make(shelf)
    pages = sorted(shelf.glob("**/simple/*/index.html"))
    assert len(pages) == 6
    for page in pages:
        check_links(shelf, page)
    names = [{"name": "llama-cpp-python"}, {"name": "small"}]
    document = json.loads((shelf / "sm61/simple/index.json").read_text())
    assert document == {"meta": {"api-version": "1.1"}, "projects": names}
    document = json.loads((shelf / "simple/llama-cpp-python/index.json").read_text())
    assert document["versions"] == ["0.3.36+cu118.sm37", "0.3.36+cu124.sm61"]


def test_the_same_wheels_give_the_same_bytes(shelf: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "else where" / "é", SMALL, P40, K80)
    for path in other.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    make.make(shelf)
    make.make(other)
    assert files(shelf) == files(other)
    for name, data in files(shelf).items():
        assert str(tmp_path).encode() not in data and b"file:/" not in data, name


def test_a_second_run_writes_nothing(shelf: Path) -> None:
    first = make.make(shelf)
    before = {path: path.stat().st_mtime_ns for path in shelf.rglob("*")}
    again = make.make(shelf)
    assert {path: path.stat().st_mtime_ns for path in shelf.rglob("*")} == before
    assert set(first.changes.written) == set(files(shelf)) - {publish.MANIFEST}
    assert (again.changes.written, again.changes.removed) == ((), ())
    assert again.changes.unchanged == first.changes.written


def test_wheels_come_and_go(shelf: Path, tmp_path: Path) -> None:
    make.make(shelf)
    (shelf / P40.name).unlink()
    gone = make.make(shelf).changes
    assert f"{P40.name}.metadata" in gone.removed and "sm61/simple/index.html" in gone.removed
    assert not (shelf / "sm61").exists() and not gone.kept
    assert files(shelf) == files(_made(tmp_path / "fresh", K80, SMALL))
    fill(shelf, P40)
    make.make(shelf)
    assert files(shelf) == files(_made(tmp_path / "fresh 2", K80, P40, SMALL))


def _made(folder: Path, *given: tiny.Wheel) -> Path:
    make.make(fill(folder, *given))
    return folder


def test_without_device_code_there_is_one_index(tmp_path: Path) -> None:
    shelf = _made(tmp_path, SMALL)
    assert [path.name for path in shelf.iterdir() if path.is_dir()] == ["simple"]
    assert "any: no device code" in (shelf / "index.html").read_text()


def test_requires_python_is_told_where_installers_understand_it(tmp_path: Path) -> None:
    told = "<4,>=3.8"
    shelf = fill(tmp_path, SMALL)
    for name, line in (("good", told), ("bad", "3.8 or so"), ("evil", '===<b>"&')):
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\nRequires-Python: {line}\n"
        save(shelf / f"{name}-1-py3-none-any.whl", name, text.encode())
    make.make(shelf)
    page = (shelf / "simple/good/index.html").read_text()
    assert 'data-requires-python="&lt;4,&gt;=3.8"' in page
    ((_, attributes),) = Page((shelf / "simple/bad/index.html").read_text()).links
    assert "data-requires-python" not in attributes
    ((_, attributes),) = Page((shelf / "simple/evil/index.html").read_text()).links
    assert attributes["data-requires-python"] == '===<b>"&'
    for page_of in ("good", "bad", "evil"):
        check_links(shelf, shelf / f"simple/{page_of}/index.html")


# ------------------------------------------------------------------------- pip and uv install


class Handler(SimpleHTTPRequestHandler):
    """``python -m http.server``, which notes what is asked for."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    negotiates = False

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        self.asked.append(unquote(self.path))
        super().do_GET()

    def translate_path(self, path: str) -> str:
        """With negotiation, as docs/index.md has a server do it: JSON to those that ask for it."""
        wanted = "application/vnd.pypi.simple.v1+json" in self.headers.get("Accept", "")
        if self.negotiates and wanted and "/simple/" in path and path.endswith("/"):
            return super().translate_path(f"{path}index.json")
        return super().translate_path(path)

    def guess_type(self, path: Any) -> str:
        if self.negotiates and str(path).endswith("index.json"):
            return "application/vnd.pypi.simple.v1+json"
        return super().guess_type(path)


@contextmanager
def serve(folder: Path, negotiates: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The folder on loopback: its address, and the paths that are asked for."""
    asked: list[str] = []
    handler = type("Own", (Handler,), {"asked": asked, "negotiates": negotiates})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@cache
def pip_command() -> tuple[str, ...]:
    """A pip: of this Python, of ensurepip, of Debian, or on PATH."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    spec = importlib.util.find_spec("ensurepip")
    folders = [Path("/usr/share/python-wheels")]
    if spec is not None and spec.origin is not None:  # its pip is one that this Python can run
        folders.insert(0, Path(spec.origin).parent / "_bundled")
    for folder in folders:
        for wheel in sorted(folder.glob("pip-*.whl")):
            return (sys.executable, f"{wheel}/pip")
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        pytest.skip("skipped: there is no pip, neither in this Python nor on PATH")
    return (found,)


def takes_metadata_files(tool: str) -> bool:
    """pip does from 23.2 on, by the attribute that is given."""
    if tool == "uv":
        return True
    done = subprocess.run([*pip_command(), "--version"], capture_output=True, text=True, check=True)
    return Version(done.stdout.split()[1]) >= Version("23.2")


def install(tool: str, words: list[str], home: Path) -> set[str]:
    """Install with nothing but these words set; what there is afterwards, as name-version."""
    target = home / "target"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    variables = {
        **tiny.clean_variables(home),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "UV_NO_CONFIG": "1",
    }
    variables.pop("UV_DEFAULT_INDEX")
    if tool == "pip":
        command = [*pip_command(), "install", "--target", str(target)]
    else:
        command = [uv_binary(), "pip", "install", "--target", str(target)]
        command += ["--python", sys.executable]
    done = subprocess.run(
        [*command, *words], env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {path.name.removesuffix(".dist-info") for path in target.glob("*.dist-info")}


BUILD = {
    "sm37/": "llama_cpp_python-0.3.36+cu118.sm37",
    "sm61/": "llama_cpp_python-0.3.36+cu124.sm61",
    "": "llama_cpp_python-0.3.36+cu124.sm61",  # the highest, whatever the card
}


@pytest.mark.parametrize("index", BUILD)
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_installed_from_a_folder(shelf: Path, tmp_path: Path, tool: str, index: str) -> None:
    make.make(shelf)
    words = ["--index-url", f"{shelf.as_uri()}/{index}simple", "llama-cpp-python"]
    assert install(tool, words, tmp_path / "home") == {BUILD[index], "small-1.0"}


@pytest.mark.parametrize("negotiates", [False, True], ids=["html", "json"])
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_installed_from_a_web_server(
    shelf: Path, tmp_path: Path, tool: str, negotiates: bool
) -> None:
    """Metadata are taken from their own file, and no wheel is downloaded but those installed."""
    make.make(shelf)
    with serve(shelf, negotiates) as (address, asked):
        words = ["--index-url", f"{address}/sm37/simple", "Llama.CPP_Python"]
        assert install(tool, words, tmp_path / "home") == {BUILD["sm37/"], "small-1.0"}
    assert {path for path in asked if path.endswith(".whl")} == {f"/{K80.name}", f"/{SMALL.name}"}
    if takes_metadata_files(tool):
        assert asked.index(f"/{K80.name}.metadata") < asked.index(f"/{K80.name}")


def test_pip_downloads_through_a_path_with_odd_characters(tmp_path: Path) -> None:
    shelf = _made(tmp_path / "a b+c%20#é", K80, P40, SMALL)
    words = ["--index-url", f"{shelf.as_uri()}/sm61/simple", "llama-cpp-python"]
    assert install("pip", words, tmp_path / "home") == {BUILD["sm61/"], "small-1.0"}


def test_the_root_leads_to_the_projects_by_http(shelf: Path) -> None:
    import requests

    make.make(shelf)
    with serve(shelf) as (address, _), requests.Session() as session:
        session.trust_env = False
        root = session.get(f"{address}/sm61/simple", timeout=10)  # redirected to a folder
        ((_, attributes), _) = Page(root.text).links
        project = session.get(urljoin(root.url, attributes["href"]), timeout=10)
        ((name, attributes),) = Page(project.text).links
        wheel = session.get(urljoin(project.url, attributes["href"]), timeout=10)
    assert name == P40.name and wheel.content == P40.data


# ------------------------------------------------------------------------- the page for people


def commands(*given: tiny.Wheel, folder: Path, capability: Capability) -> dict[str, Any]:
    """The commands for a capability by project."""
    read = wheels.read_folder(fill(folder, *given))
    found = overview.commands(read, capability)
    return {re.split("[= ]+", one.uv)[-2]: one for one in found}


def test_the_commands_of_the_page_are_those_that_install(shelf: Path, tmp_path: Path) -> None:
    """Taken from the page itself, its folder's address put in as its script does it."""
    make.make(shelf)
    page = Page((shelf / "index.html").read_text(encoding="utf-8"))
    assert len(page.lines) == 8  # pip and uv, for each of two projects and two capabilities
    for number, line in enumerate(page.lines):
        version = "cu118.sm37" if number < 4 else "cu124.sm61"
        words = shlex.split(line.replace(overview.ADDRESS, shelf.as_uri()))
        tool = "uv" if words[0] == "uv" else "pip"
        found = install(tool, words[words.index("install") + 1 :], tmp_path / f"home{number}")
        llama = {f"llama_cpp_python-0.3.36+{version}"} if "llama-cpp" in line else set()
        assert found == {*llama, "small-1.0"}


def test_a_build_for_the_gpu_goes_before_one_through_the_jit(tmp_path: Path) -> None:
    found = commands(P40, SMALL, llama("cu999", 50, ptx=(50,)), folder=tmp_path, capability=PASCAL)[
        "llama-cpp-python"
    ]
    assert found.uv.endswith("/sm61/simple llama-cpp-python==0.3.36+cu124.sm61")


def test_what_is_not_in_the_index_comes_from_pypi(tmp_path: Path) -> None:
    public = tiny.make_wheel("public", "2.0", {"public/x.so": library(61)}, requires="small>=2")
    url = tiny.make_wheel("url", "1!1", {"url/x.so": library(61)}, requires="a @ file:///x")
    folder = tmp_path / "one"
    found = commands(P40, public, folder=folder, capability=PASCAL)
    one = found["llama-cpp-python"]
    assert one.elsewhere == ("small",)
    assert one.pip == (
        "pip install --extra-index-url URL/sm61/simple llama-cpp-python==0.3.36+cu124.sm61",
    )
    assert one.uv == "uv pip install --index URL/sm61/simple llama-cpp-python==0.3.36+cu124.sm61"
    # a version that PyPI may have too is installed by itself
    assert found["public"].pip == (
        "pip install --no-deps --index-url URL/sm61/simple public==2.0",
        "pip install public==2.0",
    )
    assert "From PyPI come small, and what these require" in overview.html(
        wheels.read_folder(folder), (PASCAL,)
    )
    one = overview.commands(wheels.read_folder(fill(tmp_path / "two", url)), PASCAL)[0]
    assert one.elsewhere is None and "'url==1!1'" in one.uv
    # 1.0 is there, 2 is asked for
    found = commands(public, SMALL, folder=tmp_path / "three", capability=PASCAL)
    assert found["public"].elsewhere == ("small",)


def test_the_page_says_which_gpus(shelf: Path) -> None:
    make.make(shelf)
    page = Page((shelf / "index.html").read_text(encoding="utf-8"))
    for text in ("3 wheels of 2 projects", "3.7 (Tesla K80)", "17 GPUs of the catalog", "audited"):
        assert text in page.text
    for wheel in (K80, P40, SMALL):
        assert wheel.name in page.text and wheel.sha256 in page.text
    links = {attributes["href"] for _, attributes in page.links}
    assert "sm61/simple/index.html" in links and P40.name.replace("+", "%2B") in links
    for link in links:
        assert link is not None and (shelf / unquote(link)).is_file()


def test_nothing_but_the_pages_own_script_can_run(shelf: Path) -> None:
    make.make(shelf)
    text = (shelf / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert "src" not in attributes and "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "://" not in text.split("<script>")[0]
    (policy,) = (attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    for tag in ("script", "style"):
        ((content),) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy is not None and f"{tag}-src 'sha256-{digest}'" in policy
    assert policy is not None and policy.startswith("default-src 'none';")


# --------------------------------------------------------------------- text from strangers

MARKUP = ("<b>", "</a>", "<!--", "-->", '"', "'", "&", "&amp;", ">", " ", "#", "?", "%2F", "/", "+")
TEXT = st.text(min_size=1, max_size=40) | st.lists(
    st.sampled_from(MARKUP), min_size=1, max_size=5
).map("".join)
VERSIONS = st.from_regex(
    r"\A([0-9]!)?[0-9]{1,3}(\.[0-9]{1,3}){0,3}(rc[0-9])?(\.post[0-9])?(\.dev[0-9])?"
    r"(\+[a-z0-9]{1,6}([._][a-z0-9]{1,6}){0,2})?\Z"
)
NAMES = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._]{0,8}[A-Za-z0-9])?\Z").filter(
    lambda name: "__" not in name
)


def some_wheel(
    file: str, project: str, version: str, python: str = "", needs: tuple[str, ...] = ()
) -> wheels.Wheel:
    """A wheel of which every text can be anything."""
    one = audit.Library(f"{file}.so", 1, "shared", (audit.Group(1, "loadable", ("sm_61",)),))
    return wheels.Wheel(
        file,
        project,
        Version(version),
        1,
        "0" * 64,
        b"",
        python,
        tuple(map(Requirement, needs)),
        tuple(audit.judge([one], capability) for capability in wheels.capabilities()),
    )


@given(TEXT, TEXT, TEXT, VERSIONS)
def test_any_text_comes_out_of_a_page_as_it_went_in(
    file: str, project: str, python: str, version: str
) -> None:
    wheel = some_wheel(file, project, version, python)
    page = Page(simple.project_html(project, [wheel], "../../"))
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "body", "h1", "a", "br")
    }
    ((text, attributes),) = page.links
    assert _same(text, file)
    assert _same(attributes["data-requires-python"] or "", python)
    href, _, fragment = (attributes["href"] or "").rpartition("#")
    assert fragment == f"sha256={'0' * 64}"
    assert href.startswith("../../") and href.count("/") == 2
    assert unquote(href[6:]) == file and "?" not in href and "#" not in href
    document = json.loads(json.dumps(simple.project_json(project, [wheel], "../../")))
    assert document["files"][0]["filename"] == file and document["name"] == project
    assert document["files"][0]["url"] == href


@given(TEXT, TEXT, TEXT, VERSIONS)
def test_any_text_is_text_on_the_page_for_people(
    file: str, project: str, python: str, version: str
) -> None:
    plain = some_wheel("f-1-py3-none-any.whl", "f", version, "3", ("needed-from-elsewhere",))
    shape = [tag for tag, _ in Page(overview.html((plain,), (PASCAL,))).tags]
    wheel = some_wheel(file, project, version, python, ("needed-from-elsewhere",))
    page = Page(overview.html((wheel,), (PASCAL,)))
    assert [tag for tag, _ in page.tags] == shape
    assert _same(page.links[1][0], file) and unquote(page.links[1][1]["href"] or "") == file
    assert str(Version(version)) in page.text


def _same(found: str, given: str) -> bool:
    """Equal but for what HTML itself does to text: newlines, NUL, and characters that are none."""

    def seen(text: str) -> str:
        return re.sub(r"[\r\n\0]", " ", text)

    return seen(found) == seen(given)


@settings(max_examples=60, deadline=None)
@given(NAMES, VERSIONS, st.integers(30, 99))
def test_every_name_and_version_that_is_one(
    tmp_path_factory: pytest.TempPathFactory, name: str, version: str, number: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    members = {f"{name}/x.so": library(number)}
    made = tiny.make_wheel(name, version, members)
    (index,) = make.make(fill(folder, made)).wheels
    assert index.version == Version(version)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", index.project)
    check_links(folder, folder / "simple" / index.project / "index.html")
    shutil.rmtree(folder)


@given(st.binary(max_size=300), st.booleans())
def test_metadata_of_any_bytes(data: bytes, named: bool) -> None:
    head = b"Metadata-Version: 2.1\nName: small\nVersion: 1.0\n" if named else b""
    try:
        python, _ = wheels.parse_metadata(head + data, "small", Version("1.0"))
    except ValueError:
        return
    assert len(python) <= 200 and "\n" not in python


@pytest.mark.parametrize(
    "line", ["Requires-Dist: a ; " + "(" * 20000, "Requires-Dist: <b>", "Requires-Dist: a @ b"]
)
def test_requirements_that_cannot_be_told(line: str) -> None:
    data = f"Name: small\nVersion: 1.0\n{line}\n".encode()
    assert wheels.parse_metadata(data, "small", Version("1.0"))[1] is None


def test_a_great_many_headers_take_no_great_time() -> None:
    lines = "".join(f"H{number}: x\nRequires-Dist: a{number}\n" for number in range(20_000))
    begin = time.monotonic()
    wheels.parse_metadata(f"Name: a\nVersion: 1\n{lines}".encode(), "a", Version("1"))
    assert time.monotonic() - begin < 20


# ------------------------------------------------------------------------------ what is refused


def save(path: Path, name: str, metadata: bytes | None, version: str = "1", **more: bytes) -> Path:
    """A wheel whose metadata are as given, with or without other members."""
    info = f"{name}-{version}.dist-info"
    members = {f"{name}.py": b"N = 1\n" * 100, f"{info}/WHEEL": b"", f"{info}/RECORD": b"", **more}
    if metadata is not None:
        members[f"{info}/METADATA"] = metadata
    path.write_bytes(builders.wheel(members, zipfile.ZIP_STORED))
    return path


GOOD = b"Metadata-Version: 2.1\nName: bad\nVersion: 1\n"
FILE = "bad-1-py3-none-any.whl"


def damaged(path: Path) -> None:
    """One bit of a Python file is another."""
    data = save(path, "bad", GOOD).read_bytes()
    path.write_bytes(data.replace(b"N = 1", b"N = 2", 1))


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (
            ("bad-1.dist-info/METADATA", GOOD),
            ("bad-1.dist-info/WHEEL", b""),
            ("bad-1.dist-info/RECORD", b""),
            ("bad.py", b"1"),
        ):
            archive.writestr(name, text)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("bad.py", b"2")


def with_member(name: str) -> Callable[[Path], Any]:
    return lambda path: save(path, "bad", GOOD, **{name: b"x"})


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no zip": (FILE, lambda path: path.write_bytes(b"not a wheel"), "not a readable zip"),
    "empty": (FILE, lambda path: path.write_bytes(b""), "not a readable zip"),
    "truncated": (
        FILE,
        lambda path: path.write_bytes(save(path, "bad", GOOD).read_bytes()[:-30]),
        "not a readable zip",
    ),
    "damaged": (FILE, damaged, "CRC"),
    "no metadata": (FILE, lambda path: save(path, "bad", None), "has no bad-1.dist-info/METADATA"),
    "other project": (
        FILE,
        lambda path: save(path, "bad", GOOD.replace(b"bad", b"good")),
        "names the project 'good'",
    ),
    "other version": (
        FILE,
        lambda path: save(path, "bad", GOOD.replace(b": 1", b": 2")),
        "says version '2'",
    ),
    "no version": (
        FILE,
        lambda path: save(path, "bad", GOOD.replace(b"Version: 1", b"X: 1")),
        "Version",
    ),
    "two names": (FILE, lambda path: save(path, "bad", GOOD + b"Name: bad\n"), "2 lines 'Name'"),
    "endless metadata": (
        FILE,
        lambda path: save(path, "bad", GOOD + b"X: " + b"y" * (5 << 20)),
        "bytes long",
    ),
    "other folder": (FILE, lambda path: save(path, "good", GOOD), "'good-1.dist-info'"),
    "two folders": (FILE, with_member("good-1.dist-info/METADATA"), "this has 2"),
    "a member that leaves": (FILE, with_member("../../../tmp/x"), "leaves the archive"),
    "a member twice": (FILE, twice, "twice"),
    "a folder": (FILE, lambda path: path.mkdir(), "not a regular file"),
    "no version in its name": ("bad.whl", lambda path: save(path, "bad", GOOD), "bad"),
    "HTML in its name": (
        'bad-1-py3-none-any"><script>.whl',
        lambda path: save(path, "bad", GOOD),
        "other characters",
    ),
    "a line in its name": (
        "bad-1-py3-none-any\n.whl",
        lambda path: save(path, "bad", GOOD),
        "other characters",
    ),
    "no letters in its name": (
        "0..-1-py3-none-any.whl",
        lambda path: save(path, "0..", GOOD),
        "no name of a project",
    ),
    "too long a name": (
        f"bad-1-py3-none-{'a' * 235}.whl",
        lambda path: save(path, "bad", GOOD),
        "longer",
    ),
    "the same wheel": (
        "SMALL-1.0.0-py3-none-any.whl",
        lambda path: path.write_bytes(SMALL.data),
        "are the same wheel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_nothing_changed(
    shelf: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make.make(shelf)
    (shelf / K80.name).unlink()  # so that there would be something to change
    name, write, why = REFUSED[case]
    write(shelf / name)
    before = tree(shelf)
    assert main(["index", str(shelf)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and why in said.err
    assert "  -> " in said.err
    assert tree(shelf) == before


def test_folders_that_cannot_be_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "._small-1.0-py3-none-any.whl").write_bytes(b"not ours")
    (tmp_path / "file").write_text("x")
    for name, why in (
        ("empty", "no wheels"),
        ("hidden", "no wheels"),
        ("file", "no folder"),
        ("nowhere", "no folder"),
    ):
        before = tree(tmp_path)
        assert main(["index", str(tmp_path / name), "--json"]) == 2
        said = capsys.readouterr()
        assert why in json.loads(said.out)["error"] and why in said.err
        assert tree(tmp_path) == before


def test_a_wheel_that_grows_while_it_is_read(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wheels.targets.load

    def slow(target: str, **options: Any) -> Any:
        subject = real(target, **options)
        with Path(target).open("ab") as file:
            file.write(b"x")
        return subject

    monkeypatch.setattr(wheels.targets, "load", slow)
    with pytest.raises(SurroundingsError, match="changed while it was read"):
        make.make(shelf)
    assert files(shelf) == {}


def test_links_to_wheels_are_followed(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", P40)
    shelf = fill(tmp_path / "wheels", SMALL)
    (shelf / P40.name).symlink_to(store / P40.name)
    assert make.make(shelf).wheels[0].sha256 == P40.sha256
    (store / P40.name).unlink()
    with pytest.raises(SurroundingsError, match="cannot be read"):
        make.make(shelf)


# --------------------------------------------------------------------- what is somebody else's


@pytest.mark.parametrize(
    "path", ["index.html", "simple/index.html", "sm61/simple/small/index.json"]
)
def test_a_foreign_file_is_not_overwritten(shelf: Path, path: str) -> None:
    (shelf / path).parent.mkdir(parents=True, exist_ok=True)
    (shelf / path).write_text("mine")
    before = tree(shelf)
    with pytest.raises(UserError, match="in the way"):
        make.make(shelf)
    assert tree(shelf) == before


def test_a_page_that_somebody_changed_is_not_overwritten(shelf: Path) -> None:
    make.make(shelf)
    (shelf / "index.html").write_text("mine")
    before = tree(shelf)
    with pytest.raises(UserError, match="in the way"):
        make.make(shelf)
    assert tree(shelf) == before


@pytest.mark.parametrize("path", ["simple", "sm61", "simple/small", "index.html"])
def test_links_and_files_in_the_way(shelf: Path, tmp_path: Path, path: str) -> None:
    """A link could lead out of the folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (shelf / path).parent.mkdir(parents=True, exist_ok=True)
    (shelf / path).symlink_to(outside)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="in the way"):
        make.make(shelf)
    assert tree(tmp_path) == before
    (shelf / path).unlink()
    make.make(shelf)
    assert not list(outside.iterdir())


def test_what_is_not_ours_stays(shelf: Path) -> None:
    foreign = {
        "README.md": b"hello",
        "small-1.0.tar.gz": b"a source distribution",
        "other.whl.metadata": b"not ours",
        "sm61/simple/small/notes.txt": b"mine",
        "sm61/robots.txt": b"mine",
    }
    make.make(shelf)
    for path, data in foreign.items():
        (shelf / path).write_bytes(data)
    (shelf / "sm61/simple/index.json").write_bytes(b"changed")
    (shelf / P40.name).unlink()
    changes = make.make(shelf).changes
    assert changes.kept == ("sm61/simple/index.json",)
    left = tree(shelf)
    for path, data in foreign.items():
        assert left[path] == data
    assert left["sm61/simple/index.json"] == b"changed"
    assert not [path for path in left if path.startswith("sm61") and path.endswith(".html")]
    assert make.make(shelf).changes.kept == ()  # said once


def test_a_lost_list_of_files(shelf: Path) -> None:
    """Without it nothing is known to be ours; what has the right bytes anyway is taken."""
    make.make(shelf)
    before = files(shelf)
    (shelf / publish.MANIFEST).unlink()
    assert make.make(shelf).changes.written == ()
    assert files(shelf) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": "another/1", "files": {}}',
        '{"schema": "%s", "files": {"../x": "%s"}}',
        '{"schema": "%s", "files": {"simple/../../index.html": "%s"}}',
        '{"schema": "%s", "files": {"/etc/index.html": "%s"}}',
        '{"schema": "%s", "files": {"a.whl": "%s"}}',
        '{"schema": "%s", "files": {"index.html": 7}}',
        "[" * 100_000,
    ],
)
def test_a_list_of_files_that_is_none(shelf: Path, text: str) -> None:
    fills = (publish.SCHEMA, "0" * 64)[: text.count("%s")]
    (shelf / publish.MANIFEST).write_text(text % fills if fills else text)
    before = tree(shelf)
    with pytest.raises(UserError, match="cannot be understood"):
        make.make(shelf)
    assert tree(shelf) == before


def test_a_list_of_files_cannot_have_others_removed(shelf: Path) -> None:
    """It may name only what an index has, and only with the bytes that are there."""
    other = shelf / "a.whl.metadata"
    other.write_bytes(b"mine")
    lie = {"schema": publish.SCHEMA, "files": {other.name: "0" * 64}}
    (shelf / publish.MANIFEST).write_text(json.dumps(lie))
    assert make.make(shelf).changes.kept == (other.name,)
    assert other.read_bytes() == b"mine"


# ------------------------------------------------------------------------- killed, watched, locked

_KILLED = """
import os, pathlib, sys
from legacy_cuda.index import make, publish
from legacy_cuda.index.wheels import read_folder
folder, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
made = make.files(read_folder(folder))
count = 0
def counted(real):
    def call(*arguments, **options):
        global count
        count += 1
        if count == step:
            os._exit(9)
        return real(*arguments, **options)
    return call
for name in ("rename", "unlink", "rmdir"):
    setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
publish.publish(folder, made)
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Each file is old or new then, nothing is removed too early, and the next run mends it."""
    before = files(_made(tmp_path / "before", K80, SMALL))
    after_all = tree(_made(tmp_path / "after", P40, SMALL))
    after = files(tmp_path / "after")
    third = llama("cu124.sm70", 70)
    third_all = tree(_made(tmp_path / "third", third, SMALL))
    whole = {
        path: {state[path] for state in (before, after) if path in state}
        for path in before.keys() | after.keys()
    }
    step, code = 0, 9
    while code == 9:
        step += 1
        shelf = _made(tmp_path / str(step), K80, SMALL)
        (shelf / K80.name).unlink()
        fill(shelf, P40)
        code = subprocess.run(
            [sys.executable, "-c", _KILLED, str(shelf), str(step)], check=False, timeout=60
        ).returncode
        assert code in (0, 9)
        found = files(shelf)
        for path, data in found.items():
            if path != publish.MANIFEST and not path.endswith(".part"):
                assert data in whole[path], path
        for page in shelf.glob("**/simple/*/index.html"):
            for name in listed(page):  # whatever is listed has its metadata
                if (shelf / name).exists():
                    assert (shelf / f"{name}.metadata").is_file()
        changed = tmp_path / f"{step} changed"
        shutil.copytree(shelf, changed)
        make.make(shelf)
        assert tree(shelf) == after_all, step
        (changed / P40.name).unlink()  # the wheels are others again before the next run
        fill(changed, third)
        make.make(changed)
        assert tree(changed) == third_all, step
        shutil.rmtree(shelf)
        shutil.rmtree(changed)
    assert step > 30


def test_a_full_disk(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def full(self: Path, target: Any) -> Path:
        if Path(target).name == "index.json":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(SurroundingsError, match="could not be written") as caught:
        make.make(shelf)
    assert "free some space" in caught.value.next_step
    assert not list(shelf.rglob("*.part"))
    monkeypatch.setattr(Path, "rename", real)
    make.make(shelf)
    assert files(shelf) == files(_made(shelf.parent / "fresh", K80, P40, SMALL))


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    """A page is read again and again while the index changes to and fro."""
    many = [tiny.make_wheel("many", f"{number}.0", {"m.py": b""}) for number in range(60)]
    states = [make.files(wheels.read_folder(fill(tmp_path / "all", *many)))]
    states.append(make.files(wheels.read_folder(fill(tmp_path / "one", *many[:1]))))
    folder = tmp_path / "served"
    folder.mkdir()
    publish.publish(folder, states[0])
    path = "simple/many/index.html"
    whole = {state[path] for state in states}
    seen: set[bytes] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add((folder / path).read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for number in range(20):
            publish.publish(folder, states[(number + 1) % 2])
    finally:
        stop.set()
        thread.join()
    assert seen == whole


def test_two_runs_at_once(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(shelf)
    with publish.exclusive(shelf):
        assert main(["index", str(shelf)]) == 3
        assert "another legacy-cuda" in capsys.readouterr().err
    assert tree(shelf) == before
    assert main(["index", str(shelf)]) == 0


# --------------------------------------------------------------------------- the command line


def test_what_it_prints(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(shelf)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "3 wheels of 2 projects, index written" in said.out
    assert "sm61/simple/  6.1 (p40, p4, p6000, ...)  1 wheel with code" in said.out
    address = f"pip install --index-url {shelf.as_uri()}/sm61/simple"
    assert f"for 6.1  {address} llama-cpp-python==0.3.36+cu124.sm61\n" in said.out
    assert f"for 6.1  {address} small==1.0\n" in said.out
    assert main(["index", str(shelf)]) == 0
    assert "index as it was" in capsys.readouterr().out


def test_what_it_says_of_wheels_and_files_it_leaves(
    shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = llama("new", 90)
    make.make(fill(shelf, new))
    (shelf / "sm37/simple/index.html").write_text("mine")
    (shelf / K80.name).unlink()
    assert main(["index", str(shelf)]) == 0
    said = capsys.readouterr().out
    assert f"{new.name} runs on no old GPU: only simple/ lists it" in said
    assert "sm37/simple/index.html was changed by somebody" in said


def test_its_document(shelf: Path) -> None:
    done = run("index", str(shelf), "--json")
    assert done.returncode == 0 and done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema"] == "legacy-cuda/index/1"
    assert document["path"] == str(shelf)
    assert [row["path"] for row in document["indexes"]] == [
        "simple/",
        "sm37/simple/",
        "sm61/simple/",
    ]
    assert document["indexes"][2]["files"] == [P40.name, SMALL.name]
    row = next(row for row in document["wheels"] if row["file"] == P40.name)
    assert (row["project"], row["version"]) == ("llama-cpp-python", "0.3.36+cu124.sm61")
    assert (row["sha256"], row["size"]) == (P40.sha256, len(P40.data))
    outcomes = {verdict["capability"]: verdict for verdict in row["verdicts"]}
    assert outcomes["6.1"]["outcome"] == "runs" and "p40" in outcomes["6.1"]["gpus"]
    assert outcomes["3.7"]["outcome"] == "does-not-run"
    assert set(document["written"]) == set(files(shelf)) - {publish.MANIFEST}
    assert (document["removed"], document["kept"], document["unchanged"]) == ([], [], 0)


def test_help() -> None:
    done = run("index", "--help")
    assert done.returncode == 0 and "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
