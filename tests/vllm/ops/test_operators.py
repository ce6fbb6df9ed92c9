"""The table of operators names all that the extension registers, and tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from operators import COVERED
from references import torch

pytestmark = pytest.mark.without_gpu
SPACES = ("_C", "_C_cache_ops", "_C_cuda_utils", "_C_custom_ar", "_moe_C")


def test_every_operator_is_in_the_table() -> None:
    registered = {
        schema.name
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.partition("::")[0] in SPACES
    }
    assert registered == set(COVERED)


def test_every_test_of_the_table_is_there() -> None:
    known = {
        f"{path.name}::{node.name}"
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    named = {value for value in COVERED.values() if not value.startswith("none: ")}
    assert named <= known
