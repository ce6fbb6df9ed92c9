"""Write the table of rules in docs/doctor.md anew from the catalog.

    python tools/update_doctor.py [--check]

What stands between ``<!-- generated: rules -->`` and ``<!-- /generated -->`` is replaced.

Exit: 0 fine, 1 --check found a table that would change, 2 the markers are missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from legacy_cuda.catalog.doctor import Rule, rules
from legacy_cuda.doctor.rules import FACT_RULES

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
SECTION = re.compile(r"(<!-- generated: rules -->\n).*?(<!-- /generated -->)", re.DOTALL)
SEEN_IN = {"kernel": "kernel log", "program": "program's log", "build": "build's log"}


def row(rule: Rule) -> str:
    """A rule's line of the table."""
    seen = ["machine"] if rule.id in FACT_RULES else []
    seen += [SEEN_IN[rule.seen_in]] if rule.patterns else []
    severity: str = rule.severity
    if rule.severity_machine is not None:
        severity += f" (machine: {rule.severity_machine})"
    cells = [rule.id, severity, rule.title, ", ".join(seen), rule.confidence]
    cells += [", ".join(rule.follows), rule.status]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Every rule."""
    head = "| rule | severity | what is wrong | seen in | cause | may follow from | status |"
    return "\n".join([head, "| --- " * 7 + "|", *map(row, rules())])


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
