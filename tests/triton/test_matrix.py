"""Patched Triton compiles one kernel of each kind for every capability. Needs no GPU.

The whole corpus is compiled by ``python -m tests.triton.matrix``; here a subset of it, and the
matrix's own parts on made-up reports. Triton comes from PyPI's wheels, patched here, and is kept in
the cache; ptxas for Kepler from NVIDIA's wheel beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import patched_python
import pytest
from wheels import WheelUnavailable, obtain, read_list

from legacy_cuda.errors import SurroundingsError
from tests.triton import expected, matrix, measure

PATCHES = matrix.ROOT / "python/src/legacy_cuda/patches/triton"
VERSIONS = sorted(path.name for path in PATCHES.iterdir() if path.is_dir())
#: The legaliser's share of the time a compilation takes, at most.
LEGALISER_SHARE = 0.03


@pytest.fixture(scope="session")
def patched_triton() -> Callable[[str], Path]:
    """The Python that has a version of Triton, patched by this repository from PyPI's wheel."""
    wheels, _ = read_list(matrix.ROOT / "tests/artefact/ptxas.toml")

    def find(version: str) -> Path:
        try:
            return patched_python.with_triton(version, obtain(wheels["nvcc-11.8"]))
        except (SurroundingsError, WheelUnavailable) as error:
            pytest.fail(f"Triton {version} cannot be had: {error}", pytrace=False)

    return find


@pytest.mark.parametrize("capability", matrix.CAPABILITIES, ids=matrix.name_of)
@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_compile(
    version: str, capability: matrix.Pair, patched_triton: Callable[[str], Path]
) -> None:
    document = matrix.run(
        str(patched_triton(version)),
        capabilities=[capability],
        kernels=matrix.CI_SUBSET,
    )
    assert document["triton"]["version"].partition("+")[0] == version
    assert document["triton"]["legalises"], "this Triton is not patched"
    assert len(document["cells"]) == len(matrix.CI_SUBSET)
    assert matrix.surprises(document) == []
    times = [cell["seconds"] for cell in document["cells"].values() if cell["ok"]]
    legaliser = sum(seconds.get("legaliser", 0.0) for seconds in times)
    assert legaliser <= LEGALISER_SHARE * sum(seconds["total"] for seconds in times)
    assert (legaliser > 0) == (capability < (7, 0))


def test_ptxas_report_is_read() -> None:
    log = """ptxas info    : Compiling entry function 'k' for 'sm_61'
ptxas info    : Function properties for k
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, 2048 bytes smem, 360 bytes cmem[0]
ptxas info    : Function properties for f
    0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
    assert measure.read_ptxas(log) == {
        "registers": 32,
        "stack": 16,
        "spill_stores": 12,
        "spill_loads": 16,
        "static_shared": 2048,
    }
    assert measure.read_ptxas("ptxas info    : Used 8 registers, 320 bytes cmem[0]") == {
        "registers": 8,
        "stack": 0,
        "spill_stores": 0,
        "spill_loads": 0,
        "static_shared": 0,
    }
    assert measure.read_ptxas("") is None


def test_opcodes_are_counted() -> None:
    listing = """
.text.k:
        /*0008*/                   MOV R1, c[0x0][0x20] ;
        /*0010*/              @!P0 HFMA2.MRG_H0 R0, R0, R5, R6 ;
        /*0018*/         {         IDP.4A.S8.S8 R6, R0.reuse, R5.reuse, R6 ;
        /*0020*/              @PT  LDG.E R0, [R2]  } ;
        /*0028*/                   IDP.2A.LO.S16.S8 R0, R0, R5, R6 ;
