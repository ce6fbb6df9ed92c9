"""Known failures of machines with old GPUs: how each is recognised, its cause, what mends it.

The file is ``data/doctor.toml``; what its keys mean is said there. Whether a failure is there is
for :mod:`legacy_cuda.doctor` to find out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Severity = Literal["error", "warning", "info"]
Confidence = Literal["certain", "likely", "possible"]
SeenIn = Literal["kernel", "program", "build", "machine"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What one line of a log must hold: a text, and where ``regex`` is not None, its match.

    A named group of the regex says what the line itself names: ``branch``, ``number``, ``gcc``.
    """

    text: str
    regex: re.Pattern[str] | None = None
    seen_in: SeenIn = "program"

    def matches(self, line: str) -> bool:
        """Whether the line shows it."""
        return self.text in line and (self.regex is None or self.regex.search(line) is not None)


@dataclass(frozen=True, slots=True)
class Rule:
    """One failure. ``fix`` has lines by system; ``any`` is always there.

    ``severity_machine`` is the severity where only the machine shows it, if that is another;
    ``limits`` are versions and capabilities that the machine is compared with.
    """

    id: str
    title: str
    severity: Severity
    confidence: Confidence
    seen_in: SeenIn
    patterns: tuple[Pattern, ...]
    cause: str
    fix: dict[str, tuple[str, ...]]
    card: str
    follows: tuple[str, ...]
    links: tuple[str, ...]
    status: str
    source: str
    severity_machine: Severity | None = None
    limits: Mapping[str, str] = field(default_factory=dict)

    def fix_for(self, system: str, in_container: bool, kepler: bool = False) -> tuple[str, ...]:
        """What mends it on a system (``nixos``, ``debian``, ``ubuntu``, or any other name), for a
        Kepler card or another."""
        wanted = ["kepler"] if kepler else []
        wanted += ["container"] if in_container else []
        wanted += [system, "debian"] if system == "ubuntu" else [system]
        return next((self.fix[name] for name in wanted if name in self.fix), self.fix["any"])


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order of the file."""
    with (catalog.DATA / "doctor.toml").open("rb") as file:
        rows = tomllib.load(file)["rule"]
    return tuple(
        Rule(
            id=row["id"],
            title=row["title"],
            severity=row["severity"],
            confidence=row["confidence"],
            seen_in=row["seen_in"],
            patterns=tuple(
                Pattern(
                    item["text"],
                    re.compile(item["regex"]) if "regex" in item else None,
                    item.get("seen_in", row["seen_in"]),
                )
                for item in row.get("log", [])
            ),
            cause=row["cause"],
            fix={system: tuple(lines) for system, lines in row["fix"].items()},
            card=row["card"],
            follows=tuple(row["follows"]),
            links=tuple(row["links"]),
            status=row["status"],
            source=row["source"],
            severity_machine=row.get("severity_machine"),
            limits=row.get("limits", {}),
        )
        for row in rows
    )


@cache
def rules_of(*places: SeenIn) -> tuple[Rule, ...]:
    """The rules with a text that is printed in one of these places, with no others of theirs."""
    found = []
    for rule in rules():
        patterns = tuple(item for item in rule.patterns if item.seen_in in places)
        if patterns:
            found.append(replace(rule, patterns=patterns))
    return tuple(found)


def find_rule(text: str) -> Rule:
    """The rule of that id, case ignored.

    Raises:
        CatalogError: there is none; ids of the same area are given.
    """
    wanted = text.strip().upper()
    for rule in rules():
        if rule.id == wanted:
            return rule
    near = tuple(rule.id for rule in rules() if wanted and rule.id[0] == wanted[0])
    raise CatalogError(f"no rule of the doctor is called {text!r}", near)
