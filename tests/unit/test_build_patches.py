"""Patches: read strictly, applied exactly or not at all; and the ones of this repository."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legacy_cuda import catalog
from legacy_cuda.build import make, series
from legacy_cuda.build.patches import FileDiff, Patch, PatchError, apply, apply_all, parse
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.patched import PatchedPackage, find_patched, patched
from legacy_cuda.catalog.recipes import recipes

HEADER = b"Why: it has to\nCapabilities: 5.0 6.1\nOrigin: own\n\n"
BEFORE = b"one\ntwo\nthree\nfour\nfive\nsix\nseven\n"
DIFF = b"""--- a/p/x.py
+++ b/p/x.py
@@ -1,3 +1,4 @@ def f():
 one
-two
+TWO
+2
 three
@@ -6,2 +7 @@
 six
-seven
"""
AFTER = b"one\nTWO\n2\nthree\nfour\nfive\nsix\n"
ROOT = Path(__file__).parents[2]


def only(text: bytes) -> FileDiff:
    (diff,) = parse(HEADER + text, "t.patch").files
    return diff


def test_a_patch() -> None:
    patch = parse(HEADER + DIFF, "0001-t.patch")
    assert (patch.name, patch.why, patch.origin) == ("0001-t.patch", "it has to", "own")
    assert [str(capability) for capability in patch.capabilities] == ["5.0", "6.1"]
    (diff,) = patch.files
    assert diff.path == "p/x.py" and [hunk.start for hunk in diff.hunks] == [1, 6]
    assert apply(diff, BEFORE, "t") == AFTER


def test_a_header_of_several_lines() -> None:
    text = b"Why: one\n     two:\n three\nOrigin: o\n\n p\nCapabilities: 3.5\n"
    patch = parse(text + DIFF, "t")
    assert (patch.why, patch.origin) == ("one two: three", "o p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace(b"Why: it has to\n", b"") + DIFF, "does not say Why"),
        (HEADER.replace(b" own", b"") + DIFF, "does not say Origin"),
        (HEADER.replace(b"Why", b"Because") + DIFF, "'Because: it has to' in the header"),
        (b"Why: again\n" + HEADER + DIFF, "once"),
        (b"diff --git a/p/x.py b/p/x.py\n" + HEADER + DIFF, "in the header"),
        (HEADER.replace(b"has", b"\xff") + DIFF, "not UTF-8"),
        (HEADER.replace(b"5.0", b"5") + DIFF, "'5' is not a compute capability"),
        (HEADER.replace(b"5.0", b"6.1") + DIFF, "not ascending"),
        (HEADER.replace(b"5.0", b"7.0") + DIFF, "not ascending"),
        (HEADER, "changes nothing"),
        (HEADER + DIFF[:-1], "does not end with a newline"),
        (HEADER + DIFF + DIFF, "p/x.py is changed twice"),
        (HEADER + DIFF.replace(b"+++ b/p/x.py", b"+++ b/p/y.py"), "with the same path"),
        (HEADER + DIFF.replace(b"--- a/p/x.py", b"--- /dev/null"), "new ones are modules"),
        (HEADER + DIFF.replace(b"p/x.py", b"../x.py"), "not a path in a wheel"),
        (HEADER + DIFF.replace(b"p/x.py", b"/x.py"), "not a path in a wheel"),
        (HEADER + DIFF.replace(b"p/x.py", b"p/x.py\t2026"), "not a path in a wheel"),
        (HEADER + DIFF.partition(b"@@")[0], "no hunk"),
        (HEADER + DIFF.replace(b"@@ -1,3 +1,4 @@", b"@@ -1,3 +1,4"), "expected '@@"),
        (HEADER + DIFF.replace(b"-1,3", b"-1,4"), "line 13 begins with '@'"),
        (HEADER + DIFF.replace(b"-1,3", b"-1,2"), "more lines than it says"),
        (HEADER + DIFF.replace(b" one\n", b"one\n"), "begins with 'o'"),
        (HEADER + DIFF.replace(b" one\n", b"\n"), "line 8 begins with ''"),
        (HEADER + DIFF.replace(b"-6,2 +7", b"-6,2 +6"), "do not follow"),
        (HEADER + DIFF.replace(b"-6,2 +7", b"-2,2 +3"), "do not follow"),
        (
            HEADER + DIFF.replace(b"+TWO\n+2\n", b"+two\n").replace(b"1,4", b"1,3"),
            "changes nothing",
        ),
        (HEADER + DIFF + b"junk\n", "expected '@@"),
        (HEADER + DIFF.replace(b"-1,3", b"-" + b"1" * 5000), "expected '@@"),
        (HEADER + DIFF[:-7], "0 and 0 are there|1 and 1 are there"),
        (HEADER + DIFF.replace(b" one", b"\\ No newline at end of file"), "follows no line"),
    ],
)
def test_malformed(text: bytes, message: str) -> None:
    with pytest.raises(PatchError, match=message) as caught:
        parse(text, "0001-t.patch")
    assert str(caught.value).startswith("0001-t.patch")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BEFORE.replace(b"two", b"tw0"), r"hunk 1: line 2 is 'tw0\\n', not 'two\\n'"),
        (BEFORE.replace(b"six", b"six "), r"hunk 2: line 6 is 'six \\n', not 'six\\n'"),
        (BEFORE.replace(b"three\n", b"three\r\n"), r"hunk 1: line 3 is 'three\\r\\n'"),
        (b"zero\n" + BEFORE, "hunk 1: line 1 is 'zero"),
        (BEFORE[:-6], "hunk 2: it needs line 7, the file ends with 6"),
        (BEFORE[:-1], r"hunk 2: line 7 is 'seven', not 'seven\\n'"),
        (b"", "it needs line 3, the file ends with 0"),
    ],
)
def test_what_does_not_fit_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PatchError, match=message) as caught:
        apply(only(DIFF), content, "0001-t.patch")
    assert str(caught.value).startswith("0001-t.patch does not fit p/x.py")


def test_lines_may_follow_what_is_patched_but_not_a_line_without_its_end() -> None:
    assert apply(only(DIFF), BEFORE + b"eight", "t") == AFTER + b"eight"
    head = b"--- a/x\n+++ b/x\n"
    cut = head + b"@@ -2 +2 @@\n-b\n+c\n\\ No newline at end of file\n"
    assert apply(only(cut), b"a\nb\n", "t") == b"a\nc"
    with pytest.raises(PatchError, match="would not be the last one"):
        apply(only(cut), b"a\nb\nc\n", "t")
    with pytest.raises(PatchError, match="would not be the last one"):
        apply(only(head + b"@@ -1,0 +2 @@\n+b\n"), b"a", "t")


def test_patches_follow_one_another() -> None:
    first = parse(HEADER + DIFF, "1")
    second = parse(HEADER + b"--- a/p/x.py\n+++ b/p/x.py\n@@ -2 +2 @@\n-TWO\n+zwei\n", "2")
    files = {"p/x.py": BEFORE, "p/y.py": BEFORE}
    assert apply_all((first, second), files.get) == {"p/x.py": AFTER.replace(b"TWO", b"zwei")}
    with pytest.raises(PatchError, match="2 does not fit"):
        apply_all((second, first), files.get)
    with pytest.raises(PatchError, match=r"1 is for p/x\.py, which is not there"):
        apply_all((first,), {}.get)


# Bytes that other readers take for the end of a line, or for no text at all.
LINE = st.sampled_from(
    [b"", b"a", b"b", b"\xff", b"a\r", b"a\x0cb", b"\xe2\x80\xa8", b"- a", b"@@ "]
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(LINE, max_size=12))
    text = b"".join(line + b"\n" for line in lines)
    return text + draw(st.sampled_from([b"", b"", b"end"]))


def split(content: bytes) -> list[bytes]:
    return re.findall(rb"[^\n]*\n|[^\n]+\Z", content)


def difference(before: bytes, after: bytes, context: int) -> bytes:
    """What difflib says, with the marker that it leaves out."""
    rows = difflib.diff_bytes(
        difflib.unified_diff, split(before), split(after), b"a/x", b"b/x", n=context
    )
    marker = b"\n\\ No newline at end of file\n"
    return b"".join(row if row.endswith(b"\n") else row + marker for row in rows)


@given(contents(), contents(), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_what_difflib_writes_is_applied(before: bytes, after: bytes, context: int) -> None:
    text = difference(before, after, context)
    if before == after:
        assert text == b""
        return
    diff = only(text.replace(b"--- a/x \n", b"--- a/x\n"))
    assert apply(diff, before, "t") == after


@given(contents(), contents(), contents())
@settings(max_examples=200, deadline=None)
def test_nothing_is_applied_to_another_file(before: bytes, after: bytes, other: bytes) -> None:
    """With the whole file as context it fits that file only, or a longer one that begins so."""
    text = difference(before, after, 100)
    if text and not other.startswith(before):
        with pytest.raises(PatchError):
            apply(only(text), other, "t")


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_as_a_patch_error(noise: bytes) -> None:
    for text in (noise, HEADER + noise, HEADER + DIFF + noise + b"\n"):
        try:
            parse(text, "t")
        except PatchError:
            continue


@pytest.mark.skipif(shutil.which("git") is None, reason="skipped: no git to compare with")
def test_what_git_writes_is_applied(tmp_path: Path) -> None:
    before = b"".join(b"%d\n" % number for number in range(60))
    after = before.replace(b"7\n", b"seven\n").replace(b"30\n31\n", b"").replace(b"59\n", b"end")
    for name, content in (("one", before), ("two", after)):
        (tmp_path / name).write_bytes(content)
    for context in (0, 1, 3, 30):
        done = subprocess.run(
            ["git", "diff", "--no-index", f"-U{context}", "--no-color", "one", "two"],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        body = done.stdout[done.stdout.index(b"@@") :]
        assert apply(only(b"--- a/x\n+++ b/x\n" + body), before, "t") == after


# ---------------------------------------------------------------- the patches of this repository


def every_patch() -> list[tuple[PatchedPackage, Path]]:
    return [(facts, path) for facts in patched() for path in sorted(series.folder(facts).glob("*"))]


def read(path: Path) -> Patch:
    return parse(path.read_bytes(), path.name)


@pytest.mark.parametrize(
    ("facts", "path"), every_patch(), ids=lambda item: getattr(item, "name", "")
)
def test_each_patch_says_why_for_whom_and_from_where(facts: PatchedPackage, path: Path) -> None:
    assert re.fullmatch(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*\.patch", path.name)
    patch = read(path)
    assert len(patch.why) > 20
    assert set(patch.capabilities) <= set(catalog.capabilities())
    assert not re.search(
        rb"[ \t]\n",
        b"".join(
            line[1:] + b"\n" for line in path.read_bytes().split(b"\n") if line.startswith(b"+")
        ),
    ), "a line that is added ends with blanks"


def test_patches_are_where_the_catalog_looks_for_them() -> None:
    known = {series.folder(facts) for facts in patched()}
    for recipe in recipes():
        known.add(series.PACKAGE / "patches" / recipe.sdist.package / recipe.sdist.version)
    found = {path.parent for path in (series.PACKAGE / "patches").rglob("*.patch")}
    assert found <= known
    assert (ROOT / "patches").resolve() == series.PACKAGE / "patches"


@pytest.mark.parametrize("facts", patched(), ids=lambda facts: f"{facts.package}-{facts.version}")
def test_a_series_is_numbered_and_serves_what_the_catalog_says(facts: PatchedPackage) -> None:
    paths = sorted(series.folder(facts).glob("*.patch"))
    if not paths:
        pytest.skip(f"skipped: there is no patch for {facts.package} {facts.version} yet")
    assert [path.name[:4] for path in paths] == [f"{at:04}" for at in range(1, len(paths) + 1)]
    served = {capability for path in paths for capability in read(path).capabilities}
    assert tuple(sorted(served)) == facts.capabilities


@pytest.mark.parametrize("facts", patched(), ids=lambda facts: f"{facts.package}-{facts.version}")
def test_the_recorded_results_are_those_of_this_series(facts: PatchedPackage) -> None:
    assert make.load_series(facts).digest == facts.series, (
        "patches or copied modules have changed: run python tools/update_patched.py"
    )
    assert all(re.fullmatch("[0-9a-f]{64}", wheel.result) for wheel in facts.wheels)


@pytest.mark.parametrize("stack", catalog.stacks(), ids=lambda stack: stack.name)
def test_what_a_stack_has_patched_is_in_the_catalog(stack: catalog.StackFacts) -> None:
    """In the version of the stack's lock, from the lock's own files, for those the stack is for."""
    lock = load_lock(stack.lock)
    for name in stack.patched:
        locked = lock.package(name)
        facts = find_patched(name, locked.version)
        assert set(stack.home) <= set(facts.capabilities)
        assert make.load_series(facts).patches
        for python in stack.pythons:
            pin, wheel = locked.file(python), facts.wheel(python)
            assert (pin.name, pin.sha256, pin.size) == (wheel.file, wheel.sha256, wheel.size)
            assert facts.installed == f"{pin.version}+{facts.local}"


def test_copied_modules_are_a_package_that_is_installed_with_ours() -> None:
    """setuptools finds packages by their __init__.py, and takes patches as package data."""
    config = (ROOT / "python" / "pyproject.toml").read_text(encoding="utf-8")
    assert '"patches/*/*/*.patch"' in config
    for facts in patched():
        for copied in facts.modules:
            assert (series.PACKAGE / copied.source / "__init__.py").is_file(), copied.source
