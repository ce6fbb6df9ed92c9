"""Bring toolchains.toml up to date: version, file, sha256 and size of every Debian package.

    python tools/update_toolchains.py [--check]

Names, suites and components stand in ``catalog/data/toolchains.toml`` and are a person's to edit;
what the archive has under these names now is written beside them. ``--check`` writes nothing and
exits 1 if something would change.

The archive is the one apt is set up for, or LEGACY_CUDA_DEBIAN_MIRROR. Its index is taken as it
is served: a person who lands new packages compares the sha256s with a signed Release file.

Needs: the packages legacy-cuda depends on, and its extra ``dev``.
Exit: 0 fine, 1 --check found a change, 2 bad input, 3 the network failed.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from functools import cache
from pathlib import Path
from typing import Any

import requests
import tomli_w

from legacy_cuda.errors import UserError
from legacy_cuda.toolchain.mirrors import mirrors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "python/src/legacy_cuda/catalog/data/toolchains.toml"
TIMEOUT = 60.0  # seconds, for one HTTP request


@cache
def index(suite: str, component: str) -> dict[str, dict[str, str]]:
    """The packages of an archive's component, by name: the fields of each on one line."""
    address = f"{mirrors()[0]}dists/{suite}/{component}/binary-amd64/Packages.xz"
    answer = requests.get(address, timeout=TIMEOUT)
    answer.raise_for_status()
    found = {}
    for block in lzma.decompress(answer.content).decode().split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in block.splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if fields:
            found[fields["Package"]] = fields
    return found


def packages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the archive has for the row's names.

    Raises:
        UserError: it has no package of a name.
    """
    have = index(row["suite"], row["component"])
    missing = [name for name in row["names"] if name not in have]
    if missing:
        raise UserError(f"{row['suite']} {row['component']} has no {', '.join(missing)}")
    return [
        {
            "name": name,
            "version": have[name]["Version"],
            "file": have[name]["Filename"],
            "sha256": have[name]["SHA256"],
            "size": int(have[name]["Size"]),
        }
        for name in sorted(row["names"])
    ]


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Bring toolchains.toml up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    check = parser.parse_args().check
    text = DATA.read_text(encoding="utf-8")
    head = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
    data = tomllib.loads(text)
    try:
        for row in (data["host"], *data["toolchain"]):
            row["package"] = packages(row)
    except UserError as error:
        print(f"update_toolchains: {error}", file=sys.stderr)
        return error.exit_code
    except requests.RequestException as error:
        print(f"update_toolchains: the archive failed: {error}", file=sys.stderr)
        return 3
    new = f"{head}\n{tomli_w.dumps(data)}"
    if new == text:
        print("toolchains.toml: unchanged")
        return 0
    print(f"toolchains.toml: {'would change' if check else 'written'}")
    if not check:
        DATA.write_text(new, encoding="utf-8")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())
