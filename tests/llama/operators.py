"""What llama.cpp's own test-backend-ops printed, counted by operation, as a table in Markdown.

    python -m tests.llama.operators LABEL=FILE ...

The files are what ``legacy-cuda replay --capability X.Y -- test-backend-ops test -b CUDA0 -j N``
printed, as text or gzip. Exits 1 where a case failed, or where a run did not end by itself.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
CASE = re.compile(r"  ([A-Z0-9_]+)\(.*\): .*?(OK|FAIL|not supported|skipping)\b")
END = re.compile(r"(\d+)/(\d+) tests passed")


def count(text: str) -> tuple[dict[str, Counter[str]], tuple[int, int] | None]:
    """Outcomes by operation; and how many of how many passed, as the program itself says at its
    end (None where it did not come to it)."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    end = None
    for line in ESCAPE.sub("", text).splitlines():
        if match := CASE.match(line):
            found[match[1]][match[2]] += 1
        elif match := END.search(line):
            end = int(match[1]), int(match[2])
    return found, end


def read(path: Path) -> str:
    """The text of a file that may be compressed."""
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="replace")


def main() -> int:
    """Print the table."""
    columns = {}
    bad = 0
    for word in sys.argv[1:]:
        label, _, path = word.partition("=")
        columns[label], end = count(read(Path(path)))
        failed = sum(row["FAIL"] for row in columns[label].values())
        said = f"{end[0]} of {end[1]} passed" if end else "DID NOT END"
        print(f"{label}: {said}, {failed} failed", file=sys.stderr)
        bad += failed + (end is None or end[0] != end[1])
    print("| operation | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    names = sorted({name for column in columns.values() for name in column})
    totals = {label: Counter[str]() for label in columns}
    for name in names:
        cells = []
        for label, column in columns.items():
            row = column.get(name, Counter())
            totals[label] += row
            cells.append(_cell(row))
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| all | " + " | ".join(_cell(total) for total in totals.values()) + " |")
    return 1 if bad else 0


def _cell(row: Counter[str]) -> str:
    parts = [str(row["OK"])]
    parts += [f"{row[kind]} {kind}" for kind in ("FAIL", "not supported", "skipping") if row[kind]]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
