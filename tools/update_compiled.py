"""Record built wheels in compiled.toml: what a build of the same has to come to.

    python tools/update_compiled.py WHEEL ... [--drop-stale]

Each wheel needs its provenance beside it. It is recorded if what the provenance says went in is
what the recipes say now; an older row of the same package and version goes. With ``--drop-stale``
rows go whose recipe has changed since.

Needs: the packages legacy-cuda depends on, and its extra ``dev``.
Exit: 0 fine, 2 a wheel is not one of the recipes as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import tomli_w
from packaging.utils import parse_wheel_filename

from legacy_cuda.build import compile as building
from legacy_cuda.build import provide, source
from legacy_cuda.build.make import file_sha256
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.recipes import find_recipe
from legacy_cuda.catalog.toolchains import find_toolchain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "python/src/legacy_cuda/catalog/data/compiled.toml"
HEADER = "# Written by tools/update_compiled.py from wheels that legacy-cuda build has made.\n\n"


class StaleError(Exception):
    """A wheel was not made of what the recipes say now."""


def row(path: Path) -> dict[str, Any]:
    """What is recorded of a wheel.

    Raises:
        StaleError: it was made of something else.
    """
    package = str(parse_wheel_filename(path.name)[0])
    recipe = find_recipe(package)
    text = path.with_name(f"{path.name}.provenance.json").read_text(encoding="utf-8")
    provenance = json.loads(text)
    definition = provenance["predicate"]["buildDefinition"]
    sha256 = file_sha256(path)
    if provenance["subject"][0]["digest"]["sha256"] != sha256:
        raise StaleError(f"{path.name}: its provenance is of another file")
    capabilities = [
        Capability.parse(item) for item in definition["externalParameters"]["capabilities"]
    ]
    need = provide.need(recipe, capabilities)
    order = provide.order(need)
    used = {item["digest"]["sha256"] for item in definition["resolvedDependencies"]}
    wanted = {recipe.sdist.sha256, *(digest for _, digest in source.changes(recipe).rows())}
    toolchain = find_toolchain(need.way.toolchain)
    wanted |= {item.sha256 for item in (*toolchain.host.packages, *toolchain.packages)}
    wanted |= {item.sha256 for item in toolchain.wheels}
    lock = load_lock(recipe.lock)
    locked = [{item.sha256 for item in lock.select(python)} for python in lock.pythons]
    internal = definition["internalParameters"]
    if (
        definition["externalParameters"]["version"] != recipe.version
        or internal["toolchain"] != {"name": toolchain.name, "source": "pinned"}
        or internal["settings"] != building.settings(order, "/build/tree")
        or internal.get("environment", {}) != building.environment(order, "/build/tree")
        or not wanted <= used
        or not any(files <= used for files in locked)
    ):
        raise StaleError(f"{path.name} was made of something else than the recipe says now")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    return {
        "package": package,
        "version": need.version,
        "capabilities": [str(item) for item in need.capabilities],
        "inputs": need.inputs,
        "file": path.name,
        "sha256": sha256,
        "size": path.stat().st_size,
        "unpacked": unpacked,
    }


def fresh(item: dict[str, Any]) -> bool:
    """Whether the recipes still come to the inputs of a row."""
    wanted = [Capability.parse(text) for text in item["capabilities"]]
    try:
        recipe = find_recipe(item["package"])
    except CatalogError:
        return False
    able = recipe.way(set(wanted)) is not None
    return able and provide.need(recipe, wanted).inputs == item["inputs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", nargs="*", type=Path)
    parser.add_argument("--drop-stale", action="store_true", help="remove rows of older recipes")
    arguments = parser.parse_args()
    rows = tomllib.loads(DATA.read_text(encoding="utf-8")).get("wheel", [])
    known = {(item["package"], item["version"]): item for item in rows}
    try:
        for path in arguments.wheel:
            new = row(path)
            known[new["package"], new["version"]] = new
            print(f"{new['version']}  {new['sha256']}  {new['file']}")
    except StaleError as error:
        print(f"update_compiled: {error}", file=sys.stderr)
        return 2
    if arguments.drop_stale:
        known = {key: item for key, item in known.items() if fresh(item)}
    content = {"wheel": [known[key] for key in sorted(known)]}
    DATA.write_text(HEADER + tomli_w.dumps(content, multiline_strings=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