"""
    opcodes, detailed = measure.count_opcodes(listing)
    assert opcodes == {"HFMA2": 1, "IDP": 2, "LDG": 1, "MOV": 1}
    assert measure.half_arithmetic(opcodes) == 1
    assert measure.dp4a(detailed) == 1


def test_first_error_of_ptxas() -> None:
    log = "ptxas a.ptx, line 9; error   : Feature '.acq_rel' requires .target sm_70 or higher\n"
    assert measure.first_error(log) == "Feature '.acq_rel' requires .target sm_70 or higher"
    assert measure.first_error("ptxas fatal   : no\n") == "no"
    assert measure.first_error("all is well") is None


def cell(kernel: str, capability: str, **fields: Any) -> dict[str, Any]:
    """A cell that is as it has to be, but for the fields given."""
    whole = {
        "kernel": kernel,
        "capability": capability,
        "tags": ["dot"],
        "ok": True,
        "seconds": {"total": 1.0, "legaliser": 0.01},
        "shared": 1024,
        "resources": measure.read_ptxas("Used 8 registers"),
        "cubin_capability": [int(part) for part in capability.split(".")],
        "opcodes": {"FFMA": 4},
        "detailed": {},
    }
    return {**whole, **fields}


def document(*cells: dict[str, Any]) -> matrix.Document:
    return {
        "schema": matrix.SCHEMA,
        "triton": {"version": "1.2.3", "legacy": True, "legalises": True},
        "cells": {f"{entry['kernel']}@{entry['capability']}": entry for entry in cells},
    }


FAILED = {"ok": False, "error": "PTXASError", "reason": "no such instruction"}
REFUSAL = expected.REFUSALS[0]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (cell("a", "6.1"), None),
        (cell("a", "6.1", **FAILED), "PTXASError: no such instruction"),
        (cell(REFUSAL.kernel, "6.1"), "should be refused"),
        (cell(REFUSAL.kernel, "6.1", **FAILED), "another reason"),
        (cell(REFUSAL.kernel, "6.1", **{**FAILED, "reason": f"x {REFUSAL.message} y"}), None),
        (cell("a", "6.1", cubin_capability=[6, 0]), "the cubin is for 6.0"),
        (cell("a", "5.2", shared=49153), "49153 bytes of shared memory"),
        (cell("a", "7.0", shared=49153), None),
        (cell("a", "6.1", opcodes={"HMUL2": 3}), "3 instructions of fp16 arithmetic"),
        (cell("a", "6.1", tags=["int8-dot"]), "without DP4A"),
        (cell("a", "6.1", tags=["int8-dot"], detailed={"IDP.4A.S8.S8": 1}), None),
        (cell("a", "5.2", tags=["int8-dot"]), None),
    ],
)
def test_surprises_go_both_ways(entry: dict[str, Any], what: str | None) -> None:
    found = matrix.surprises(document(entry))
    if what is None:
        assert found == []
    else:
        assert len(found) == 1
        assert what in found[0].what


def test_report_has_every_table() -> None:
    cells = (
        cell("a", "6.1"),
        cell("a", "5.2", **{**FAILED, "reason": "one | two"}),
        cell(REFUSAL.kernel, "6.1", **{**FAILED, "reason": REFUSAL.message}),
    )
    text = matrix.report([document(*cells)])
    assert "| a | FAIL | ok |" in text
    assert f"| {REFUSAL.kernel} |  | refused |" in text
    assert "one \\| two" in text
    assert "| 1.2.3 | 6.1 | 2 | 1 | 1 | 0 |" in text
    assert "| a | 1.2.3 | 6.1 | 0 | 0 | 4 | 0 | 0 |" in text
    assert "| a | 1.2.3 | 6.1 | 8 | 0 / 0 | 1024 |" in text
    assert "| 1.2.3 | 6.1 | 1.0 | 0.01 | 1.00 % |" in text


FAKE = """#!{python}
import json, os, sys, time
kernels = {{name: {{"digest": name, "tags": [], "proof": [8, 0]}} for name in "abcd"}}
hello = {{"version": "1.2.3", "legacy": True, "legalises": True, "digest": "{digest}"}}
print(json.dumps({{**hello, "kernels": kernels}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open("{calls}", "a") as calls:
        calls.write(asked["kernel"])
    if asked["kernel"] == "b":
        print("LLVM ERROR: Cannot select", file=sys.stderr, flush=True)
        os.abort()
    if asked["kernel"] == "c":
        time.sleep(60)
    print(json.dumps({{"ok": True, "shared": 0, "seconds": {{}}}}), flush=True)
"""


def fake(folder: Path, digest: str) -> str:
    """A program that answers as the worker does, crashes at b and sleeps at c."""
    path = folder / "python"
    calls = folder / "calls"
    path.write_text(FAKE.format(python=sys.executable, digest=digest, calls=calls))
    path.chmod(0o755)
    return str(path)


def test_a_crash_and_a_timeout_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    made = matrix.run(fake(tmp_path, "x"), out, capabilities=[(6, 1)], timeout=1)
    assert made == json.loads(out.read_text())
    assert [made["cells"][f"{name}@6.1"]["ok"] for name in "abcd"] == [True, False, False, True]
    assert made["cells"]["b@6.1"]["reason"] == "SIGABRT: LLVM ERROR: Cannot select"
    assert made["cells"]["c@6.1"]["reason"] == "no answer in 1 s"


def test_only_what_changed_is_compiled_again(tmp_path: Path) -> None:
    out, calls = tmp_path / "out.json", tmp_path / "calls"
    matrix.run(fake(tmp_path, "x"), out, capabilities=[(6, 1)], kernels=["a"])
    matrix.run(fake(tmp_path, "x"), out, capabilities=[(6, 1)], kernels=["a", "d"])
    assert calls.read_text() == "ad"
    matrix.run(fake(tmp_path, "y"), out, capabilities=[(6, 1)], kernels=["d"])
    assert calls.read_text() == "add"
    assert list(json.loads(out.read_text())["cells"]) == ["d@6.1"]


def test_unknown_kernel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no kernel nonsense"):
        matrix.run(fake(tmp_path, "x"), capabilities=[(6, 1)], kernels=["nonsense"])
