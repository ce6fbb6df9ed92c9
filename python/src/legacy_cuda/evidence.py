"""Evidence: what an audit found in a file, kept with the sha256 it belongs to.

The catalog holds one JSON file for every pinned wheel and for those that answer "which version
still does": ``catalog/data/evidence/PACKAGE/WHEEL.json``. They are made by
``tools/update_evidence.py`` and never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from legacy_cuda import audit
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import DATA

SCHEMA = "legacy-cuda/evidence/1"
DIRECTORY = DATA / "evidence"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The device code found in one wheel. Size in bytes, ``scanned`` an ISO date."""

    package: str
    version: str
    file: str
    sha256: str
    size: int
    scanned: str
    libraries: tuple[audit.Library, ...]


def dump(evidence: Evidence) -> str:
    """As JSON text, always the same for the same evidence."""
    document = {"schema": SCHEMA, **asdict(evidence)}
    text = json.dumps(document, indent=1, ensure_ascii=True)
    return text + "\n"


def parse(text: str) -> Evidence:
    """Read what :func:`dump` wrote.

    Raises:
        ValueError: the text is no evidence of this schema.
    """
    try:
        data: dict[str, Any] = json.loads(text)
        if data["schema"] != SCHEMA:
            raise ValueError(f"unknown schema {data['schema']!r}")
        return Evidence(
            package=data["package"],
            version=data["version"],
            file=data["file"],
            sha256=data["sha256"],
            size=data["size"],
            scanned=data["scanned"],
            libraries=tuple(
                audit.Library(
                    library["path"],
                    library["size"],
                    library["format"],
                    audit.read_groups(library["groups"]),
                )
                for library in data["libraries"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an evidence file: {error!r}") from error


def path_for(package: str, file: str, directory: Path = DIRECTORY) -> Path:
    """Where the evidence of a wheel is kept."""
    return directory / package / f"{file}.json"


def find(package: str, file: str, sha256: str) -> Evidence | None:
    """The catalog's evidence for exactly this file, if it has any."""
    path = path_for(package, file)
    if not path.is_file():
        return None
    evidence = parse(path.read_text(encoding="utf-8"))
    return evidence if evidence.sha256 == sha256 else None


def known(package: str) -> list[Evidence]:
    """All evidence on a package, oldest version first."""
    from packaging.version import Version

    found = [
        parse(path.read_text(encoding="utf-8"))
        for path in sorted((DIRECTORY / package).glob("*.json"))
    ]
    return sorted(found, key=lambda item: (Version(item.version), item.file))


def of_release(package: str, version: str) -> Iterator[Evidence]:
    """The evidence on the wheels of one release, one file read at a time; the local part of the
    version does not count."""
    name, public = package.replace("-", "_"), version.partition("+")[0]
    for path in sorted((DIRECTORY / package).glob(f"{name}-*.json")):
        if path.name.split("-")[1] == public:
            yield parse(path.read_text(encoding="utf-8"))


def newest_that_runs(package: str, capability: Capability) -> str | None:
    """The newest version of a package whose recorded wheels all run on the capability."""
    versions: dict[str, bool] = {}
    for evidence in known(package):
        verdict = audit.judge(evidence.libraries, capability)
        good = verdict.good and verdict.outcome != "no-device-code"
        versions[evidence.version] = versions.get(evidence.version, True) and good
    good_versions = [version for version, good in versions.items() if good]
    return good_versions[-1] if good_versions else None
