"""Patches: unified diffs with a header that says why, applied to bytes exactly or not at all.

A patch is a header of ``Why:``, ``Capabilities:`` and ``Origin:``, then for each file ``---``,
``+++`` and hunks. Every context line must be in the file at the line the hunk names: neither
another place nor other blanks will do. Lines end with a newline and nothing else does; what a line
holds is bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from legacy_cuda.capability import Capability

_KEYS = ("Why", "Capabilities", "Origin")
_HUNK = re.compile(rb"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(?: .*)?")
_NO_NEWLINE = rb"\ No newline at end of file"


class PatchError(ValueError):
    """A patch is malformed, or does not fit the file it is for."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines of a file, from line ``start`` on (the first is 1), and what comes in their place."""

    start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FileDiff:
    """The hunks for one file, in its order."""

    path: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch file: its name, what its header says, and the diffs."""

    name: str
    why: str
    capabilities: tuple[Capability, ...]
    origin: str
    files: tuple[FileDiff, ...]


def parse(text: bytes, name: str) -> Patch:
    """Read a patch file.

    Raises:
        PatchError: the header lacks a key, or the rest is not a unified diff that only changes
            files which are there.
    """
    lines = text.split(b"\n")
    if lines.pop():
        raise PatchError(f"{name}: does not end with a newline")
    first = next((at for at, line in enumerate(lines) if line.startswith(b"--- ")), len(lines))
    header = _header(lines[:first], name)
    files: list[FileDiff] = []
    at = first
    while at < len(lines):
        diff, at = _file(lines, at, name)
        if diff.path in [known.path for known in files]:
            raise PatchError(f"{name}: {diff.path} is changed twice")
        files.append(diff)
    if not files:
        raise PatchError(f"{name}: changes nothing")
    capabilities = []
    for word in header["Capabilities"].split():
        try:
            capabilities.append(Capability.parse(word))
        except ValueError as error:
            raise PatchError(f"{name}: Capabilities: {error}") from error
    if capabilities != sorted(set(capabilities)):
        raise PatchError(f"{name}: Capabilities: not ascending, or one of them twice")
    return Patch(name, header["Why"], tuple(capabilities), header["Origin"], tuple(files))


def _header(lines: list[bytes], name: str) -> dict[str, str]:
    """The keys and what they say; a value goes on in lines that begin with a blank."""
    found: dict[str, str] = {}
    key = ""
    for line in lines:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise PatchError(f"{name}: the header is not UTF-8") from error
        head, colon, rest = text.partition(":")
        if text[:1].isspace() and key:
            found[key] = f"{found[key]} {text.strip()}".strip()
        elif colon and head in _KEYS and head not in found:
            key = head
            found[key] = rest.strip()
        elif text:
            raise PatchError(f"{name}: {text!r} in the header: it has {', '.join(_KEYS)}, once")
    missing = [key for key in _KEYS if not found.get(key)]
    if missing:
        raise PatchError(f"{name}: the header does not say {', '.join(missing)}")
    return found


def _file(lines: list[bytes], at: int, name: str) -> tuple[FileDiff, int]:
    """The diff of one file that begins there, and the line after it."""
    where = f"{name}, line {at + 1}"
    if not lines[at].startswith(b"--- a/") or lines[at + 1 : at + 2] != [b"+++ b/" + lines[at][6:]]:
        raise PatchError(
            f"{where}: expected '--- a/PATH' and '+++ b/PATH' with the same path: a patch changes "
            "files that are there, new ones are modules"
        )
    try:
        path = lines[at][6:].decode()
    except UnicodeDecodeError as error:
        raise PatchError(f"{where}: the path is not UTF-8") from error
    if not path or "\t" in path or {"", ".", ".."} & set(path.split("/")):
        raise PatchError(f"{where}: {path!r} is not a path in a wheel")
    at += 2
    hunks: list[Hunk] = []
    line, shift = 1, 0  # the next line that may be changed; how far lines have moved so far
    while at < len(lines) and not lines[at].startswith(b"--- "):
        where = f"{name}, line {at + 1}, {path}, hunk {len(hunks) + 1}"
        match = _HUNK.fullmatch(lines[at])
        if match is None:
            raise PatchError(f"{where}: expected '@@ -START,COUNT +START,COUNT @@'")
        start, old_count, new_start, new_count = (int(number or 1) for number in match.groups())
        # of an empty side the number is that of the line before (POSIX, diff, "diff -u output")
        start, new_start = start + (old_count == 0), new_start + (new_count == 0)
        old, new, at = _body(lines, at + 1, old_count, new_count, where)
        if start < line or new_start != start + shift:
            raise PatchError(f"{where}: its line numbers do not follow from those before it")
        if old == new:
            raise PatchError(f"{where}: changes nothing")
        line, shift = start + old_count, shift + new_count - old_count
        hunks.append(Hunk(start, tuple(old), tuple(new)))
    if not hunks:
        raise PatchError(f"{where}: no hunk for {path}")
    return FileDiff(path, tuple(hunks)), at


def _body(
    lines: list[bytes], at: int, old_count: int, new_count: int, where: str
) -> tuple[list[bytes], list[bytes], int]:
    """What a hunk's lines replace and bring, and the line after it."""
    old: list[bytes] = []
    new: list[bytes] = []
    while True:
        line = lines[at] if at < len(lines) else b""
        sign, content = line[:1], line[1:] + b"\n"
        touched = {b" ": (old, new), b"-": (old,), b"+": (new,)}.get(sign, ())
        if line == _NO_NEWLINE:
            before = {b" ": (old, new), b"-": (old,), b"+": (new,)}.get(lines[at - 1][:1], ())
            if not before or not all(side and side[-1].endswith(b"\n") for side in before):
                raise PatchError(f"{where}: {line.decode()!r} follows no line")
            for side in before:
                side[-1] = side[-1][:-1]
            at += 1
            continue
        if len(old) == old_count and len(new) == new_count:
            break
        if not touched:
            raise PatchError(
                f"{where}: line {at + 1} begins with {sign.decode(errors='replace')!r}: the hunk "
                f"says {old_count} old and {new_count} new lines, {len(old)} and {len(new)} are "
                "there"
            )
        for side in touched:
            side.append(content)
        if len(old) > old_count or len(new) > new_count:
            raise PatchError(f"{where}: more lines than it says")
        at += 1
    for side in (old, new):
        if any(not content.endswith(b"\n") for content in side[:-1]):
            raise PatchError(f"{where}: a line without a newline is not the last one")
    return old, new, at


