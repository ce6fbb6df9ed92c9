"""Evidence: complete for every pin, and what the stacks claim follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from legacy_cuda import audit, catalog, evidence
from legacy_cuda.catalog.locks import load_lock, lock_names
from legacy_cuda.catalog.recipes import find_recipe

SCHEMA = json.loads(
    (Path(catalog.__file__).parent / "schema" / "evidence.schema.json").read_text(encoding="utf-8")
)
FILES = sorted(evidence.DIRECTORY.glob("*/*.json"))
DISCRETE = [
    capability
    for capability in catalog.capabilities()
    if any(gpu.capability == capability for gpu in catalog.gpus())
]


@pytest.mark.parametrize("name", lock_names())
def test_every_pinned_wheel_has_evidence_for_its_sha256(name: str) -> None:
    missing = [
        file.name
        for package in load_lock(name).packages
        for file in package.files
        if evidence.find(package.name, file.name, file.sha256) is None
    ]
    assert not missing, f"run tools/update_evidence.py: {missing}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_follow_the_schema_and_are_where_they_belong(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), SCHEMA)
    item = evidence.parse(text)
    assert evidence.path_for(item.package, item.file) == path
    assert evidence.dump(item) == text


@pytest.mark.parametrize("stack", catalog.stacks(), ids=lambda stack: stack.name)
def test_a_stack_covers_exactly_what_its_wheels_were_shown_to(stack: catalog.StackFacts) -> None:
    lock = load_lock(stack.lock)
    for python in lock.pythons:
        libraries: list[audit.Library] = []
        for file in lock.select(python):
            found = evidence.find(file.package, file.name, file.sha256)
            assert found is not None
            libraries += found.libraries
        shown = [capability for capability in DISCRETE if audit.judge(libraries, capability).good]
        for name in stack.compiled:  # for these alone; the wheel is audited when it is built
            shown = [item for item in shown if item in find_recipe(name).capabilities]
        assert list(stack.covers) == shown, f"Python {python}"


def test_garbage_is_refused() -> None:
    for text in ("", "[]", "{}", '{"schema": "other"}', '{"schema": "legacy-cuda/evidence/1"}'):
        with pytest.raises(ValueError):
            evidence.parse(text)
