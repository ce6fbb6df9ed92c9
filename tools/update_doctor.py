"""Write the table of rules in docs/doctor.md anew from the catalog and from the tests.

    python tools/update_doctor.py [--check]

What stands between ``<!-- generated: rules -->`` and ``<!-- /generated -->`` is replaced. How a
rule is tested is counted in ``tests/unit`` and ``tests/nvml``, which need pytest and hypothesis.

Exit: 0 fine, 1 --check found a table that would change, 2 the markers are missing.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from legacy_cuda.catalog.doctor import Rule, rules
from legacy_cuda.doctor.rules import FACT_RULES

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
TESTS = PAGE.parents[1] / "tests" / "unit"
SECTION = re.compile(r"(<!-- generated: rules -->\n).*?(<!-- /generated -->)", re.DOTALL)
SEEN_IN = {"kernel": "kernel log", "program": "program's log", "build": "build's log"}


class Coverage:
    """How many recorded machines, lines and posted logs test each rule: those that show it, and
    those that nearly do."""

    def __init__(self) -> None:
        places = [str(TESTS), str(TESTS.parents[1])]
        sys.path[:0] = places
        try:
            test: Any = importlib.import_module("test_doctor")
            others: list[Any] = [
                importlib.import_module(name)
                for name in ("test_doctor_software", "tests.nvml.test_doctor")
            ]
        finally:
            del sys.path[: len(places)]
        self.machines = {key: (len(fires), len(near)) for key, (fires, near) in test.CASES.items()}
        for other in others:
            self.machines |= {key: (1, len(near)) for key, (_, _, near) in other.CASES.items()}
        self.lines = {
            key: (len(lines["fires"]), len(lines["misses"])) for key, lines in test.SAMPLES.items()
        }
        self.posted = Counter(
            rule_id
            for item in test.THREADS["log"]
            for rule_id in (item["cause"], *item.get("then", []))
        )

    def words(self, rule_id: str) -> list[str]:
        """The cells of a rule: machines, lines, posted logs."""
        pairs = (found.get(rule_id) for found in (self.machines, self.lines))
        cells = [f"{pair[0]} / {pair[1]}" if pair else "" for pair in pairs]
        return [*cells, str(self.posted[rule_id] or "")]


def row(rule: Rule, coverage: Coverage) -> str:
    """A rule's line of the table."""
    seen = ["machine"] if rule.id in FACT_RULES else []
    seen += [SEEN_IN[rule.seen_in]] if rule.patterns else []
    severity: str = rule.severity
    if rule.severity_machine is not None:
        severity += f" (machine: {rule.severity_machine})"
    cells = [rule.id, severity, rule.title, ", ".join(seen), rule.confidence]
    cells += [", ".join(rule.follows), rule.status, *coverage.words(rule.id)]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Every rule."""
    head = "| rule | severity | what is wrong | seen in | cause | may follow from | status "
    head += "| machines | lines | posted logs |"
    coverage = Coverage()
    return "\n".join([head, "| --- " * 10 + "|", *(row(rule, coverage) for rule in rules())])


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write the table of docs/doctor.md anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    options = parser.parse_args(arguments)
    before = PAGE.read_text(encoding="utf-8")
    if len(SECTION.findall(before)) != 1:
        print(f"update_doctor: {PAGE.name} has not the markers of one table", file=sys.stderr)
        return 2
    after = SECTION.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", before)
    if before == after:
        print(f"{PAGE.name}: unchanged")
        return 0
    if options.check:
        print(f"{PAGE.name}: would change; run tools/update_doctor.py")
        return 1
    sibling = PAGE.with_suffix(".md.new")
    sibling.write_text(after, encoding="utf-8")
    sibling.replace(PAGE)
    print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
