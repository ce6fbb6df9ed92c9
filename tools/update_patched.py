"""Bring patched.toml up to date: the published wheels that are patched, and what must come out.

    python tools/update_patched.py [--check] [--only PACKAGE==VERSION] [--all] [--discard]

A person edits the keys above each package's wheels in ``catalog/data/patched.toml``; the digest of
the series and the wheels below are written here. Where the row names a ``lock``, that lock has the
wheels and only the results are written; else ``pythons`` says which wheels to look up on the index.

A package is built anew when the digest of its patches and modules is no longer the recorded one,
or a result is missing (``--all``: always). Its published wheels are downloaded into the cache,
gigabytes of them; with ``--discard`` each is deleted again if it was not there before. ``--check``
writes nothing and exits 1 where a digest is stale; it downloads nothing.

Needs: the packages legacy-cuda depends on, and its extra ``dev``.
Exit: 0 fine, 1 --check found a digest that is stale, 2 bad input, 3 the network or the disk failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from legacy_cuda import fetch
from legacy_cuda.build import make
from legacy_cuda.catalog.patched import PatchedPackage, SourceWheel, patched
from legacy_cuda.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "python/src/legacy_cuda/catalog/data/patched.toml"

HEADER = (
    "# Written by tools/update_patched.py from the keys of each package but series and wheel,\n"
    "# which a person edits. Patches are in patches/PACKAGE/VERSION/.\n\n"
)
WRITTEN = ("series", "wheel")  # the keys that are written here


def look_up(row: dict[str, Any]) -> tuple[SourceWheel, ...]:
    """The wheels of a row that names no lock: those recorded, or what the index has."""
    if "wheel" in row:
        return tuple(
            SourceWheel(
                item["name"],
                item["sha256"],
                item["size"],
                tuple(item["pythons"]),
                item.get("result", ""),
            )
            for item in row["wheel"]
        )
    found: dict[str, tuple[fetch.Remote, list[str]]] = {}
    for python in row["pythons"]:
        remote = fetch.find_wheel(row["package"], row["version"], python)
        found.setdefault(remote.sha256, (remote, []))[1].append(python)
    wheels = []
    for remote, pythons in found.values():
        size = remote.size or fetch.download(remote, pythons[0]).stat().st_size
        wheels.append(SourceWheel(remote.file, remote.sha256, size, tuple(pythons), ""))
    return tuple(wheels)


def result(facts: PatchedPackage, source: SourceWheel, discard: bool) -> str:
    """Build the patched wheel into a temporary folder; its sha256."""
    remote = fetch.Remote(facts.package, facts.version, source.file, source.sha256, source.size)
    there = fetch.cached_path(remote).is_file()
    wheel = make.source_wheel(facts, source, offline=False)
    if make.file_sha256(wheel) != source.sha256:
        raise UserError(f"{wheel} does not have its sha256", next_step="remove it and run again")
    series = make.load_series(facts)
    with tempfile.TemporaryDirectory(prefix="update-patched-") as name:
        built = make.build(series, replace(source, result=""), wheel, Path(name))
    if built.sha256 != make.expected_sha256(series, source) != "":
        raise UserError(
            f"{source.file} gives other bytes than recorded, with the same patches and modules",
            f"recorded {source.result}, now {built.sha256}: the program that writes wheels changed",
            "raise FORMAT in build/series.py if that is meant",
        )
    if discard and not there:
        wheel.unlink()
    return built.sha256


def update(
    row: dict[str, Any], facts: PatchedPackage, digest: str, discard: bool
) -> dict[str, Any]:
    """The row with its series and wheels written anew."""
    wheels = facts.wheels if "lock" in row else look_up(row)
    rows = []
    for source in wheels:
        print(f"{facts.package} {facts.version}: {source.file}", file=sys.stderr, flush=True)
        pin: dict[str, Any] = {"name": source.file}
        if "lock" not in row:
            pin |= {"sha256": source.sha256, "size": source.size, "pythons": list(source.pythons)}
        rows.append({**pin, "result": result(facts, source, discard)})
    kept = {key: value for key, value in row.items() if key not in WRITTEN}
    return {**kept, "series": digest, "wheel": rows}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Bring the catalog's patched.toml up to date.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--only", metavar="PACKAGE==VERSION", help="only this one")
    parser.add_argument("--all", action="store_true", help="build what is not stale too")
    parser.add_argument("--discard", action="store_true", help="delete what was downloaded")
    options = parser.parse_args(arguments)
    rows = tomllib.loads(DATA.read_text(encoding="utf-8"))["patched"]
    every = list(zip(rows, patched(), strict=True))
    if options.only and not any(options.only == f"{f.package}=={f.version}" for _, f in every):
        print(f"update_patched: there is no {options.only} in {DATA.name}", file=sys.stderr)
        return 2
    stale = False
    try:
        for number, (row, facts) in enumerate(every):
            name = f"{facts.package}=={facts.version}"
            digest = make.load_series(facts).digest
            complete = bool(facts.wheels) and all(wheel.result for wheel in facts.wheels)
            fresh = digest == facts.series and complete
            if (options.only and options.only != name) or (fresh and not options.all):
                continue
            stale = stale or not fresh
            if options.check:
                print(f"{name}: stale")
                continue
            rows[number] = update(row, facts, digest, options.discard)
            sibling = DATA.with_suffix(".toml.new")
            sibling.write_text(HEADER + tomli_w.dumps({"patched": rows}), encoding="utf-8")
            sibling.replace(DATA)
            print(f"{name}: written")
    except UserError as error:
        print(f"update_patched: {error.what}\n{error.why}\n{error.next_step}", file=sys.stderr)
        return error.exit_code
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
