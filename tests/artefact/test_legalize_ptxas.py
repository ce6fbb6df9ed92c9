"""Legalised PTX is assembled for its target, and the rules begin where ptxas says they must.

ptxas comes out of two pinned wheels, never from PATH: 11.8 for Kepler, 12.8 for everything newer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ptx_examples import ELSEWHERE, EXAMPLES, REFUSED, kernel, module
from wheels import WheelUnavailable, extract, obtain, read_list

from legacy_cuda.triton_backend.legalize import LegalizeError, legalize
from legacy_cuda.triton_backend.ptx import Opcode
from legacy_cuda.triton_backend.rules import RULES

WHEELS, _ = read_list(Path(__file__).with_name("ptxas.toml"))
MEMBER = "nvidia/cuda_nvcc/bin/ptxas"
KEPLER = [(3, 5), (3, 7)]
LEGACY = [*KEPLER, (5, 0), (5, 2), (5, 3), (6, 0), (6, 1), (6, 2)]
TARGETS = [*LEGACY, (7, 0), (7, 2), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)]
ISA = {"11.8": (7, 8), "12.8": (8, 7)}  # the PTX ISA that each release knows

Capability = tuple[int, int]
Assemble = Callable[[str, Capability], "str | None"]

CASES = [(name, text) for name, texts in EXAMPLES.items() for text in texts]


def release(capability: Capability) -> str:
    return "11.8" if capability in KEPLER else "12.8"


@pytest.fixture(scope="session")
def assemble(tmp_path_factory: pytest.TempPathFactory) -> Assemble:
    """Assemble a module: ptxas's message where it refuses, None where it does not."""
    programs: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("ptxas")
    for number in ISA:
        try:
            wheel = obtain(WHEELS[f"nvcc-{number}"])
        except WheelUnavailable as error:
            pytest.fail(str(error), pytrace=False)
        (folder / number).mkdir()
        programs[number] = extract(wheel, MEMBER, folder / number)
    source, cubin = folder / "module.ptx", folder / "module.cubin"

    def run(text: str, capability: Capability) -> str | None:
        source.write_text(text)
        target = f"sm_{capability[0]}{capability[1]}"
        done = subprocess.run(
            [programs[release(capability)], f"-arch={target}", source, "-o", cubin],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        message = done.stdout + done.stderr
        return None if done.returncode == 0 else message or f"exit status {done.returncode}"

    return run


def plain(body: str, capability: Capability) -> str:
    """The statements for a target, not legalised."""
    major, minor = ISA[release(capability)]
    return module(kernel("k", body), f"{major}.{minor}", f"sm_{capability[0]}{capability[1]}")


@pytest.mark.parametrize("capability", LEGACY, ids=str)
def test_every_example_assembles_under_every_guard(
    assemble: Assemble, capability: Capability
) -> None:
    texts = [text for _, text in CASES] + [text for row in ELSEWHERE.values() for text in row]
    kernels = [
        kernel(f"k{number}_{turn}", guard + text)
        for number, text in enumerate(texts)
        for turn, guard in enumerate(("", "@%p1 ", "@!%p1 "))
    ]
    version = ISA["11.8"] if capability in KEPLER else None
    legal = legalize(module("".join(kernels)), capability, version)
    message = assemble(legal, capability)
    if message is not None:
        lines = legal.splitlines()
        numbers = [int(part.split(";")[0]) for part in message.split("line ")[1:6]]
        pytest.fail("\n".join([message[:2000], *(lines[number - 1] for number in numbers)]))
    assert legalize(legal, capability, version) == legal


def native(text: str) -> Capability:
    """The first capability for which no rule has anything to do."""
    opcode = Opcode.read(text.split()[0].rstrip(";"))
    found = [rule.needs(opcode) for rule in RULES if opcode.name in rule.opcodes]
    return max(needs for needs in found if needs is not None)


@pytest.mark.parametrize(("name", "text"), CASES, ids=[text for _, text in CASES])
def test_a_rule_begins_where_ptxas_refuses(assemble: Assemble, name: str, text: str) -> None:
    needs = native(text)
    below = max(target for target in TARGETS if target < needs)
    above = min(target for target in TARGETS if target >= needs)
    assert assemble(plain(text, below), below) is not None, f"{below} has this already"
    assert assemble(plain(text, above), above) is None, f"{above} has not this yet"
    if below >= (7, 0):  # the rules are for what is older
        assert assemble(plain(text, (6, 2)), (6, 2)) is not None
    assert assemble(plain(text, (3, 7)), (3, 7)) is not None


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_is_refused_by_ptxas_too(assemble: Assemble, text: str) -> None:
    for capability in ((3, 7), (6, 2)):
        assert assemble(plain(text, capability), capability) is not None
        with pytest.raises(LegalizeError, match=r"needs capability \d+\.\d"):
            legalize(plain(text, capability), capability)


def test_directives_of_clusters(assemble: Assemble) -> None:
    head = ".visible .entry c(.param .u64 p0)\n.reqntid 128, 1, 1\n.reqnctapercluster 1, 1, 1\n"
    text = module(head + ".explicitcluster\n{\nret;\n}\n")
    assert assemble(text.replace("sm_90", "sm_61"), (6, 1)) is not None
    assert assemble(legalize(text, (6, 1)), (6, 1)) is None


@pytest.mark.parametrize("capability", [(3, 7), (5, 2)], ids=str)
def test_declarations_of_packed_registers(assemble: Assemble, capability: Capability) -> None:
    body = "{ .reg .f16x2 a, b; mov.b32 a, %r1; add.f16x2 b, a, a; mov.b32 %r5, b; }"
    assert assemble(plain(body, capability), capability) is not None
    assert assemble(legalize(plain(body, capability), capability), capability) is None
