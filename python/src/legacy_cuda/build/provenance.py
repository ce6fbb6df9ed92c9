"""What went into a wheel, in the forms that others read: SLSA provenance, CycloneDX.

The bill of materials is part of the wheel (PEP 770) and so says nothing of when or where it was
built; provenance lies beside it and says both. They are written here and not by a library, whose
next release would change the wheel's bytes; the tests have the formats' own schemas check them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement

from legacy_cuda import __version__
from legacy_cuda.build.source import Changes
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.locks import LockedFile
from legacy_cuda.catalog.recipes import Recipe
from legacy_cuda.catalog.toolchains import Toolchain

BUILD_TYPE = "urn:legacy-cuda:build/1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, BUILD_TYPE)


@dataclass(frozen=True)
class Inputs:
    """Everything that decides what becomes of a wheel. ``toolchain_source`` is what is known of a
    toolchain that was found on the machine, and empty for a pinned one."""

    recipe: Recipe
    version: str
    capabilities: tuple[Capability, ...]
    toolchain: Toolchain
    toolchain_source: dict[str, str]
    settings: dict[str, str]
    environment: dict[str, str]
    changes: Changes
    wheels: Sequence[LockedFile]


def bill_of_materials(inputs: Inputs, requires: Sequence[str]) -> dict[str, Any]:
    """A CycloneDX 1.6 document: the wheel, its sources with our patches, what it needs to run.

    It is a function of the inputs: the serial number is made from them, and there is no date and
    no version of this program, whose releases would change every wheel.
    """
    recipe, sdist = inputs.recipe, inputs.recipe.sdist
    wheel = _purl(recipe.package, inputs.version)
    source = f"{_purl(sdist.package, sdist.version)}?file_name={sdist.name}"
    names = [Requirement(item).name for item in requires]
    run_time = [_purl(name, "") for name in names]
    made = "\n".join([wheel, sdist.sha256, *(f"{row}" for row in inputs.changes.rows())])
    patches = [
        {"type": "unofficial", "diff": {"text": {"content": text.decode()}}}
        for text in inputs.changes.patch_texts
    ]
    pedigree: dict[str, Any] = {
        "ancestors": [
            {
                "type": "library",
                "bom-ref": f"{source}#published",
                "name": sdist.package,
                "version": sdist.version,
                "purl": source,
                "hashes": [{"alg": "SHA-256", "content": sdist.sha256}],
            }
        ]
    }
    if patches:
        pedigree["patches"] = patches
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, made)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": wheel,
                "name": recipe.package,
                "version": inputs.version,
                "purl": wheel,
            },
            "tools": {"components": [{"type": "application", "name": "legacy-cuda"}]},
        },
        "components": [
            {
                "type": "library",
                "bom-ref": source,
                "name": sdist.package,
                "version": sdist.version,
                "purl": source,
                "pedigree": pedigree,
            },
            *(
                {
                    "type": "library",
                    "bom-ref": purl,
                    "name": name,
                    "purl": purl,
                    "description": f"needed at run time: {item}",
                }
                for item, name, purl in zip(requires, names, run_time, strict=True)
            ),
            {
                "type": "application",
                "bom-ref": "compiler",
                "name": "CUDA toolchain",
                "version": inputs.toolchain.name,
                "scope": "excluded",
                "description": _compilers(inputs),
            },
        ],
        "dependencies": [
            {"ref": wheel, "dependsOn": [source, *run_time]},
            {"ref": source, "dependsOn": []},
        ],
    }


def _compilers(inputs: Inputs) -> str:
    """The versions of what it was compiled with."""
    toolchain, found = inputs.toolchain, inputs.toolchain_source
    if found:
        return f"nvcc {found['nvcc']}, gcc {found['gcc']}, glibc {found['glibc']}, of the machine"
    host = toolchain.host
    return f"nvcc {toolchain.nvcc}, gcc {host.gcc}, glibc {host.glibc}"


def statement(
    inputs: Inputs, file: str, sha256: str, started: str, finished: str, command: Sequence[str]
) -> dict[str, Any]:
    """An in-toto statement (v1) with SLSA provenance (v1). Times are RFC 3339."""
    recipe, sdist = inputs.recipe, inputs.recipe.sdist
    materials: list[dict[str, Any]] = [
        {
            "name": sdist.name,
            "uri": _purl(sdist.package, sdist.version),
            "digest": {"sha256": sdist.sha256},
        }
    ]
    materials += [
        {"name": name, "digest": {"sha256": digest}} for name, digest in inputs.changes.rows()
    ]
    if not inputs.toolchain_source:
        for package in (*inputs.toolchain.host.packages, *inputs.toolchain.packages):
            materials.append(
                {
                    "name": package.file.rpartition("/")[2],
                    "uri": f"pkg:deb/debian/{package.name}@{package.version}?arch=amd64",
                    "digest": {"sha256": package.sha256},
                }
            )
    wheels = [*([] if inputs.toolchain_source else inputs.toolchain.wheels), *inputs.wheels]
    materials += [
        {
            "name": wheel.name,
            "uri": _purl(wheel.package, wheel.version),
            "digest": {"sha256": wheel.sha256},
        }
        for wheel in wheels
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": file, "digest": {"sha256": sha256}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "package": recipe.package,
                    "version": recipe.version,
                    "capabilities": [str(item) for item in inputs.capabilities],
                },
                "internalParameters": {
                    "settings": inputs.settings,
                    "environment": inputs.environment,
                    "toolchain": {
                        "name": inputs.toolchain.name,
                        **(inputs.toolchain_source or {"source": "pinned"}),
                    },
                },
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {
                    "id": "urn:legacy-cuda:builder",
                    "version": {"legacy-cuda": __version__},
                },
                "metadata": {"startedOn": started, "finishedOn": finished},
                "byproducts": [{"name": "command", "annotations": {"words": list(command)}}],
            },
        },
    }


def _purl(package: str, version: str) -> str:
    """A package URL (purl-spec) of PyPI; ``+`` of a local version is escaped."""
    return f"pkg:pypi/{package}" + (f"@{version.replace('+', '%2B')}" if version else "")
