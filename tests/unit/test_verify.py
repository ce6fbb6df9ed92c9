"""``legacy-cuda verify`` without a GPU: a stand-in for libcuda, of ours, that is compiled here.

What it shows: that the numbers expected in Python are those that C computes, that planted faults
are found and named, that hangs are cut off. It shows nothing about a GPU or a driver of NVIDIA's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import legacy_cuda
from legacy_cuda import catalog, hardware, nvml
from legacy_cuda.capability import Capability, Target
from legacy_cuda.cli import main
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.nvml import Device, Missing, Snapshot
from legacy_cuda.verify import checks, code, judge, roofline, run, worker
from legacy_cuda.verify.code import Code, Finder, Wanted
from legacy_cuda.verify.judge import Live

ROOT = Path(__file__).parents[2]
PROBE = ROOT / "python" / "probe"
COMPILER = shutil.which("cc") or shutil.which("gcc")
SM_61 = Code(b"the stand-in does not look at it", Target.parse("sm_61"), "a stand-in")
P40 = catalog.find_gpu("p40")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


LOST = Missing("GPU_IS_LOST", "nvmlDeviceGetHandleByIndex")
#: The stand-in's first GPU as NVML shows it after the run: the link and the clock have fallen.
AT_REST = Device(
    1,
    pci_address="0000:3b:00.0",
    temperature_c=71,
    thermal_violation_s=4.0,
    pcie_generation=1,
    pcie_generation_max=3,
    pcie_width=16,
    pcie_width_max=16,
    ecc_corrected_volatile=3,
    ecc_uncorrected_volatile=0,
)
OPTIONS = ["-O2", "-fPIC", "-ffp-contract=off", "-w"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip("skipped: no C compiler here")
    folder = tmp_path_factory.mktemp("stand-in")
    source = Path(__file__).with_name("stand_in_cuda.c")
    target = folder / "libcuda.so.1"
    subprocess.run([COMPILER, *OPTIONS, "-shared", source, "-o", target, "-lm"], check=True)
    return folder


PTX = re.compile(r'asm(?: volatile)?\("(\S+) [^"]*"\s*:\s*"=\w"\((\w+)\)\s*:([^;]*)\);')
"""An instruction of PTX in the kernels: its name, its result, what it takes."""


@pytest.fixture(scope="module", params=["370", "610"])
def kernels_on_cpu(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The stand-in with the kernels' own source in it, as it is compiled for 3.7 and for 6.1."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if COMPILER is None or compiler is None:
        pytest.skip("skipped: no C++ compiler here")
    folder = tmp_path_factory.mktemp("on-cpu")

    def call(match: re.Match[str]) -> str:
        inputs = ", ".join(re.findall(r'"\w"\((\w+)\)', match[3]))
        return f"{match[2]} = ptx_{match[1].replace('.', '_')}({inputs});"

    source, instructions = PTX.subn(call, code.SOURCE.read_text())
    assert instructions == source.count("ptx_") == code.SOURCE.read_text().count("asm")
    source = source.replace("extern __shared__ u32 words[];", "u32 *words = dynamic;")
    (folder / "probe.cc").write_text(source)
    (folder / "probe.txt").write_text(request.param)
    names = re.findall(r"^(?:KERNEL |RATE\()(\w+)", source, re.M)
    names = [name for name in names if name != "name"]
    if request.param == "370":
        names = [name for name in names if name not in ("rate_fp16", "rate_dp4a")]
    here = Path(__file__).parent
    parts = []
    for program, file, more in (
        (COMPILER, "stand_in_cuda.c", []),
        (
            compiler,
            "probe_on_cpu.cpp",
            [
                *("-std=c++14", f"-D__CUDA_ARCH__={request.param}", '-DPROBE="probe.cc"'),
                *(f"-I{folder}", "-DKERNELS=" + " ".join(f"KERNEL_NAMED({n})" for n in names)),
            ],
        ),
    ):
        parts.append(folder / f"{file}.o")
        command = [program, *OPTIONS, *more, "-c", here / file, "-o", parts[-1]]
        subprocess.run(command, check=True)
    subprocess.run([compiler, "-shared", *parts, "-o", folder / "libcuda.so.1", "-lm"], check=True)
    return folder


@pytest.fixture
def machine(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Make this a machine with stand-ins for a P40: ``machine(fault="...", gpus=2)``."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "python" / "src"))
    monkeypatch.delenv("LEGACY_CUDA_REPLAY", raising=False)
    for number in range(2):
        device = tmp_path / "sysfs" / f"0000:{0x3B + number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "device").write_text(P40.pci_ids[0].replace("10de:", "0x") + "\n")
    monkeypatch.setattr(hardware, "SYSFS", tmp_path / "sysfs")

    def set_up(**facts: Any) -> None:
        for name, value in facts.items():
            monkeypatch.setenv(f"STAND_IN_{name.upper()}", str(value))

    return set_up


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A probe with code for every capability of an old card, as far as its names tell."""
    folder = tmp_path / "probe"
    folder.mkdir()
    for number in architectures():
        (folder / f"sm_{number}.cubin").write_bytes(b"cubin")
        ptx = f".version 7.8\n.target sm_{number}\n.address_size 64\n"
        (folder / f"compute_{number}.ptx").write_text(ptx)
    return folder


