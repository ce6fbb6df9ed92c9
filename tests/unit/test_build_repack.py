"""One wheel into another: read back with zipfile and csv, the same bytes every time."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from test_build_patches import HEADER, difference

from legacy_cuda.build import repack as repack_module
from legacy_cuda.build.patches import PatchError, parse
from legacy_cuda.build.repack import RepackError, output_name, repack
from legacy_cuda.build.series import Series
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.patched import PatchedPackage

FACTS = PatchedPackage("small", "1.0", "legacy.1", (Capability(6, 1),), (), "", ())
INFO = "small-1.0.dist-info"
NEW = "small-1.0+legacy.1.dist-info"
PATCH = HEADER + b"--- a/small/x.py\n+++ b/small/x.py\n@@ -1 +1,2 @@\n-N = 1\n+N = 2\n+M = 3\n"
MEMBERS = {
    "small/x.py": b"N = 1\n",
    "small/other.py": b"O = 1\n" * 500,
    "small-1.0.data/scripts/tool": b"#!python\n",
    "small/lib.so": bytes(range(256)) * 50,
}


def make_series(*patches: bytes, modules: dict[str, bytes] | None = None) -> Series:
    return Series(
        FACTS,
        tuple(parse(text, f"{number:04}-t.patch") for number, text in enumerate(patches, 1)),
        tuple(hashlib.sha256(text).hexdigest() for text in patches),
        modules or {},
    )


def run(folder: Path, wheel: bytes, series: Series) -> bytes:
    """The patched wheel; what repack says of it is compared with what it wrote."""
    path = folder / "source.whl"
    path.write_bytes(wheel)
    out = io.BytesIO()
    said = repack(path, "small-1.0-py3-none-any.whl", "0" * 64, series, out)
    data = out.getvalue()
    assert (said.sha256, said.size) == (hashlib.sha256(data).hexdigest(), len(data))
    return data


def contents(wheel: bytes) -> dict[str, bytes]:
    """Every member, each with its CRC checked, by zipfile."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        names = archive.namelist()
        assert len(set(names)) == len(names)
        return {name: archive.read(name) for name in names if not name.endswith("/")}


def check_record(wheel: bytes, info: str = NEW) -> None:
    """RECORD has a right row for every member and no other, as an installer would see it."""
    members = contents(wheel)
    rows = list(csv.reader(members[f"{info}/RECORD"].decode().splitlines()))
    assert sorted(row[0] for row in rows) == sorted(members)
    for name, digest, size in rows:
        if name == f"{info}/RECORD":
            assert (digest, size) == ("", "")
            continue
        kind, _, value = digest.partition("=")
        found = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
        assert (kind, found) == ("sha256", hashlib.sha256(members[name]).digest()), name
        assert int(size) == len(members[name])


def wheel_of(members: dict[str, bytes]) -> bytes:
    return tiny.make_wheel("small", "1.0", members).data


# ------------------------------------------------------------------------------ what comes out


def test_what_comes_out(tmp_path: Path) -> None:
    series = make_series(PATCH, modules={"small/legacy/a.py": b"A = 1\n"})
    source = wheel_of(MEMBERS)
    data = run(tmp_path, source, series)
    check_record(data)
    was, now = contents(source), contents(data)
    assert now["small/x.py"] == b"N = 2\nM = 3\n"
    assert now["small/legacy/a.py"] == b"A = 1\n"
    for name in ("small/other.py", "small/lib.so", f"{INFO}/WHEEL"):
        assert now[name.replace(INFO, NEW)] == was[name]
    assert now["small-1.0+legacy.1.data/scripts/tool"] == was["small-1.0.data/scripts/tool"]
    assert now[f"{NEW}/METADATA"] == was[f"{INFO}/METADATA"].replace(b"1.0", b"1.0+legacy.1")
    assert not [name for name in now if "small-1.0." in name]
    document = json.loads(now[f"{NEW}/legacy-cuda.json"])
    assert document["schema"] == "legacy-cuda/patched-wheel/1"
    assert document["source"] == {"file": "small-1.0-py3-none-any.whl", "sha256": "0" * 64}
    assert document["series"] == series.digest
    assert document["patches"] == [
        {"name": "0001-t.patch", "sha256": hashlib.sha256(PATCH).hexdigest()}
    ]
    assert document["modules"] == [
        {"path": "small/legacy/a.py", "sha256": hashlib.sha256(b"A = 1\n").hexdigest()}
    ]


