"""The kernels of ``legacy-cuda verify``, compiled by nvcc and NVRTC: what machine code comes out.

No GPU is needed; nothing here shows that they run.
"""

from __future__ import annotations

import hashlib
import json
import locale
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from legacy_cuda import fetch
from legacy_cuda.capability import Capability, Target
from legacy_cuda.toolchain import environ
from legacy_cuda.verify import code
from legacy_cuda.verify.nvrtc import Nvrtc, NvrtcError

PROBE = Path(__file__).parents[2] / "python" / "probe"
FUNCTION = re.compile(r"Function : (\S+)")
DP4A = re.compile(r"\b(?:IDP|DP4A)")
# Arithmetic of halves. 6.0 and 7.0 also widen halves with an HADD2.F32, which is a conversion.
HALF = re.compile(r"\bH(?:FMA2|ADD2|MUL2)(?!\.F32)")
FMA = re.compile(r"\b[FD]FMA\b")


@pytest.fixture(scope="module")
def toolchain() -> Path:
    command = [sys.executable, "-m", "legacy_cuda", "toolchain", "11.8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["path"])


def kernels(toolchain: Path, cubin: Path) -> dict[str, list[str]]:
    """The instructions of each kernel, as text."""
    done = subprocess.run(
        [toolchain / "bin" / "cuobjdump", "-sass", cubin],
        capture_output=True,
        text=True,
        check=True,
        env=environ.variables(toolchain, cubin.parent, cubin.parent),
    )
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if match := FUNCTION.search(line):
            current = found.setdefault(match[1], [])
        elif found:
            current.append(line.partition("/* 0x")[0])
    return found


def count(code: dict[str, list[str]], what: re.Pattern[str]) -> Counter[str]:
    """Instructions of a kind, by kernel."""
    return Counter({name: sum(map(bool, map(what.search, code[name]))) for name in code})


def those(found: Counter[str]) -> set[str]:
    return {kernel for kernel, number in found.items() if number}


@pytest.mark.parametrize(
    ("compiler", "capability", "halves", "dp4a"),
    [
        ("nvcc", "3.7", False, False),
        ("nvcc", "6.0", True, False),
        ("nvcc", "6.1", True, True),
        ("NVRTC", "3.7", False, False),
        ("NVRTC", "6.1", True, True),
    ],
)
def test_the_machine_code(
    compiler: str, capability: str, halves: bool, dp4a: bool, toolchain: Path, tmp_path: Path
) -> None:
    """dp4a where there is one, halves computed with where they can be, and nowhere else."""
    target = Target("sass", Capability.parse(capability))
    cubin = tmp_path / "probe.cubin"
    if compiler == "nvcc":
        subprocess.run(
            [
                *("nvcc", "-cubin", f"-arch={target}", "-Wno-deprecated-gpu-targets"),
                *(code.SOURCE, "-o", cubin),
            ],
            env=environ.variables(toolchain, tmp_path, tmp_path),
            cwd=tmp_path,
            check=True,
        )
    else:
        before = locale.nl_langinfo(locale.CODESET)
        cubin.write_bytes(pinned_nvrtc(capability).compile(code.SOURCE.read_text(), target))
        assert locale.nl_langinfo(locale.CODESET) == before, "the locale is ours, not NVRTC's"
    machine_code = kernels(toolchain, cubin)
    assert those(count(machine_code, DP4A)) == ({"dot_int8", "rate_dp4a"} if dp4a else set())
    half = count(machine_code, HALF)
    assert those(half) == ({"arithmetic_fp16", "rate_fp16"} if halves else set())
    fma = count(machine_code, FMA)
    # eight chains, sixteen steps: the loop is not folded, and nothing else is multiplied in it
    assert fma["rate_fp32"] == fma["rate_fp64"] == 128
    if halves:
        assert half["rate_fp16"] == 128
    declared = set(re.findall(r"^(?:KERNEL |RATE\()(\w+)", code.SOURCE.read_text(), re.M))
    left_out = set() if dp4a else {"rate_dp4a"} | (set() if halves else {"rate_fp16"})
    assert set(fma) == declared - left_out


def pinned_nvrtc(capability: str) -> Nvrtc:
    locked = code.nvrtc_wheel(Capability.parse(capability))
    assert locked is not None
    return Nvrtc(
        code.unpacked(
            fetch.download(
                fetch.Remote(
                    locked.package, locked.version, locked.name, locked.sha256, locked.size
                )
            )
        )
    )


def test_what_nvrtc_refuses(tmp_path: Path) -> None:
    nvrtc = pinned_nvrtc("3.7")
    with pytest.raises(NvrtcError, match='identifier "nothing" is undefined'):
        nvrtc.compile("__global__ void a() { nothing(); }", Target.parse("sm_37"))
    (tmp_path / "libnvrtc.so.12").write_bytes(b"\x7fELF")
    with pytest.raises(NvrtcError):
        Nvrtc(tmp_path / "libnvrtc.so.12")


@pytest.mark.large
def test_the_wheel_is_the_same_bytes_anywhere(toolchain: Path, tmp_path: Path) -> None:
    found = set()
    for place in ("one", "another place/deeper"):
        folder = tmp_path / place
        shutil.copytree(PROBE, folder / "probe")
        (folder / "scratch").mkdir()
        variables = environ.variables(toolchain, folder / "scratch", folder)
        keep = ("PIP_", "UV_", "SSL_", "HTTP", "http")
        variables |= {name: text for name, text in os.environ.items() if name.startswith(keep)}
        command = [fetch.uv_binary(), "build", "--wheel", "--python", sys.executable]
        command += ["--out-dir", str(folder), str(folder / "probe")]
        subprocess.run(command, env=variables, check=True)
        (wheel,) = folder.glob("*.whl")
        found.add((wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest()))
        assert len(code.read_probe(wheel)[1]) == 16
    assert len(found) == 1
