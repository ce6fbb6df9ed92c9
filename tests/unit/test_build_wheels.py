"""``build`` and a patching ``up``: a catalog and an index made up here, the real uv, no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_build_patches import HEADER

from legacy_cuda import catalog
from legacy_cuda.fetch import uv_binary

FIRST = HEADER + b"--- a/small/part1.py\n+++ b/small/part1.py\n@@ -1 +1 @@\n-N = 1\n+N = 101\n"
SECOND = HEADER + b"--- a/small/part2.py\n+++ b/small/part2.py\n@@ -1 +1 @@\n-N = 2\n+N = 102\n"
WHEEL = "small-1.0+legacy.1-py3-none-any.whl"


def write_catalog(own: Path, wheel: tiny.Wheel, lock: bool = True, **more: str) -> None:
    """The catalog with the pascal stack's ``small`` patched; ``small`` 0.9 is patched as well."""
    data = tiny.write_catalog(own, patched="small")
    rows = []
    for version, name, sha256 in (
        ("0.9", "small-0.9-py3-none-any.whl", "9" * 64),
        ("1.0", wheel.name, wheel.sha256),
    ):
        locked = lock and version == "1.0"
        row = ["[[patched]]", 'package = "small"', f'version = "{version}"', 'local = "legacy.1"']
        row += ['capabilities = ["5.0", "6.1"]' if locked else 'capabilities = ["3.7", "5.0"]']
        row += ['modules = [{ source = "backend", target = "small/legacy" }]']
        row += (
            [f'lock = "{tiny.LOCK}"'] if locked else ['pythons = ["3.10", "3.11", "3.12", "3.13"]']
        )
        row += [f'series = "{more.get("series", "0" * 64)}"', "[[patched.wheel]]"]
        row += [f'name = "{name}"', f'result = "{more.get("result", "0" * 64)}"']
        if not locked:
            row += [
                f'sha256 = "{sha256}"',
                "size = 1000",
                'pythons = ["3.10", "3.11", "3.12", "3.13"]',
            ]
        rows += [*row, ""]
    (data / "patched.toml").write_text("\n".join(rows))


def write_patches(own: Path, *patches: bytes) -> None:
    folder = own / "patches" / "small" / "1.0"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, text in enumerate(patches, 1):
        (folder / f"{number:04}-t.patch").write_bytes(text)
    (own / "backend").mkdir(exist_ok=True)
    (own / "backend" / "__init__.py").write_text("WHO = 'ours'\n")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tiny.Box]:
    with tiny.box(tmp_path) as fresh:
        write_catalog(fresh.own, fresh.index.wheels[2])
        write_patches(fresh.own, FIRST)
        yield fresh


@pytest.fixture
def ready(box: tiny.Box) -> tiny.Box:
    done = box.run("up", "p40")
    assert done.returncode == 0, done.stdout + done.stderr
    return box