def test_members_keep_order_and_permissions_and_have_one_time(tmp_path: Path) -> None:
    source = wheel_of(MEMBERS)
    data = run(tmp_path, source, make_series(PATCH, modules={"small/z.py": b"", "small/a.py": b""}))
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(io.BytesIO(data)) as new:
        names = [
            name.replace(INFO, NEW).replace("1.0.data", "1.0+legacy.1.data")
            for name in old.namelist()
            if not name.endswith("RECORD")
        ]
        names += ["small/a.py", "small/z.py", f"{NEW}/legacy-cuda.json", f"{NEW}/RECORD"]
        assert new.namelist() == names
        assert {info.date_time for info in new.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        modes = {info.filename: info.external_attr >> 16 for info in new.infolist()}
        assert modes.pop("small-1.0+legacy.1.data/scripts/tool") == stat.S_IFREG | 0o755
        assert set(modes.values()) == {stat.S_IFREG | 0o644}
        kept, changed = new.getinfo("small/other.py"), new.getinfo("small/x.py")
        assert kept.compress_type == zipfile.ZIP_DEFLATED
        assert kept.compress_size == old.getinfo("small/other.py").compress_size
        assert changed.compress_type == zipfile.ZIP_STORED


def test_installers_take_it_and_what_needed_the_old_version_is_content(tmp_path: Path) -> None:
    name = output_name("small-1.0-1-py3-none-any.whl", make_series(PATCH))
    project, version, build, _ = parse_wheel_filename(name)
    assert (project, str(version), build) == ("small", "1.0+legacy.1", (1, ""))
    assert Requirement("small==1.0").specifier.contains(version)
    assert Requirement("small>=1.0,<2").specifier.contains(version)
    assert not Requirement("small==1.0.1").specifier.contains(version)
    for other in ("small-1.1-py3-none-any.whl", "large-1.0-py3-none-any.whl", "small.whl"):
        with pytest.raises(RepackError, match=r"is not small 1\.0"):
            output_name(other, make_series(PATCH))


TEXT = st.lists(st.sampled_from([b"a\n", b"b\n", b"c = 1\r\n", b"\xff\n", b"\n"]), max_size=8)
NAME = st.sampled_from(["small/a.py", "small/b.py", "small/é.py", "small/c,d.py", 's "q".txt'])


@given(
    st.dictionaries(NAME, TEXT.map(b"".join), min_size=1),
    st.dictionaries(NAME, TEXT.map(b"".join)),
    st.dictionaries(st.sampled_from(["small/m.py", "small/n/o.py"]), st.binary(max_size=50)),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_wheel_any_patch(
    tmp_path: Path,
    before: dict[str, bytes],
    after: dict[str, bytes],
    modules: dict[str, bytes],
    method: int,
) -> None:
    texts = []
    for name in sorted(before.keys() & after.keys()):
        text = difference(before[name], after[name], 2)
        if text:
            body = text[text.index(b"@@") :]
            head = f"--- a/{name}\n+++ b/{name}\n".encode()
            texts.append(head + body)
    patches = [HEADER + b"".join(texts)] if texts else []
    source = pack(wheel_of(before), method)
    data = run(tmp_path, source, make_series(*patches, modules=modules))
    check_record(data)
    now = contents(data)
    for name, content in before.items():
        assert now[name] == after.get(name, content)
    for name, content in modules.items():
        assert now[name] == content
    assert run(tmp_path, source, make_series(*patches, modules=modules)) == data


# --------------------------------------------------------------------------- kinds of archives


class Unseekable(io.RawIOBase):
    """A stream: zipfile writes sizes after the data then (data descriptors)."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self.data += piece
        return len(piece)


def pack(
    wheel: bytes,
    method: int = zipfile.ZIP_DEFLATED,
    zip64: bool = False,
    out: Any = None,
    **changes: Any,
) -> bytes:
    """A wheel's members packed again by zipfile in another way."""
    target = io.BytesIO() if out is None else out
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.comment = b"a comment"
        archive.writestr("small/", b"")
        for name, content in contents(wheel).items():
            info = zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6))
            info.compress_type = method
            info.extra = b"\xfe\xca\x02\x00ab"
            info.external_attr = 0o100644 << 16
            for key, value in changes.items():
                setattr(info, key, value)
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(content)
    return bytes(target.data) if out is not None else target.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": zipfile.ZIP_STORED},
        {"zip64": True},
        {"out": "stream"},
        {"out": "stream", "zip64": True, "method": zipfile.ZIP_STORED},
        {"create_system": 0, "external_attr": 0},
    ],
    ids=str,
)
def test_other_ways_to_pack_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    """Data descriptors, zip64 fields, extra fields, comments and folders leave no trace."""
    chosen = {**options, "out": Unseekable()} if "out" in options else options
    data = run(tmp_path, pack(wheel_of(MEMBERS), **chosen), make_series(PATCH))
    check_record(data)
    for other in (b"\xfe\xca\x02\x00ab", b"a comment", b"PK\x07\x08"):
        assert other not in data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert not any(info.flag_bits & 8 or info.extra for info in archive.infolist())
        assert {info.external_attr for info in archive.infolist()} == {0o100644 << 16}


