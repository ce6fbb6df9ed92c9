"""Unit files of systemd and their drop-ins: systemd.syntax(7), systemd.unit(5). Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence

Settings = dict[tuple[str, str], list[str]]
"""Values by section and key, in their order. An empty value takes back what was before it."""

_SECTION = re.compile(r"\[([^\]]+)\]")
_PREFIXES = "@-:+!|"  # of a command: systemd.service(5), "Command lines"


def settings(texts: Iterable[str]) -> Settings:
    """What a unit file and its drop-ins say together, in the order in which they are read."""
    found: Settings = {}
    for text in texts:
        section = ""
        for line in _lines(text):
            if (match := _SECTION.fullmatch(line)) is not None:
                section = match[1]
                continue
            key, equals, value = line.partition("=")
            if not equals:
                continue
            values = found.setdefault((section, key.strip()), [])
            if value.strip():
                values.append(value.strip())
            else:
                values.clear()
    return found


def _lines(text: str) -> Iterable[str]:
    """Lines without comments; one that ends in a backslash goes on in the next."""
    before = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            before += line[:-1] + " "
            continue
        if whole := (before + line).strip():
            yield whole
        before = ""
    if before.strip():
        yield before.strip()


def words(text: str) -> list[str]:
    """A value's words; quotes hold one together. Where they are not closed, they count as signs."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def command(found: Settings) -> list[str]:
    """The words of the last command that a service starts; none where there is none."""
    values = found.get(("Service", "ExecStart"), [])
    said = words(values[-1]) if values else []
    return [said[0].lstrip(_PREFIXES), *said[1:]] if said else []


def option(words: Sequence[str], names: Collection[str]) -> str | None:
    """The value of a command's option: ``--name value`` or ``--name=value``, the last one."""
    value = None
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, equals, said = word.partition("=")
        if name in names:
            value = said if equals else following
    return value


def variables(found: Settings) -> dict[str, str]:
    """The environment that a service sets by itself."""
    items = [item for value in found.get(("Service", "Environment"), []) for item in words(value)]
    pairs = (item.partition("=") for item in items)
    return {name: value for name, equals, value in pairs if equals}


def of_file(text: str) -> dict[str, str]:
    """The environment that a file of ``EnvironmentFile`` sets, which wins over the unit's own."""
    pairs = (line.partition("=") for line in _lines(text))
    return {name.strip(): " ".join(words(value)) for name, equals, value in pairs if equals}


def last(found: Settings, key: str) -> str | None:
    """The value of a key of the service that may be set once: the last one."""
    values = found.get(("Service", key), [])
    return values[-1] if values else None


def yes(text: str | None) -> bool:
    """Whether a value means yes."""
    return (text or "").lower() in ("1", "yes", "true", "on", "y", "t")