def build(box: tiny.Box, *arguments: str, code: int = 0, **options: Any) -> Any:
    """The one document that the command writes."""
    folder = box.home / "here"
    folder.mkdir(exist_ok=True)
    done = box.run("build", *arguments, "--json", cwd=folder, **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def up(box: tiny.Box, *arguments: str, code: int = 0, **options: Any) -> Any:
    done = box.run("up", "p40", *arguments, "--json", **options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


def ask(box: tiny.Box, program: str) -> str:
    """What the environment's Python prints."""
    command = [box.target / "bin" / "python", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def record(box: tiny.Box) -> str:
    """Record the digest and result of the series as it is now; the result's sha256."""
    made = build(box, "small", "--for", "p40")
    write_catalog(box.own, box.index.wheels[2], series=made["series"], result=made["sha256"])
    Path(made["path"]).unlink()
    return str(made["sha256"])


# ----------------------------------------------------------------------------------------- build


def test_build(box: tiny.Box) -> None:
    made = build(box, "small", "--for", "p40")
    path = box.home / "here" / WHEEL
    assert made["schema"] == "legacy-cuda/build/1"
    assert (made["path"], made["file"], made["state"]) == (str(path), WHEEL, "made")
    assert made["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert made["size"] == path.stat().st_size
    assert not made["checked"]
    assert made["source"]["sha256"] == box.index.wheels[2].sha256
    (patch,) = made["patches"]
    assert (patch["name"], patch["why"]) == ("0001-t.patch", "it has to")
    assert (patch["capabilities"], patch["files"]) == (["5.0", "6.1"], ["small/part1.py"])
    assert made["modules"] == ["small/legacy/__init__.py"]
    assert made["install"] == f"pip install ./{WHEEL}"
    with zipfile.ZipFile(path) as archive:
        assert archive.read("small/part1.py") == b"N = 101\n"
        assert archive.read("small/legacy/__init__.py") == b"WHO = 'ours'\n"
    assert leftovers(path.parent) == []


def test_it_says_what_for_whom_and_how_to_install(box: tiny.Box) -> None:
    done = box.run("build", "small", "--for", "p40", "--output", str(box.home / "o u t"))
    assert done.returncode == 0, done.stderr
    path = box.home / "o u t" / WHEEL
    text = " ".join(done.stdout.split())
    for said in (
        "small 1.0+legacy.1",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "not recorded",
        "small-1.0-py3-none-any.whl",
        "0001-t: it has to [for 6.1]",
        "1 modules in small/legacy",
        f"pip install '{path}'",
    ):
        assert said in text
    assert "to download unless it is cached" in done.stderr
    other = box.run("build", "small", "--for", "10de:1b38,gtx1060-6gb", "--output", str(box.home))
    assert other.returncode == 0, other.stderr
    assert (box.home / WHEEL).read_bytes() == path.read_bytes()


def test_a_recorded_result_is_checked_and_kept(box: tiny.Box) -> None:
    sha256 = record(box)
    made = build(box, "small", "--for", "p40")
    assert (made["checked"], made["state"], made["sha256"]) == (True, "made", sha256)
    inode = Path(made["path"]).stat().st_ino
    again = build(box, "small", "--for", "p40")
    assert (again["checked"], again["state"]) == (True, "there already")
    assert Path(made["path"]).stat().st_ino == inode
    Path(made["path"]).write_bytes(b"something else")
    assert build(box, "small", "--for", "p40")["sha256"] == sha256
    assert len(box.index.asked) == 1


def test_a_result_that_is_not_the_recorded_one(box: tiny.Box) -> None:
    made = build(box, "small", "--for", "p40")
    path = Path(made["path"])
    before = path.read_bytes()
    write_catalog(box.own, box.index.wheels[2], series=made["series"], result="1" * 64)
    said = build(box, "small", "--for", "p40", code=3)
    assert "not what it should be" in said["error"]
    assert "1" * 64 in said["why"] and made["sha256"] in said["why"]
    assert path.read_bytes() == before and leftovers(path.parent) == []
    done = box.run("up", "p40")
    assert done.returncode == 3 and "not what it should be" in done.stderr
    assert not box.target.exists()


def test_a_wheel_of_ones_own(box: tiny.Box) -> None:
    wheel = box.home / "mine.whl"
    wheel.write_bytes(box.index.wheels[2].data)
    made = build(box, "small", "--for", "p40", "--wheel", str(wheel))
    assert made["file"] == WHEEL and box.index.asked == []
    wheel.write_bytes(box.index.wheels[1].data)
    said = build(box, "small", "--for", "p40", "--wheel", str(wheel), code=2)
    assert "mine.whl is not a wheel of small 1.0" in said["error"]
    assert f"expected {box.index.wheels[2].sha256}  small-1.0-py3-none-any.whl" in said["why"]
    assert box.index.wheels[1].sha256 in said["why"]
    said = build(box, "small", "--for", "p40", "--wheel", str(box.home / "no.whl"), code=2)
    assert "cannot be read" in said["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["large", "--for", "p40"],
            2,
            ["nor a patch for 'large'", "small 0.9, small 1.0"],
        ),
        (["small", "--for", "p41"], 2, ["'p41'", "p40"]),
        (["small", "--for", "p40", "--version", "7"], 2, ["no patches for small 7", "0.9, 1.0"]),
        (["small", "--for", "p40", "--python", "3.9"], 2, ["for Python 3.9", "3.10, 3.11"]),
        (["small", "--for", "p40", "--version", "0.9"], 1, ["for 6.1", "3.7, 5.0", "1.0"]),
        (["small", "--for", "m40"], 1, ["for 5.2", "5.0, 6.1", "pip install small==1.0"]),
        (["small", "--for", "m40,p40"], 1, ["for 5.2", "for 6.1 alone: --version 1.0"]),
        (["small", "--for", "k80"], 1, ["kepler stack has no small", "--version 0.9"]),
        (["small", "--for", "k80,v100"], 1, ["has no small", "for 3.7 alone: --version 0.9"]),
        (["small", "--for", "k80,rtx5090"], 1, ["refused [", "2 machines"]),
        (["small", "--for", "k80", "--version", "0.9"], 1, ["no patch for small 0.9 yet"]),
    ],
)
def test_what_is_not_there(box: tiny.Box, arguments: list[str], code: int, said: list[str]) -> None:
    text = (box.locks / f"{tiny.LOCK}.toml").read_text()
    empty = text.partition("[[package]]")[0].replace(tiny.LOCK, "torch-2.0.1")
    (box.locks / "torch-2.0.1.toml").write_text(f"{empty}package = []\n")
    done = box.run("build", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    text = " ".join((done.stdout + done.stderr).split())
    assert all(part in text for part in said), text
    document = build(box, *arguments, code=code)
    assert document["schema"] in (
        "legacy-cuda/error/1",
        "legacy-cuda/build/1",
        "legacy-cuda/resolve/1",
    )
    assert box.index.asked == [] and not (box.home / "cache").exists()


def test_usage(box: tiny.Box) -> None:
    done = box.run("build", "small")
    assert done.returncode == 2 and "--for" in done.stderr


def test_a_patch_that_does_not_fit_is_our_fault(box: tiny.Box) -> None:
    write_patches(box.own, FIRST.replace(b"-N = 1\n", b"-N = 7\n"))
    said = build(box, "small", "--for", "p40", code=3)
    assert "cannot be applied" in said["error"]
    assert "0001-t.patch does not fit small/part1.py, hunk 1: line 1 is 'N = 1" in said["why"]
    assert list((box.home / "here").iterdir()) == []
    write_patches(box.own, b"Why: no\n")
    assert "does not say Capabilities" in build(box, "small", "--for", "p40", code=3)["why"]
    done = box.run("up", "p40")
    assert done.returncode == 3 and "does not say Capabilities" in done.stderr


def test_surroundings_that_fail(box: tiny.Box) -> None:
    box.index.lies["small-1.0-py3-none-any.whl"] = b"another"
    assert "wrong sha256" in build(box, "small", "--for", "p40", code=3)["error"]
    box.index.lies.clear()
    box.index.gone.add("small-1.0-py3-none-any.whl")
    assert "could not be downloaded" in build(box, "small", "--for", "p40", code=3)["error"]
    box.index.gone.clear()
    (box.home / "file").write_text("")
    blocked = {"LEGACY_CUDA_CACHE": str(box.home / "file")}
    said = build(box, "small", "--for", "p40", variables=blocked, code=3)
    assert "could not be stored" in said["error"] and "LEGACY_CUDA_CACHE" in said["next"]
    said = build(box, "small", "--for", "p40", "--output", str(box.home / "file"), code=3)
    assert "could not be written" in said["error"] and "--output" in said["next"]


def test_a_full_disk(box: tiny.Box) -> None:
    disk = box.home / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("skipped: cannot mount a small disk (needs root)")
    try:
        said = build(box, "small", "--for", "p40", "--output", str(disk), code=3)
        assert "could not be written" in said["error"] and said["next"].startswith("free ")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_a_killed_run_left_is_used_and_two_at_once_agree(box: tiny.Box) -> None:
    folder = box.home / "here"
    folder.mkdir()
    (folder / f".{WHEEL}.part").write_bytes(b"half of it" * 10_000)
    record(box)
    command = [*tiny.command(box.own), "build", "small", "--for", "p40", "--json"]
    runs = [
        subprocess.Popen(command, cwd=folder, env=box.variables, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    said = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert len({item["sha256"] for item in said}) == 1
    assert sorted(item["state"] for item in said) == ["made", *["there already"] * 3]
    assert [path.name for path in folder.iterdir()] == [WHEEL]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_file_has_the_permissions_of_any_other(box: tiny.Box, umask: int) -> None:
    made = build(box, "small", "--for", "p40", preexec_fn=lambda: os.umask(umask) and None)
    assert stat.S_IMODE(Path(made["path"]).stat().st_mode) == 0o666 & ~umask


# -------------------------------------------------------------------------------------------- up


def test_up_installs_what_was_patched(ready: tiny.Box) -> None:
    manifest = json.loads((ready.target / "legacy-cuda.json").read_text())
    assert manifest["packages"] == {"torch": "2.7.1", "numpy": "2.2.6", "small": "1.0+legacy.1"}
    (item,) = manifest["patched"]
    assert (item["package"], item["version"]) == ("small", "1.0+legacy.1")
    assert [patch["why"] for patch in item["patches"]] == ["it has to"]
    program = (
        "import small.part1, small.legacy, importlib.metadata as m; "
        "print(small.part1.N, small.legacy.WHO, m.version('small'))"
    )
    assert ask(ready, program) == "101 ours 1.0+legacy.1"
    page = (ready.target / "report.html").read_text()
    assert "Patched packages" in page and "it has to" in page and item["sha256"] in page


def test_up_says_what_is_patched(box: tiny.Box) -> None:
    done = box.run("up", "p40")
    assert "patched  small 1.0+legacy.1: 1 patches" in done.stderr
    assert "small 1.0+legacy.1" in done.stdout and "patched" in done.stdout
    resolved = box.run("resolve", "p40")
    assert "patched" in resolved.stdout
    assert json.loads(box.run("resolve", "p40", "--json").stdout)["patched"] == ["small"]
    assert json.loads(box.run("resolve", "m40", "--json").stdout)["patched"] == []


def test_dependencies_on_the_published_version_are_satisfied(tmp_path: Path) -> None:
    """What ``uv pip check`` says where torch asks for small==1.0, and small is patched."""
    wheels = tiny.make_stack()
    with zipfile.ZipFile(io.BytesIO(wheels[0].data)) as archive:
        members = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
    tag = "py3-none-manylinux_2_17_x86_64"
    wheels[0] = tiny.make_wheel("torch", "2.7.1", members, tag, "small==1.0")
    with tiny.box(tmp_path, wheels) as box:
        write_catalog(box.own, wheels[2])
        write_patches(box.own, FIRST)
        up(box)
        python = box.target / "bin" / "python"
        for version, code in (("1.0", 0), ("1.1", 1)):
            path = next(box.target.glob("lib/python3*/site-packages/torch-*.dist-info/METADATA"))
            text = path.read_text()
            assert "Requires-Dist: small==1.0" in text or version != "1.0"
            path.unlink()
            path.write_text(text.replace("small==1.0", f"small=={version}"))
            command = [uv_binary(), "pip", "check", "--python", str(python)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr


def test_a_second_environment_takes_it_from_the_cache(ready: tiny.Box) -> None:
    asked = len(ready.index.asked)
    (cached,) = (ready.home / "cache" / "patched").rglob("*.whl")
    before = cached.stat()
    ready.index.gone.update(wheel.name for wheel in ready.index.wheels)
    made = up(ready, "--path", str(ready.home / "second"), "--offline")
    assert made["state"] == "made" and len(ready.index.asked) == asked
    assert (cached.stat().st_ino, cached.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    shutil.rmtree(cached.parent)
    up(ready, "--path", str(ready.home / "third"), "--offline")
    shutil.rmtree(ready.home / "cache")
    said = up(ready, "--path", str(ready.home / "fourth"), "--offline", code=3)
    assert "does not hold small-1.0-py3-none-any.whl" in said["error"]


def test_a_file_of_the_cache_that_was_changed_is_made_again(ready: tiny.Box) -> None:
    (cached,) = (ready.home / "cache" / "patched").rglob("*.whl")
    good = cached.read_bytes()
    cached.write_bytes(good[:-1] + b"x")
    up(ready, "--path", str(ready.home / "second"))
    assert cached.read_bytes() == good
    when = cached.stat().st_mtime_ns
    os.utime(cached, ns=(when, when + 10**9))  # touched, but the same: nothing is made
    inode = cached.stat().st_ino
    up(ready, "--path", str(ready.home / "third"))
    assert cached.stat().st_ino == inode
    status = cached.stat()
    cached.write_bytes(good[:-1] + b"x")
    os.utime(cached, ns=(status.st_atime_ns, status.st_mtime_ns))
    up(ready, "--recreate")  # reads everything
    assert cached.read_bytes() == good


def kept(box: tiny.Box) -> str:
    done = box.run("up", "p40")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "--recreate" in done.stderr and "Traceback" not in done.stderr
    return done.stderr


def test_another_series_does_not_fit(ready: tiny.Box) -> None:
    assert "unchanged" in ready.run("up", "p40").stdout
    write_patches(ready.own, FIRST, SECOND)
    assert "the patches of its small 1.0+legacy.1 have changed" in kept(ready)
    assert up(ready, "--recreate")["state"] == "made"
    assert ask(ready, "import small.part2; print(small.part2.N)") == "102"
    assert len(list((ready.home / "cache" / "patched").rglob("*.whl"))) == 1
    (ready.own / "backend" / "__init__.py").write_text("WHO = 'others'\n")
    assert "have changed" in kept(ready)


def test_patched_before_and_not_now_and_the_other_way_round(ready: tiny.Box) -> None:
    patches = (ready.own / "data" / "stacks.toml").read_text()
    tiny.write_catalog(ready.own)
    assert "its small 1.0+legacy.1 is patched, and is not now" in kept(ready)
    assert up(ready, "--recreate")["packages"]["small"] == "1.0"
    assert ask(ready, "import small.part1; print(small.part1.N)") == "1"
    (ready.own / "data" / "stacks.toml").write_text(patches)
    assert "its small is as published, and is patched now" in kept(ready)
    tiny.write_catalog(ready.own)
    assert up(ready)["state"].startswith("unchanged")


def test_altered_files_of_a_patched_package_are_noticed(ready: tiny.Box) -> None:
    (site,) = ready.target.glob("lib/python3*/site-packages")
    (site / "extra.py").write_text("")
    again = up(ready)
    assert (again["state"], again["altered"]) == ("examined again", [])
    assert again["patched"][0]["version"] == "1.0+legacy.1"
    path = site / "small" / "part1.py"
    path.unlink()
    path.write_text("N = 1\n")
    done = ready.run("up", "p40", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["altered"] == ["small/part1.py"]


def test_a_cache_of_ours_that_cannot_be_written(box: tiny.Box) -> None:
    (box.home / "file").write_text("")
    blocked = {"LEGACY_CUDA_CACHE": str(box.home / "file")}
    said = up(box, variables=blocked, code=3)
    assert "could not be stored" in said["error"] and "LEGACY_CUDA_CACHE" in said["next"]
    assert not box.target.exists()


def test_room_for_patched_wheels_is_looked_at_before(box: tiny.Box) -> None:
    disk = box.home / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("skipped: cannot mount a small disk (needs root)")
    try:
        said = up(box, variables={"LEGACY_CUDA_CACHE": str(disk)}, code=3)
        assert "not enough room for patched wheels" in said["error"]
        assert box.index.asked == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ------------------------------------------------------------------------------------- the tool


def test_building_imports_nothing_of_the_wheel(box: tiny.Box) -> None:
    """A wheel whose every module would end the program."""
    members = {f"small/part{number}.py": b"N = 1\n" for number in (1, 2)}
    members |= {
        "small/__init__.py": b"raise SystemExit('run')\n",
        "x.pth": b"import os; os._exit(9)\n",
    }
    wheel = tiny.make_wheel("small", "1.0", members)
    box.index.wheels[2] = wheel
    tiny.write_lock(box.locks, box.index.wheels)
    write_catalog(box.own, wheel)
    assert build(box, "small", "--for", "p40")["file"] == WHEEL


def test_the_catalog_here_has_the_form_of_the_real_one(box: tiny.Box) -> None:
    import jsonschema

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    schema = json.loads((catalog.DATA.parent / "schema" / "patched.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for folder in (catalog.DATA, box.own / "data"):
        data = tomllib.loads((folder / "patched.toml").read_text())
        jsonschema.Draft202012Validator(schema).validate(data)
