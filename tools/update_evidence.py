"""Make the catalog's evidence anew: scan every pinned wheel, and those named in evidence.toml.

    python tools/update_evidence.py [--lock NAME] [--extra-only] [--all]

Without --all, wheels that already have evidence for their sha256 are passed over. Wheels are
downloaded, checked against the lock, scanned and (with --discard) deleted again.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from legacy_cuda import audit, evidence, fetch
from legacy_cuda.catalog.locks import load_lock, lock_names
from legacy_cuda.devicecode import scan_wheel

PYTHON = "3.11"
EXTRA = Path(__file__).parent / "evidence.toml"


def pinned(names: list[str]) -> list[tuple[fetch.Remote, str]]:
    """Every file of the locks, once, with a Python that it is for."""
    found = {}
    for name in names:
        for package in load_lock(name).packages:
            for file in package.files:
                remote = fetch.Remote(package.name, file.version, file.name, file.sha256, file.size)
                found[file.sha256] = (remote, file.pythons[-1])
    return list(found.values())


def extra() -> list[tuple[fetch.Remote, str]]:
    """The further wheels that evidence.toml asks for, as ``name==version``."""
    with EXTRA.open("rb") as file:
        wanted = tomllib.load(file)["wheels"]
    pairs = [item.split("==") for item in wanted]
    return [(fetch.find_wheel(name, version, PYTHON), PYTHON) for name, version in pairs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", action="append", help="only this lock (repeatable)")
    parser.add_argument("--extra-only", action="store_true", help="only those of evidence.toml")
    parser.add_argument("--all", action="store_true", help="scan again what has evidence already")
    parser.add_argument("--discard", action="store_true", help="delete each wheel after its scan")
    arguments = parser.parse_args()
    todo = [] if arguments.extra_only else pinned(arguments.lock or list(lock_names()))
    if not arguments.lock:
        todo += extra()
    for number, (remote, python) in enumerate(todo, 1):
        if not arguments.all and evidence.find(remote.package, remote.file, remote.sha256):
            continue
        print(f"{number}/{len(todo)} {remote.file}", file=sys.stderr, flush=True)
        path = fetch.download(remote, python)
        libraries = audit.summarise(scan_wheel(path))
        made = evidence.Evidence(
            package=remote.package,
            version=remote.version,
            file=remote.file,
            sha256=remote.sha256,
            size=path.stat().st_size,
            scanned=datetime.date.today().isoformat(),
            libraries=libraries,
        )
        target = evidence.path_for(remote.package, remote.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(evidence.dump(made), encoding="utf-8")
        if arguments.discard:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