def apply(diff: FileDiff, content: bytes, name: str) -> bytes:
    """The file's new content; ``name`` is the patch's, for the error.

    Raises:
        PatchError: a line is not what the patch expects; the message names patch, file, hunk, line.
    """
    lines = content.split(b"\n")
    lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    result: list[bytes] = []
    done = 0
    for number, hunk in enumerate(diff.hunks, 1):
        where = f"{name} does not fit {diff.path}, hunk {number}"
        begin, end = hunk.start - 1, hunk.start - 1 + len(hunk.old)
        if end > len(lines):
            raise PatchError(f"{where}: it needs line {end}, the file ends with {len(lines)}")
        for at, (expected, found) in enumerate(zip(hunk.old, lines[begin:end], strict=True)):
            if expected != found:
                raise PatchError(
                    f"{where}: line {begin + at + 1} is {_show(found)}, not {_show(expected)}"
                )
        result += lines[done:begin]
        followed = bool(hunk.new and result) and not result[-1].endswith(b"\n")
        if followed or (hunk.new and not hunk.new[-1].endswith(b"\n") and end != len(lines)):
            raise PatchError(f"{where}: a line without a newline would not be the last one")
        result += hunk.new
        done = end
    return b"".join([*result, *lines[done:]])


def _show(line: bytes) -> str:
    text = repr(line.decode(errors="replace"))
    return text if len(text) <= 80 else f"{text[:77]}..."


def apply_all(patches: Iterable[Patch], read: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """Apply patches one after the other; returns the new content of every file they change.

    ``read`` gives a file's published content, or None where there is no such file.

    Raises:
        PatchError: a patch does not fit.
    """
    changed: dict[str, bytes] = {}
    for patch in patches:
        for diff in patch.files:
            content = changed.get(diff.path)
            if content is None:
                content = read(diff.path)
            if content is None:
                raise PatchError(f"{patch.name} is for {diff.path}, which is not there")
            changed[diff.path] = apply(diff, content, patch.name)
    return changed
