"""What the flake takes from nixpkgs, and the file that says that it is there.

    python tools/nixpkgs_attributes.py
    python tools/nixpkgs_attributes.py --checkout ~/nixpkgs --cuda-legacy ~/cuda-legacy

Without a checkout it prints the list of tools/nixpkgs_attributes.toml, with the revision at which
each was read. With one it looks for every file and text there. Exit code 1 where something is not
there, or where our files use what is not in the list.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tools" / "nixpkgs_attributes.toml"
NIXPKGS = "NixOS/nixpkgs"

_ARGUMENTS = re.compile(r"\A(?:#.*\n)*\{([^}]*)\}:")
_ATTRIBUTE = re.compile(r"\b(pkgs|final|python3Packages)\.([A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)")
_WITH = re.compile(r"with python3Packages; \[([^]]*)\]")


@dataclass(frozen=True)
class Attribute:
    """A row of the list: a name, and where it was read. ``text`` is "" where only the file was."""

    name: str
    repository: str
    revision: str
    file: str
    text: str


def load() -> tuple[list[Attribute], frozenset[str]]:
    """The list, and the arguments of our packages that do not come from nixpkgs."""
    with LIST.open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)
    rows = [
        Attribute(
            row["name"],
            row.get("repository", NIXPKGS),
            row.get("revision", data["revision"]),
            row["file"],
            row.get("text", ""),
        )
        for row in data["attribute"]
    ]
    return rows, frozenset(data["own"])


def used(own: frozenset[str]) -> dict[str, set[str]]:
    """The attributes that our files use, each with the files that do. Names that are made at run
    time (of Pythons, toolkits and driver branches) are not found."""
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("pkgs/*/package.nix"), *ROOT.glob("nix/**/*.nix")]:
        text = path.read_text()
        for name in _uses(text, path.name == "package.nix"):
            if name not in own:
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def _uses(text: str, is_package: bool) -> Iterator[str]:
    if is_package and (match := _ARGUMENTS.match(text)):
        for argument in re.sub(r"#.*", "", match[1]).split(","):
            if name := argument.split("?")[0].strip():
                yield name
    for match in _WITH.finditer(text):
        for name in match[1].split():
            yield f"python3Packages.{name}"
    for scope, name in _ATTRIBUTE.findall(re.sub(r"#.*", "", text)):
        yield f"python3Packages.{name}" if scope == "python3Packages" else name


def missing_from(names: set[str], listed: set[str]) -> list[str]:
    """Those that neither are in the list nor lie below one that is, such as ``lib.sort``."""
    return sorted(
        name
        for name in names
        if not any(name == other or name.startswith(f"{other}.") for other in listed)
        and not any(other.startswith(f"{name}.") for other in listed)
    )


def look_up(row: Attribute, checkout: Path) -> str:
    """``line 12``, ``there`` for a file alone, or "" where it is not there."""
    try:
        text = (checkout / row.file).read_text()
    except OSError:
        return ""
    if not row.text:
        return "there"
    at = text.find(row.text)
    return f"line {text.count(chr(10), 0, at) + 1}" if at >= 0 else ""


def revision_of(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown revision"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, metavar="DIR", help="a checkout of nixpkgs")
    parser.add_argument("--cuda-legacy", type=Path, metavar="DIR", help="one of cuda-legacy")
    arguments = parser.parse_args()
    rows, own = load()
    uses = used(own)
    checkouts = {
        NIXPKGS: arguments.checkout,
        # lib of nixpkgs by itself
        "nix-community/nixpkgs.lib": arguments.checkout,
        "nixos-cuda/cuda-legacy": arguments.cuda_legacy,
    }
    failed = 0
    for row in rows:
        checkout = checkouts[row.repository]
        if checkout is None:
            state = f"at {row.revision[:12]}" + ("" if row.text else ", file only")
        elif not (state := look_up(row, checkout)):
            state, failed = "NOT FOUND", failed + 1
        where = ", ".join(sorted(uses.get(row.name, ())))
        print(f"{row.name:58} {row.file}: {state}" + (f"  [{where}]" if where else ""))
    for checkout in {arguments.checkout, arguments.cuda_legacy} - {None}:
        print(f"{checkout}: {revision_of(checkout)}")
    unlisted = missing_from(set(uses), {row.name for row in rows})
    for name in unlisted:
        print(f"{name}: used in {', '.join(sorted(uses[name]))}, and not in {LIST.name}")
    return 1 if failed or unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