def architectures() -> list[int]:
    """What the package legacy-cuda-probe is compiled for."""
    settings = tomllib.loads((PROBE / "pyproject.toml").read_text())["tool"]["scikit-build"]
    text = settings["cmake"]["define"]["CMAKE_CUDA_ARCHITECTURES"]
    return [int(number) for number in text.split(";")]


def on_gpu(*names: str, limit: float = 60, capability: str = "6.1") -> dict[str, dict[str, Any]]:
    """The steps, run on the first GPU."""
    survey = run.survey()
    assert survey.problem == ""
    options = run.Options(limit=limit, load=0, steps=names)
    where = Capability.parse(capability)
    told: list[str] = []
    steps = run.gpu(survey.devices[0], SM_61, where, options, told.append)
    assert [step["name"] for step in steps] == ["start", *names]
    return {step["name"]: step for step in steps}


# ---- right and wrong results ----


def test_right_numbers_pass(machine: Callable[..., None]) -> None:
    """What Python expects is what C computes: every check, on a GPU without a fault."""
    machine()
    steps = on_gpu(*worker.CHECKS)
    assert {name: step["outcome"] for name, step in steps.items()} == dict.fromkeys(steps, "passed")
    assert steps["memory"]["facts"]["bytes"] >= 24 << 20
    assert steps["fp16 storage"]["facts"]["results"] > 1 << 16


