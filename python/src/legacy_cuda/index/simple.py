"""The pages that installers read: the simple repository API of PyPA's specifications, as files.

HTML is PEP 503 with metadata files (PEP 658, 714), JSON is PEP 691 and 700. Upload times are left
out: the same wheels give the same bytes. Addresses are relative, so the folder can be moved and
served anywhere. Pure functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from html import escape
from itertools import groupby
from typing import Any
from urllib.parse import quote

from legacy_cuda.capability import Capability
from legacy_cuda.index.wheels import Wheel

API = "1.1"


def prefix(capability: Capability) -> str:
    """Below which folder the sub-index of a capability lies."""
    return f"sm{capability.number}/"


def pages(below: str, wheels: Iterable[Wheel]) -> dict[str, bytes]:
    """The files of one index by path; ``below`` is "" or ``sm61/``, wheels are sorted by project.

    The lists of projects come last.
    """
    root = f"{below}simple/"
    up = "../" * (root.count("/") + 1)
    found: dict[str, bytes] = {}
    names = []
    for project, group in groupby(wheels, key=lambda wheel: wheel.project):
        names.append(project)
        listed = list(group)
        found[f"{root}{project}/index.html"] = project_html(project, listed, up).encode()
        found[f"{root}{project}/index.json"] = _dump(project_json(project, listed, up))
    found[f"{root}index.html"] = root_html(names).encode()
    found[f"{root}index.json"] = _dump(
        {"meta": {"api-version": API}, "projects": [{"name": name} for name in names]}
    )
    return found


def url(up: str, file: str) -> str:
    """The address of a file as seen from a page that lies ``up`` below it."""
    return up + quote(file, safe="")


def root_html(projects: Iterable[str]) -> str:
    """The list of projects."""
    links = [
        f'<a href="{escape(quote(name, safe=""))}/">{escape(name)}</a><br>' for name in projects
    ]
    return _html("Simple index", links)


def project_html(project: str, wheels: Iterable[Wheel], up: str) -> str:
    """The files of one project."""
    links = []
    for wheel in wheels:
        # Not by its older name too (data-dist-info-metadata, which PEP 714 allows): pips that know
        # only that one, such as Debian 12's 23.0.1, refuse a project whose METADATA spells its name
        # otherwise than the person who asks for it. Without the attribute they take the wheel.
        attributes = {
            "href": f"{url(up, wheel.file)}#sha256={wheel.sha256}",
            "data-core-metadata": f"sha256={_sha256(wheel.metadata)}",
        }
        if wheel.requires_python:
            attributes["data-requires-python"] = wheel.requires_python
        text = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
        links.append(f"<a {text}>{escape(wheel.file)}</a><br>")
    return _html(f"Links for {project}", links)


def project_json(project: str, wheels: Iterable[Wheel], up: str) -> dict[str, Any]:
    """The same as a document of PEP 691."""
    files: list[dict[str, Any]] = []
    versions = []
    for wheel in wheels:
        versions.append(str(wheel.version))
        files.append(
            {
                "filename": wheel.file,
                "url": url(up, wheel.file),
                "hashes": {"sha256": wheel.sha256},
                **({"requires-python": wheel.requires_python} if wheel.requires_python else {}),
                "size": wheel.size,
                "core-metadata": {"sha256": _sha256(wheel.metadata)},
            }
        )
    return {
        "meta": {"api-version": API},
        "name": project,
        "versions": list(dict.fromkeys(versions)),
        "files": files,
    }


def _html(title: str, links: list[str]) -> str:
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta name="pypi:repository-version" content="{API}">',
        f"<title>{escape(title)}</title>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
        *links,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _dump(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