@pytest.mark.parametrize(("large", "many"), [(100, 0xFFFF), (0xFFFFFFFF, 5), (4000, 5)])
def test_zip64_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, many: int
) -> None:
    """With smaller limits every kind of zip64 field is written, and zipfile reads each."""
    plain = run(tmp_path, wheel_of(MEMBERS), make_series(PATCH))
    monkeypatch.setattr(repack_module, "_LARGE", large)
    monkeypatch.setattr(repack_module, "_MANY", many)
    data = run(tmp_path, wheel_of(MEMBERS), make_series(PATCH))
    assert data != plain and contents(data) == contents(plain)
    check_record(data)


# ------------------------------------------------------------------------------- what is refused


def rewrite(wheel: bytes, change: Any) -> bytes:
    """A wheel with its members changed by a function, RECORD left as it was."""
    members = contents(wheel)
    change(members)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def replaced(name: str, old: bytes, new: bytes) -> Any:
    def change(members: dict[str, bytes]) -> None:
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"small/new.py": b""}), r"RECORD does not have small/new\.py"),
        (lambda m: m.pop("small/other.py"), r"RECORD has small/other\.py, which is not in"),
        (lambda m: m.update({"small/other.py": b"shorter"}), r"RECORD does not have small/other"),
        (lambda m: m.pop(f"{INFO}/RECORD"), "the wheel has no .*RECORD"),
        (lambda m: m.pop(f"{INFO}/METADATA"), r"RECORD has .*METADATA, which is not"),
        (replaced(f"{INFO}/RECORD", b"sha256=", b"md5="), "with a sha256"),
        (replaced(f"{INFO}/RECORD", b"small/x.py,", b"small/x.py,,"), "a row that is none"),
        (replaced(f"{INFO}/RECORD", b"small/x.py", b"small/other.py"), "one twice"),
        (replaced(f"{INFO}/RECORD", b"small/x.py", b"\xff"), "RECORD cannot be read"),
        (replaced(f"{INFO}/METADATA", b"n: 1.0", b"n: 1.1"), "METADATA does not say"),
        (replaced(f"{INFO}/METADATA", b"\nName: small", b"\nVersion: 12"), "does not say"),
        (lambda m: m.update({"b-1.dist-info/x": b""}), r"has 2 folders \*\.dist-info"),
        (lambda m: m.update({"../x.py": b""}), "leaves the archive"),
        (lambda m: m.update({"/x.py": b""}), "leaves the archive"),
        (lambda m: m.update({"a\\..\\x.py": b""}), "leaves the archive"),
    ],
)
def test_a_wheel_that_is_not_whole(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(RepackError, match=message):
        run(tmp_path, rewrite(wheel_of(MEMBERS), change), make_series(PATCH))


def test_archives_that_are_none(tmp_path: Path) -> None:
    wheel = wheel_of(MEMBERS)
    for bad in (b"", b"PK", wheel[:-30], wheel[: len(wheel) // 2]):
        with pytest.raises(RepackError, match=r"small-1\.0-py3-none-any\.whl"):
            run(tmp_path, bad, make_series(PATCH))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_and_a_link(tmp_path: Path) -> None:
    out = io.BytesIO(wheel_of(MEMBERS))
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("small/x.py", b"N = 1\n")
    with pytest.raises(RepackError, match="is in the wheel twice"):
        run(tmp_path, out.getvalue(), make_series(PATCH))
    link = pack(wheel_of(MEMBERS), external_attr=(stat.S_IFLNK | 0o777) << 16)
    with pytest.raises(RepackError, match="neither a file nor a folder"):
        run(tmp_path, link, make_series(PATCH))


def test_patches_and_modules_that_do_not_go_with_it(tmp_path: Path) -> None:
    wheel = wheel_of(MEMBERS)
    for target, message in (
        ("small/nothing.py", "which is not there"),
        (f"{INFO}/METADATA", "that folder is written here"),
        (f"{INFO}/RECORD", "that folder is written here"),
        ("small/other.py", "does not fit small/other"),
        ("small/lib.so", "does not fit small/lib"),
    ):
        with pytest.raises((PatchError, RepackError), match=message):
            run(tmp_path, wheel, make_series(PATCH.replace(b"small/x.py", target.encode())))
    with pytest.raises(RepackError, match="no module may replace it"):
        run(tmp_path, wheel, make_series(modules={"small/x.py": b""}))
    other = tiny.make_wheel("small", "1.1", MEMBERS).data
    with pytest.raises(RepackError, match=r"is not that of small 1\.0"):
        run(tmp_path, other, make_series(PATCH))


def test_a_corrupt_member_that_is_patched(tmp_path: Path) -> None:
    wheel = bytearray(pack(wheel_of(MEMBERS), zipfile.ZIP_STORED))
    at = wheel.index(b"N = 1\n")
    wheel[at] ^= 1
    with pytest.raises(RepackError, match="CRC"):
        run(tmp_path, bytes(wheel), make_series(PATCH))


def test_a_wheel_of_signatures_loses_them(tmp_path: Path) -> None:
    wheel = rewrite(
        wheel_of(MEMBERS), lambda members: members.update({f"{INFO}/RECORD.jws": b"signed"})
    )
    data = run(tmp_path, wheel, make_series(PATCH))
    check_record(data)
    assert f"{NEW}/RECORD.jws" not in contents(data)


# ------------------------------------------------------------------------------- the same bytes

PROGRAM = """
import os, sys, time
os.umask(int(sys.argv[3], 8))
import zlib
zlib.compress = zlib.compressobj = None  # nothing is compressed here
from pathlib import Path
from test_build_repack import PATCH, make_series
from legacy_cuda.build.repack import repack
with open(sys.argv[2], "wb") as out:
    series = make_series(PATCH, modules={"small/m/%s.py" % name: b"" for name in "zbxa"})
    repack(Path(sys.argv[1]), "small-1.0-py3-none-any.whl", "0" * 64, series, out)
"""


def test_the_same_bytes_whatever_surrounds_it(tmp_path: Path) -> None:
    source = tmp_path / "small-1.0-py3-none-any.whl"
    source.write_bytes(wheel_of(MEMBERS))
    results = set()
    here = str(Path(__file__).parent)
    for number, (umask, zone, seed, when) in enumerate(
        [("022", "UTC", "1", 0), ("077", "Asia/Tokyo", "2", 2**31), ("000", "EST5EDT", "3", 10**9)]
    ):
        folder = tmp_path / f"cwd {number}"
        folder.mkdir()
        out = folder / f"out{number}.whl"
        os.utime(source, (when, when))
        source.chmod(0o600 + number)
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(source), str(out), umask],
            cwd=folder,
            env={**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "PYTHONPATH": here, "LANG": "C"},
            check=True,
        )
        results.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(results) == 1


def test_the_digest_is_about_all_that_decides() -> None:
    series = make_series(PATCH, modules={"small/a.py": b""})
    changed = [
        make_series(PATCH + b"@@ -9 +10 @@\n-x\n+y\n", modules={"small/a.py": b""}),
        make_series(PATCH, modules={"small/a.py": b" "}),
        make_series(PATCH, modules={"small/b.py": b""}),
        make_series(PATCH, PATCH, modules={"small/a.py": b""}),
        dataclasses.replace(series, facts=dataclasses.replace(FACTS, local="legacy.2")),
    ]
    assert len({series.digest, *(item.digest for item in changed)}) == 6
    assert make_series(PATCH, modules={"small/a.py": b""}).digest == series.digest
