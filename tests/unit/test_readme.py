"""The Markdown files: generated tables are current, links lead somewhere, commands parse.

Every ``legacy-cuda ...`` in a code block or in inline code is given to the real parser, and the
GPUs and engines it names are looked up in the catalog. A word in capitals is a placeholder.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from legacy_cuda.cli import output, parser
from legacy_cuda.errors import UserError

ROOT = Path(__file__).parents[2]
SKIPPED = {"build", "dist", "result", "node_modules"}

FENCE = re.compile(r"^( {0,3})(```+|~~~+)([^\n]*)\n(.*?)^ {0,3}\2[`~]*[ \t]*$", re.DOTALL | re.M)
INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)<>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s+(\S+)", re.M)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.M)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=\S*")
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*")
PROGRAMS = {"legacy-cuda", "./legacy-cuda"}


@dataclass(frozen=True)
class Command:
    """A command found in a text: its words after the program's name."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def documents() -> list[Path]:
    """Every Markdown file of the repository, hidden and built folders left out."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def prose(text: str) -> str:
    """A text without its code blocks."""
    return FENCE.sub("", text)


def slugs(text: str) -> set[str]:
    """The anchors GitHub gives to the headings of a text."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def broken_links(path: Path) -> Iterator[str]:
    """The relative links of a file that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    for match in LINK.finditer(INLINE.sub("", prose(text))):
        link = match[1] or match[2]
        if SCHEME.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists():
            yield f"{link}: there is no such file"
        elif ROOT not in target.parents and target != ROOT:
            yield f"{link}: lies outside the repository"
        elif anchor and anchor not in slugs(target.read_text(encoding="utf-8")):
            yield f"{link}: there is no such heading"


def split(line: str) -> Iterator[list[str]]:
    """The simple commands of a line of shell, as words; comments are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if set(word) <= set("<>"):
            skip = True  # the file of a redirection
        elif set(word) <= set("|&;"):
            yield words
            words = []
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


def lines(language: str, body: str) -> Iterator[str]:
    """The command lines of a code block: in one with prompts only what follows them."""
    joined = body.replace("\\\n", " ")
    prompted = language.startswith("console") or re.search(r"^\s*\$ ", joined, re.M)
    for line in joined.splitlines():
        stripped = line.strip()
        if stripped.startswith("$ "):
            yield stripped[2:]
        elif not prompted:
            yield stripped


def commands(text: str, where: str) -> Iterator[Command]:
    """Every legacy-cuda command in a text."""
    found = [line for _, _, language, body in FENCE.findall(text) for line in lines(language, body)]
    found += [" ".join(code.split()) for _, code in INLINE.findall(prose(text))]
    for line in found:
        if "legacy-cuda" not in line:
            continue
        try:
            simple = list(split(line))
        except ValueError:  # not shell: a quotation mark that is never closed
            continue
        for words in simple:
            while words and ASSIGNMENT.fullmatch(words[0]):
                words = words[1:]
            if len(words) > 1 and words[0] in PROGRAMS:
                yield Command(where, tuple(words[1:]))


def problem(command: Command) -> str | None:
    """What is wrong with a command, or None."""
    main_parser = parser()
    subcommands = next(
        action.choices
        for action in main_parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    if len(command.words) == 1 and command.words[0] in subcommands:
        return None  # the subcommand is only named
    try:
        options = main_parser.parse_args(command.words)
    except SystemExit as error:
        return "does not parse" if error.code else None
    try:
        names = [
            name
            for item in getattr(options, "gpu", None) or []
            for name in item.split(",")
            if not PLACEHOLDER.fullmatch(name)
        ]
        if names:
            output.read_gpus(names)
        if engine := getattr(options, "engine", None):
            output.read_engine(engine)
    except UserError as error:
        return error.what
    return None


DOCUMENTS = documents()
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
COMMANDS = [
    command
    for path, name in zip(DOCUMENTS, NAMES, strict=True)
    for command in commands(path.read_text(encoding="utf-8"), name)
]


def test_tables_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "update_readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    assert list(broken_links(path)) == []


def test_there_are_commands_to_check() -> None:
    assert "README.md" in NAMES
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_parse(command: Command) -> None:
    assert problem(command) is None


def test_what_these_tests_find(tmp_path: Path) -> None:
    text = """Run `legacy-cuda up` or `legacy-cuda
resolve k80`, not legacy-cuda in prose.

```console
$ LEGACY_CUDA_HOME=/x ./legacy-cuda up p40 | cat  # comment
legacy-cuda: output that isn't a command
```

```sh
cd x && legacy-cuda audit torch==2.8.0 \\
  --gpu p40 > out
```
"""
    assert [command.words for command in commands(text, "")] == [
        ("up", "p40"),
        ("audit", "torch==2.8.0", "--gpu", "p40"),
        ("up",),
        ("resolve", "k80"),
    ]


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("up", True),
        ("up GPU", True),
        ("resolve 2xk80,p40 --engine vllm", True),
        ("audit NAME==VERSION --gpu p40", True),
        ("doctor explain D2", True),
        ("planner", False),
        ("up p41", False),
        ("resolve p40 --engine vlmm", False),
        ("audit torch==2.8.0 --gpus-of p40", False),
        ("audit torch==2.8.0", False),
    ],
)
def test_what_a_command_must_be(words: str, good: bool) -> None:
    assert (problem(Command("", tuple(words.split()))) is None) == good


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_readme.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# One `two`\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md#one-two) [x](b.md#three) [x](c.md) `[x](d.md)` [x](../e.md)\n"
        "[x](https://example.org/f) [x](#none)\n\n[y]: g.md\n"
    )
    assert [text.partition(":")[0] for text in broken_links(page)] == [
        "b.md#three",
        "c.md",
        "../e.md",
        "#none",
        "g.md",
    ]