def test_the_kernels_compute_what_is_expected(
    kernels_on_cpu: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own source, on the CPU, with the paths of an old and of a newer capability."""
    machine(tflops=0.0005, gb_s=1, link=1, mib=4, multiprocessors=2)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(kernels_on_cpu))
    old = "370" in (kernels_on_cpu / "probe.txt").read_text()
    steps = on_gpu(*worker.STEPS, capability="3.7" if old else "6.1")
    for name, step in steps.items():
        gone = old and name in ("fp16 rate", "dp4a rate")
        assert step["outcome"] == ("not run" if gone else "passed"), step
    machine(fault="stuck:4000")
    facts = on_gpu("memory")["memory"]["facts"]
    assert (facts["bits"], facts["first"][0]["word"]) == ("00100000", 4000)
    assert int(facts["first"][0]["should"], 16) ^ int(facts["first"][0]["is"], 16) == 0x00100000


@pytest.mark.parametrize(
    ("kernel", "step"),
    [
        ("arithmetic_fp32", "fp32"),
        ("arithmetic_fp64", "fp64"),
        ("storage_fp16", "fp16 storage"),
        ("arithmetic_fp16", "fp16"),
        ("dot_int8", "int8"),
        ("atomics", "atomics"),
        ("shared_memory", "shared memory"),
        ("copy", "bandwidth"),
        ("triad", "bandwidth"),
        ("rate_fp32", "fp32 rate"),
        ("rate_dp4a", "dp4a rate"),
        ("intensity", "roofline"),
    ],
)
def test_a_wrong_bit_is_found(kernel: str, step: str, machine: Callable[..., None]) -> None:
    machine(fault=f"wrong:{kernel}")
    done = on_gpu(step)[step]
    assert done["outcome"] == "failed" and done["why"]
    verdict = judge.judge(DEVICE, [done], None)
    assert verdict.state == "failed"
    kind = "bad-memory" if kernel in ("copy", "triad") else "wrong-results"
    assert [finding.kind for finding in verdict.findings] == [kind]


def test_memory_with_a_bad_bit(machine: Callable[..., None]) -> None:
    word = 3 << 20
    machine(fault=f"stuck:{word}")
    steps = on_gpu("memory")
    facts = steps["memory"]["facts"]
    assert steps["memory"]["outcome"] == "failed"
    assert facts["bits"] == "00100000" and facts["first"][0]["word"] == word
    (finding,) = judge.judge({}, [steps["memory"]], None, replayed=True).findings
    assert finding.kind == "bad-memory" and "00100000" in finding.text


@pytest.mark.parametrize("bit", [4, 15, 21])
def test_memory_with_a_stuck_address_line(bit: int, machine: Callable[..., None]) -> None:
    """Two addresses are one cell: every pattern that is the same everywhere would miss it."""
    machine(fault=f"address:{bit}")
    done = on_gpu("memory")["memory"]
    assert done["outcome"] == "failed" and done["facts"]["errors"] > 1000


def test_a_link_that_alters_data(machine: Callable[..., None]) -> None:
    machine(fault="link")
    done = on_gpu("link")["link"]
    assert done["outcome"] == "failed" and "not what was sent" in done["why"]


def test_memory_that_others_have(machine: Callable[..., None]) -> None:
    machine(free_mib=0)
    steps = on_gpu("fp32", "memory", "bandwidth")
    assert steps["fp32"]["outcome"] == "not run" and "OUT_OF_MEMORY" in steps["fp32"]["why"]
    verdict = judge.judge(run.survey().devices[0], list(steps.values()), P40)
    assert verdict.state == "incomplete"


def test_the_working_folder_is_not_imported_from(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by its being the working folder nor by an empty entry of PYTHONPATH."""
    machine()
    for name in ("json", "random", "legacy_cuda"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the working folder ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ["PYTHONPATH"])
    assert on_gpu("fp32")["fp32"]["outcome"] == "passed"


def test_free_memory_in_small_pieces_is_tested(machine: Callable[..., None]) -> None:
    """No piece of more than 100 MiB can be had: half of the half of what is asked for first."""
    machine(mib=300, piece_mib=100)
    done = on_gpu("memory")["memory"]
    assert done["outcome"] == "passed"
    assert done["facts"]["bytes"] > (300 - 300 // 8 - 64) << 20


def test_memory_of_which_no_piece_can_be_had(machine: Callable[..., None]) -> None:
    machine(mib=300, piece_mib=30)
    done = on_gpu("memory")["memory"]
    assert done["outcome"] == "not run" and "OUT_OF_MEMORY" in done["why"]


# ---- GPUs and drivers that give up ----


def test_a_failed_launch_ends_the_run(machine: Callable[..., None]) -> None:
    machine(fault="launch:dot_int8")
    steps = on_gpu("fp32", "int8", "atomics", "memory")
    assert [step["outcome"] for step in steps.values()] == [
        *("passed", "passed", "error", "not run", "not run")
    ]
    assert "CUDA_ERROR_LAUNCH_FAILED (719)" in steps["int8"]["why"]
    assert steps["memory"]["why"] == "the GPU was lost in: int8"
    assert judge.judge(run.survey().devices[0], list(steps.values()), P40).state == "failed"


def test_a_hang_is_cut_off(machine: Callable[..., None]) -> None:
    machine(fault="hang:atomics")
    started = time.monotonic()
    steps = on_gpu("fp64", "atomics", "memory", limit=2)
    assert time.monotonic() - started < 12
    assert [step["outcome"] for step in steps.values()] == ["passed", "passed", "hung", "not run"]
    assert steps["atomics"]["why"] == "no answer within 2 seconds"


def test_a_crash_is_an_error(machine: Callable[..., None]) -> None:
    machine(fault="crash:dot_int8")
    done = on_gpu("int8")["int8"]
    assert done["outcome"] == "error" and "ended with code -6" in done["why"]


def test_code_that_does_not_load(machine: Callable[..., None]) -> None:
    machine(fault="load")
    steps = on_gpu("fp32")
    assert steps["start"]["outcome"] == "error"
    assert "no kernel image for the stand-in" in steps["start"]["why"]
    assert steps["fp32"]["outcome"] == "not run"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("init:100", "CUDA_ERROR_NO_DEVICE (100)"),
        ("init:999", "CUDA_ERROR_UNKNOWN (999)"),
        ("hang:cuInit", "did not answer within 1 seconds"),
    ],
)
def test_a_driver_that_does_not_work(
    fault: str,
    said: str,
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "_SURVEY", 1.0 if "hang" in fault else 30.0)
    machine(fault=fault)
    assert main(["verify"]) == 3
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_machine_without_a_driver(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "python" / "src")}
    variables["LD_LIBRARY_PATH"] = str(tmp_path)
    (tmp_path / "libcuda.so.1").write_text("no library")  # whatever this machine has
    command = [sys.executable, "-m", "legacy_cuda", "verify", "--json"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (3, 3)
    assert "libcuda.so.1" in document["why"] and "resolve" in document["next"]
    assert "Traceback" not in done.stderr


# ---- the command ----


def valid(document: Any) -> Any:
    """A document, if it keeps to the published schema."""
    path = Path(catalog.__file__).parent / "schema" / "verify-report.schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)
    return document


def test_a_healthy_card(
    machine: Callable[..., None], probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(gpus=2)
    page = tmp_path / "page.html"
    command = ["verify", "--probe", str(probe), "--load", "0", "--json", "--report", str(page)]
    assert main([*command, "--memory", "8"]) == 0
    document = valid(json.loads(capsys.readouterr().out))
    assert [gpu["card"] for gpu in document["gpus"]] == ["p40", "p40"]
    gpu = document["gpus"][0]
    assert gpu["verdict"]["state"] == "healthy" and gpu["verdict"]["findings"] == []
    assert gpu["label"] == "verified on Tesla P40 (stand-in)" and gpu["replayed_at"] is None
    assert gpu["code"]["target"] == "sm_61"
    steps = {step["name"]: step for step in gpu["steps"]}
    assert set(steps) == {"start", *worker.STEPS}
    assert steps["memory"]["facts"]["bytes"] == 8 << 20
    rates = {rate["name"]: rate for rate in gpu["verdict"]["rates"]}
    assert rates["fp32"]["nominal"] == pytest.approx(P40.fp32_tflops, rel=0.03)
    assert 0.85 < rates["fp32"]["share"] < 1 and 0.7 < rates["memory, copy"]["share"] < 0.9
    assert rates["dp4a"]["unit"] == "TOP/s" and rates["link, to the GPU"]["nominal"] is None
    assert [item["name"] for item in document["peers"]] == ["0 to 1", "1 to 0"]
    assert all(item["outcome"] == "passed" for item in document["peers"])
    text = page.read_text()
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(drawing)
    assert text.count("<svg") == 2 and "verified on Tesla P40 (stand-in)" in text
    assert "<td>8 of " in text and "10 patterns" in text  # how much of the memory was tested
    assert re.search(r"<td>\d+\.\d\d TOP/s at \d+ MHz after", text)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["wrong:dot_int8", "crash:dot_int8", "load", "launch:fp32"])
def test_a_card_that_fails_keeps_to_the_schema(
    fault: str,
    machine: Callable[..., None],
    probe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(fault=fault)
    command = ["verify", "--probe", str(probe), "--load", "0", "--memory", "2", "--json"]
    code_ = main(command)
    (gpu,) = valid(json.loads(capsys.readouterr().out))["gpus"]
    assert code_ == (0 if gpu["verdict"]["state"] == "healthy" else 1)


def test_the_text(
    machine: Callable[..., None], probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(gb_s=150, load_clock=700, link=1.5, gpus=2)
    machine(fault="peer")
    command = ["verify", "--probe", str(probe), "--load", "0"]
    assert main([*command, "--device", "1", "--device", "0"]) == 1
    text = capsys.readouterr().out
    assert "GPU 1: Tesla P40 (stand-in), capability 6.1: degraded" in text
    for kind in ("throttled", "slow-memory", "link-degraded"):
        assert re.search(rf"^  {kind} +\S", text, re.M)
    assert "700 of 1531 MHz" in text and "1.5 GB/s" in text
    assert re.search(r"^  \|.*/.*o.*---.* fp32 11\.00$|^  \|.*---.* fp32 11\.00$", text, re.M)
    assert "GPU 1 to 0: failed" in text


@pytest.mark.parametrize(
    ("after", "kinds", "nvml_says"),
    [
        ([Device(0, pci_address="0000:01:00.0"), AT_REST], [], {"hot_s": 0.0, "temperature": 71}),
        ([replace(AT_REST, ecc_uncorrected_volatile=1)], ["ecc-errors"], {"ecc_uncorrected": 1}),
        ([replace(AT_REST, thermal_violation_s=11.5)], ["throttled"], {"hot_s": 7.5}),
        ([replace(AT_REST, thermal_violation_s=None)], [], {"hot_s": None}),
        ([replace(AT_REST, pcie_width=4)], ["link-degraded"], {"link_width": 4}),
        (Missing("DRIVER_NOT_LOADED", "nvmlInit"), [], None),
        ([Device(0, pci_address="0000:01:00.0")], [], None),
        ([replace(AT_REST, missing={"device": LOST})], [], None),
    ],
)
def test_what_nvml_adds(
    after: list[Device] | Missing,
    kinds: list[str],
    nvml_says: dict[str, float | None] | None,
    machine: Callable[..., None],
    probe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Memory errors, heat, lanes; where it says nothing, the verdict is the same without."""
    machine()
    said = (
        Snapshot(0.0, 0.1, error=after)
        if isinstance(after, Missing)
        else Snapshot(0.0, 0.1, devices=tuple(after))
    )
    snapshots = iter([Snapshot(0.0, 0.1, devices=(AT_REST,)), said])
    monkeypatch.setattr(nvml, "snapshot", lambda: next(snapshots))
    command = ["verify", "--probe", str(probe), "--load", "0", "--memory", "2"]
    assert main([*command, "--json"]) == (1 if kinds else 0)
    (gpu,) = valid(json.loads(capsys.readouterr().out))["gpus"]
    assert [finding["kind"] for finding in gpu["verdict"]["findings"]] == kinds
    assert gpu["verdict"]["state"] == ("degraded" if kinds else "healthy")
    assert bool(gpu["nvml_missing"]) == (nvml_says is None)
    if nvml_says is not None:
        assert gpu["nvml"].items() >= nvml_says.items()


def test_nvml_that_fails_is_a_line(
    machine: Callable[..., None],
    probe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine()
    monkeypatch.setattr(nvml, "snapshot", lambda: Snapshot(0.0, 0.1, error=LOST))
    command = ["verify", "--probe", str(probe), "--load", "0", "--memory", "2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "counts of memory errors: gpu is lost (nvmlDeviceGetHandleByIndex)" in text


@pytest.mark.parametrize("way", ["option", "around"])
def test_a_replay_is_called_one(
    way: str,
    machine: Callable[..., None],
    probe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Either way: no rate is compared with a card's, and ``verified`` is said nowhere."""
    machine(capability=90, name="NVIDIA H200", tflops=1, fault="none")
    if way == "around":
        monkeypatch.setenv("LEGACY_CUDA_REPLAY", "5.2")
    more = ["--replay", "5.2"] if way == "option" else []
    command = ["verify", "--probe", str(probe), "--load", "0", "--memory", "2", "--json"]
    assert main([*command, *more]) == 0
    said = capsys.readouterr().out
    (gpu,) = valid(json.loads(said))["gpus"]
    assert gpu["label"] == "replayed at 5.2 on NVIDIA H200"
    assert (gpu["code"]["target"], gpu["replayed_at"]) == ("compute_52", "5.2")
    assert gpu["verdict"]["state"] == "right" and gpu["nominal"] == {}
    steps = {step["name"]: step for step in gpu["steps"]}
    assert steps["fp16 rate"]["why"] == "no arithmetic of halves at 5.2"
    assert steps["dp4a rate"]["why"] == "no dp4a at 5.2"
    assert "verified" not in said


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--replay", "6.1"], "6.1 cannot be replayed"),
        (["--replay", "six"], "not a compute capability"),
        (["--replay", "4.2"], "no GPU has capability 4.2"),
        (["--device", "3"], "there is no GPU 3"),
        (["--load", "-1"], "--load wants"),
        (["--limit", "nan"], "--limit wants"),
        (["--nvrtc"], "exclude each other"),
    ],
)
def test_bad_input(
    more: list[str],
    what: str,
    machine: Callable[..., None],
    probe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine()
    assert main(["verify", "--probe", str(probe), *more]) == 2
    assert what in capsys.readouterr().err


# ---- verdicts ----

DEVICE = {
    "clock": 1531.0,
    "memory": 24 << 30,
    "multiprocessors": 30,
    "fp32_to_fp64": 32,
    "name": "Tesla P40",
}


def measured(
    copy: float = 290, tera: float = 11, clock: float = 1480, link: float = 12
) -> list[dict[str, Any]]:
    """Steps of a P40 with these rates."""
    rate = {"sustained_tera_per_s": tera, "sustained_clock_mhz": clock, "clock_mhz": clock}
    facts: dict[str, dict[str, Any]] = {
        "fp32": {},
        "memory": {"bytes": 20 << 30, "limit": 0, "patterns": 10},
        "bandwidth": {"copy_gb_s": copy, "triad_gb_s": copy},
        "fp32 rate": {"tera_per_s": tera, **rate},
        "fp64 rate": {"tera_per_s": tera / 32, **rate},
        "dp4a rate": {"tera_per_s": tera * 4, **rate},
        "link": {"to_gpu_gb_s": link, "from_gpu_gb_s": link},
    }
    return [{"name": name, "outcome": "passed", "facts": row} for name, row in facts.items()]


def at_rest(generation: int) -> Live:
    """A link of PCIe 3.0 x16 whose generation was read while nothing was sent."""
    return Live(
        link_generation=generation, link_generation_most=3, link_width=16, link_width_most=16
    )


@pytest.mark.parametrize(
    ("steps", "live", "kinds"),
    [
        (measured(), None, []),
        (measured(copy=200), None, ["slow-memory"]),
        (measured(clock=900, tera=6.7), None, ["throttled"]),
        (measured(tera=6), None, ["slow-arithmetic"] * 3),
        (measured(link=3), None, ["link-degraded"]),
        (measured(link=3), Live(link_generation=3, link_width=4), []),
        (
            measured(link=3),
            Live(link_generation=3, link_width=4, link_width_most=16),
            ["link-degraded"],
        ),
        (measured(link=6), Live(link_generation=3, link_width=16), ["link-degraded"]),
        (measured(), Live(hot_s=2.0, temperature=93), ["throttled"]),
        (measured(), Live(hot_s=0.1, temperature=80), []),
        (measured(), Live(ecc_corrected=judge.ECC_CORRECTED_MOST), []),
        (measured(), Live(ecc_corrected=judge.ECC_CORRECTED_MOST + 1), ["ecc-errors"]),
        (measured(), Live(ecc_uncorrected=1), ["ecc-errors"]),
        (measured(), at_rest(generation=1), []),
        (measured(link=6), at_rest(generation=1), ["link-degraded"]),
        (measured(), Live(ecc_corrected=0, ecc_uncorrected=0), []),
        (
            measured(copy=200, link=3),
            Live(ecc_uncorrected=1),
            ["slow-memory", "link-degraded", "ecc-errors"],
        ),
    ],
)
def test_verdicts(steps: list[dict[str, Any]], live: Live | None, kinds: list[str]) -> None:
    verdict = judge.judge(DEVICE, steps, P40, live=live)
    assert [finding.kind for finding in verdict.findings] == kinds
    assert verdict.state == ("degraded" if kinds else "healthy")


@pytest.mark.parametrize(
    ("tested", "limit", "state", "said"),
    [
        (20 << 30, 0, "healthy", ""),
        (19 << 30, 0, "incomplete", "memory: only 19456 of 24576 MiB could be tested"),
        (64 << 20, 0, "incomplete", "memory: only 64 of 24576 MiB could be tested"),
        (64 << 20, 64 << 20, "healthy", ""),
        (64 << 20, 1 << 30, "incomplete", "memory: only 64 of 1024 MiB could be tested"),
        (20 << 30, 1 << 40, "healthy", ""),
        (0, 64 << 20, "incomplete", "memory: other programs have all of it"),
    ],
)
def test_how_much_memory_has_to_be_tested(tested: int, limit: int, state: str, said: str) -> None:
    steps = measured()
    steps[1]["facts"].update(bytes=tested, limit=limit)
    verdict = judge.judge(DEVICE, steps, P40)
    assert (verdict.state, "".join(item.text for item in verdict.findings)) == (state, said)
    start = {"name": "start", "outcome": "passed", "facts": {}}
    label = judge.label(DEVICE, [start, *steps], None)
    assert label.endswith(", in part") == (state == "incomplete")


def test_a_card_with_less_memory_than_sold() -> None:
    verdict = judge.judge({**DEVICE, "memory": 12 << 30}, measured(), P40)
    assert [finding.kind for finding in verdict.findings] == ["less-memory"]
    with_ecc = {**DEVICE, "memory": (P40.usable_mib_ecc_on or 0) << 20}
    assert judge.judge(with_ecc, measured(), P40).state == "healthy"


def test_every_old_card_at_its_figures_is_healthy() -> None:
    """And at half of them is not."""
    for gpu in catalog.gpus():
        if not gpu.legacy or gpu.bandwidth_gb_s is None or gpu.fp32_tflops is None:
            continue
        # as many multiprocessors as give the catalog's figure at this clock, or nearly
        each = gpu.facts.fp32_per_multiprocessor
        assert each is not None
        multiprocessors = round(gpu.fp32_tflops * 1e6 / (2 * each * 1480))
        clock = gpu.fp32_tflops * 1e6 / (2 * each * multiprocessors)
        device = {
            **DEVICE,
            "memory": gpu.memory_mib << 20,
            "multiprocessors": multiprocessors,
            "clock": clock,
        }
        good = measured(gpu.bandwidth_gb_s, gpu.fp32_tflops, clock)[:4]
        good[1]["facts"]["bytes"] = device["memory"]
        assert judge.judge(device, good, gpu).state == "healthy", gpu.name
        slow = measured(gpu.bandwidth_gb_s / 2, gpu.fp32_tflops * 0.49, clock)[:4]
        slow[1]["facts"]["bytes"] = device["memory"]
        kinds = {finding.kind for finding in judge.judge(device, slow, gpu).findings}
        assert kinds == {"slow-memory", "slow-arithmetic"}, gpu.name


@pytest.mark.parametrize(
    ("name", "multiprocessors", "highest", "base"), [("k40", 15, 875, 745), ("k80", 13, 824, 562)]
)
def test_kepler_without_dual_issue_at_its_base_clock(
    name: str, multiprocessors: int, highest: float, base: float
) -> None:
    """128 of the 192 units at work, whatever clock the catalog's figure is for."""
    card = catalog.find_gpu(name)
    assert card.bandwidth_gb_s is not None
    device = {
        **DEVICE,
        "memory": card.memory_mib << 20,
        "multiprocessors": multiprocessors,
        "clock": highest,
    }
    nominal = judge.nominal_rates(device, card)["fp32"]
    assert nominal == pytest.approx(2 * 192 * multiprocessors * highest / 1e6)
    steps = measured(card.bandwidth_gb_s * 0.7, nominal * base / highest * 128 / 192 * 0.85, base)
    steps[1]["facts"]["bytes"] = device["memory"]
    assert judge.judge(device, steps[:4], card).state == "healthy"


def test_a_clock_that_the_power_limit_lowers() -> None:
    """Is what cards of 75 W do; of others, or with a reason that the driver tells, it is said."""
    p4 = catalog.find_gpu("p4")
    device = {**DEVICE, "memory": p4.memory_mib << 20, "multiprocessors": 20, "clock": 1113.0}
    steps = measured(copy=140, tera=2.8, clock=600)
    assert judge.judge(device, steps, p4).state == "healthy"
    (finding,) = judge.judge(device, steps, p4, live=Live(hot_s=7.25)).findings
    assert finding.kind == "throttled" and finding.text.endswith(": for heat, 7.2 s of the run")
    (finding,) = judge.judge(DEVICE, measured(clock=900, tera=6.7), P40).findings
    assert finding.text.endswith("or on a card of 50 to 75 W, this is expected")


def test_a_card_without_figures_is_only_right() -> None:
    verdict = judge.judge(DEVICE, measured(copy=1, tera=0.1), None)
    assert verdict.state == "right" and all(rate.share is None for rate in verdict.rates)


@given(st.floats(0.1, 1e5), st.floats(0.01, 1e3), st.floats(1, 5000), st.floats(0.01, 100))
def test_a_verdict_for_any_rates(copy: float, tera: float, clock: float, link: float) -> None:
    """There is always one, a replay is never compared, and a roofline can be drawn."""
    steps = measured(copy, tera, clock, link)
    verdict = judge.judge(DEVICE, steps, P40)
    assert (verdict.state == "healthy") == (not verdict.findings)
    assert judge.judge(DEVICE, steps, P40, replayed=True).state == "right"
    drawn = roofline.read(steps, judge.nominal_rates(DEVICE, P40))
    assert drawn is not None
    assert max(map(len, roofline.text(drawn, 60))) <= 60 + 3 + len(f" dp4a {4 * tera:.2f}")
    picture = ElementTree.fromstring(roofline.svg(drawn))
    assert len(picture.findall(".//polyline")) == 7  # three were measured, four are nominal
    for line in picture.iter("polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 50 <= x <= 700 and 10 <= y <= 340


def test_cards_that_share_an_id_are_told_apart() -> None:
    identify, shared = catalog.identify, catalog.find_gpu("m40").pci_ids[0]
    assert identify(shared, 24 << 30, "Tesla M40 24GB") == catalog.find_gpu("m40-24gb")
    assert identify(shared, 11448 << 20, "Tesla M40") == catalog.find_gpu("m40")
    assert identify(shared, None, "Tesla M40") is None  # 24 GB cards have that name too
    assert identify(P40.pci_ids[0], None) == P40
    assert identify("", 140 << 30, "NVIDIA H200") == catalog.find_gpu("h200")
    assert identify("10de:ffff", 1, "NVIDIA Something") is None


def test_what_is_said() -> None:
    good, bad = {"outcome": "passed", "facts": {}}, {"outcome": "failed", "facts": {}}
    start = {"name": "start", **good}
    assert judge.label({"name": "X", "memory": 1 << 30}, [start], None) == "not run"
    assert (
        judge.label({"name": "X", "memory": 1 << 30}, [start, {"name": "fp32", **good}], None)
        == "verified on X"
    )
    assert (
        judge.label({"name": "X", "memory": 1 << 30}, [start, {"name": "fp32", **bad}], None)
        == "failed on X"
    )
    at = Capability(6, 1)
    assert (
        judge.label({"name": "X", "memory": 1 << 30}, [start, {"name": "fp32", **good}], at)
        == "replayed at 6.1 on X"
    )
    assert (
        judge.label({"name": "X", "memory": 1 << 30}, [start, {"name": "fp32", **bad}], at)
        == "failed at 6.1 on X"
    )


# ---- device code ----


def test_the_probe_is_compiled_for_every_old_card() -> None:
    numbers = architectures()
    old = {gpu.capability.number for gpu in catalog.gpus() if gpu.legacy}
    assert old <= set(numbers)
    settings = tomllib.loads((PROBE / "pyproject.toml").read_text())["project"]
    assert settings["version"] == legacy_cuda.__version__
    assert (PROBE / "probe.cu").resolve() == code.SOURCE.resolve()


def test_python_and_the_kernels_mean_the_same() -> None:
    source = code.SOURCE.read_text()
    (names,) = re.findall(r"enum \{ (.*?) \};", source)
    assert [getattr(checks, name) for name in names.split(", ")] == list(range(5))
    assert int(re.findall(r"#define LISTED (\d+)", source)[0]) == checks.LISTED
    (words,) = re.findall(r"#define SHARED_WORDS (\d+)u", source)
    assert int(words) * 4 == checks.SHARED_BYTES
    steps = re.findall(r"steps\[\] = \{(.*?)\}", source)[0].split(", ")
    assert all(int(words) % int(step) == 0 for step in steps)


@pytest.mark.parametrize("capability", [str(item) for item in catalog.capabilities()])
def test_the_code_chosen_runs_there(capability: str, probe: Path) -> None:
    """Machine code wherever there is any; PTX only for drivers that know it."""
    _, files = code.read_probe(probe)
    where = Capability.parse(capability)
    chosen = code.choose(files, Wanted(where, (13, 0)))
    old = code.choose(files, Wanted(where, (11, 4)))
    if where < Capability(3, 5):
        assert chosen is None
        return
    assert chosen is not None and chosen.target.runs_on(where)
    machine_code = any(Target.parse(f"sm_{number}").runs_on(where) for number in architectures())
    assert (chosen.target.kind == "sass") == machine_code
    assert (old is not None) == machine_code  # 11.4 is older than PTX 7.8
    if where.number in architectures():
        assert chosen.target.capability == where


def test_a_replay_takes_the_ptx_of_that_capability(probe: Path) -> None:
    _, files = code.read_probe(probe)
    here = Capability(9, 0)
    for number in architectures():
        chosen = code.choose(files, Wanted(here, (13, 0), Capability.from_number(number)))
        assert chosen is not None and chosen.name == f"compute_{number}.ptx"
    assert code.choose(files, Wanted(here, (13, 0), Capability(5, 3))) is None
    assert code.choose(files, Wanted(here, (11, 4), Capability(6, 1))) is None


def test_a_wheel_is_read_like_a_folder(probe: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "legacy_cuda_probe-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in probe.iterdir():
            file.write(path, f"{code.PACKAGE}/{path.name}")
        file.writestr("other/sm_61.cubin", b"not ours")
        file.writestr(f"{code.PACKAGE}/../sm_99.cubin", b"not ours")
    assert code.read_probe(wheel)[1] == code.read_probe(probe)[1]
    found = Finder(wheel).find(Wanted(Capability(6, 1), (13, 0)))
    assert (found.image, found.origin) == (b"cubin", wheel.name)


def test_the_installed_probe_is_found(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    shutil.copytree(probe, site / code.PACKAGE)
    (site / f"{code.PACKAGE}-0.7.dist-info").mkdir()
    (site / f"{code.PACKAGE}-0.7.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {code.DISTRIBUTION}\nVersion: 0.7\n"
    )
    assert code.installed() == ("", {})
    monkeypatch.chdir(PROBE)  # the sources of the package are not the package
    monkeypatch.syspath_prepend(".")
    assert code.installed() == ("", {})
    monkeypatch.syspath_prepend(str(site))
    found = Finder().find(Wanted(Capability(7, 0), (13, 0)))
    assert (found.target, found.origin) == (Target.parse("sm_70"), "legacy-cuda-probe 0.7")


def test_a_page_that_cannot_be_written(
    machine: Callable[..., None], probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is said before anything runs."""
    machine(fault="hang:cuInit")
    command = ["verify", "--probe", str(probe), "--report", str(tmp_path)]
    assert main(command) == 2
    assert "cannot be written" in capsys.readouterr().err


@given(st.binary(max_size=300))
def test_any_file_for_a_wheel(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.whl"
        path.write_bytes(content)
        with pytest.raises(UserError):
            code.read_probe(path)


@given(st.binary(max_size=200))
def test_any_text_for_ptx(text: bytes) -> None:
    assert code.knows((13, 0), text) in (True, False)


def test_no_probe_and_no_nvrtc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "libraries", lambda: iter([tmp_path / "libnvrtc.so.12"]))
    monkeypatch.setattr(code, "installed", lambda: ("", {}))
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path))
    with pytest.raises(SurroundingsError) as caught:
        Finder(download=False).find(Wanted(Capability(6, 1), (13, 0)))
    assert "libnvrtc.so.12" in caught.value.why and "not to be downloaded" in caught.value.why


def test_where_nvrtc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, toolkit = tmp_path / "environments", tmp_path / "toolkit"
    monkeypatch.setenv("LEGACY_CUDA_HOME", str(home))
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    site = home / "p40" / "lib" / "python3.11" / "site-packages"
    folders = [
        toolkit / "lib64",
        site / "nvidia" / "cuda_nvrtc" / "lib",
        site / "nvidia" / "cu13" / "lib",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "libnvrtc.so.12.6").write_bytes(b"")
        (folder / "libnvrtc.so.12").symlink_to("libnvrtc.so.12.6")
        (folder / "libnvrtc.alt.so.12").write_bytes(b"")
        (folder / "libnvrtc-builtins.so.12.6").write_bytes(b"")
    found = [path for path in code.libraries() if path.is_relative_to(tmp_path)]
    assert found == [folder / "libnvrtc.so.12.6" for folder in folders]


@pytest.mark.parametrize("name", ["k40", "k80", "m40", "p100", "p40", "v100", "h200"])
def test_a_pinned_nvrtc_compiles_for_it(name: str) -> None:
    gpu = catalog.find_gpu(name)
    file = code.nvrtc_wheel(gpu.capability)
    assert file is not None and file.size < 32 << 20
