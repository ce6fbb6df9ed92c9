"""The series of patches in docs/trials, which no command uses: each fits what was published."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

import pytest
from wheels import obtain, read_list

from legacy_cuda.build.patches import apply_all, parse

TRIALS = Path(__file__).parents[2] / "docs" / "trials"


def imports(code: bytes) -> set[str]:
    """Top names that are imported while a module is, whatever the condition."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(code)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                waiting.append(node)
    return found


@pytest.mark.parametrize("folder", sorted(TRIALS.iterdir()), ids=lambda folder: folder.name)
def test_a_series_fits_and_what_comes_out_is_python(folder: Path) -> None:
    wheel = obtain(read_list()[0][folder.name])
    series = [parse(path.read_bytes(), path.name) for path in sorted(folder.glob("*.patch"))]
    assert [patch.name[:4] for patch in series] == [f"{at:04}" for at in range(1, len(series) + 1)]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        before = {
            diff.path: archive.read(diff.path)
            for patch in series
            for diff in patch.files
            if diff.path in names
        }
    after = apply_all(series, before.get)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)
    for name, code in after.items():
        assert imports(code) <= imports(before[name]) | {"torch"}, name
