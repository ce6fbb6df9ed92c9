"""The doctor's rules about what is installed: environments, toolkits, services, containers.

Each rule has a tree in which it fires, with the exact text that it prints, and trees that are
nearly the same in which it does not.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import GOOD, Case, Machine, changed, healthy

from legacy_cuda import catalog, evidence
from legacy_cuda.catalog.doctor import find_rule
from legacy_cuda.cli import main
from legacy_cuda.doctor import software, system_log, units
from legacy_cuda.doctor.cards import cards
from legacy_cuda.doctor.diagnosis import diagnose
from legacy_cuda.doctor.facts import Fact, Facts, Service, VirtualFacts
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import build, code, engines, journals, python
from legacy_cuda.doctor.rules import finding

SITE = "/opt/ai/lib/python3.11/site-packages"
P40 = "Tesla P40 (6.1) at 0000:3b:00.0"
K80 = "Tesla K80 (3.7) at 0000:3b:00.0"


def library(*numbers: int) -> bytes:
    """A library with ten containers, each with SASS for these capabilities."""
    container = builders.container(*(builders.entry(number=number) for number in numbers))
    return builders.library(*[container] * 10)


def environment(
    machine: Machine,
    packages: dict[str, str],
    libraries: dict[str, bytes] | None = None,
    site: str = SITE,
    cuda: str | None = "12.8",
) -> None:
    """Distributions by name and version, and libraries below the site."""
    for name, version in packages.items():
        machine.write(f"{site}/{name.replace('-', '_')}-{version}.dist-info/METADATA", "")
    if "torch" in packages:
        said = f"cuda: Optional[str] = '{cuda}'\n" if cuda else "cuda = None\n"
        machine.write(f"{site}/torch/version.py", f"__version__ = 'x'\n{said}")
    for path, data in (libraries or {}).items():
        machine.write(f"{site}/{path}", "").write_bytes(data)


def with_packages(
    packages: dict[str, str], libraries: dict[str, bytes] | None = None, **more: Any
) -> Callable[[Machine], None]:
    return lambda machine: environment(machine, packages, libraries, **more)


TORCH = "torch/lib/libtorch_cuda.so"
VLLM = "vllm/_C.abi3.so"
BNB = "bitsandbytes/libbitsandbytes_cuda128.so"
LLAMA = "llama_cpp/lib/libggml-cuda.so"


def toolkit(
    machine: Machine,
    version: str,
    gcc: tuple[int, ...] = (12,),
    glibc: str = "2.36",
    cospi: str = "cospi(double x);",
) -> None:
    """An nvcc that would fail if it were run, a g++ of these versions, the C library's header."""
    root = f"/usr/local/cuda-{version}"
    machine.write(f"{root}/bin/nvcc", "#!/bin/false\n").chmod(0o755)
    machine.write(f"{root}/version.json", f'{{"cuda": {{"version": "{version}.1"}}}}')
    header = f"extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double    {cospi}\n"
    machine.write(f"{root}/include/crt/math_functions.h", header)
    machine.link("/usr/local/cuda", f"cuda-{version}")
    for number in gcc:
        machine.write(f"/usr/bin/x86_64-linux-gnu-g++-{number}", "")
        machine.link(f"/usr/bin/g++-{number}", f"x86_64-linux-gnu-g++-{number}")
    machine.link("/usr/bin/g++", f"g++-{max(gcc)}")
    major, _, minor = glibc.partition(".")
    text = f"#define\t__GLIBC__\t{major}\n#define\t__GLIBC_MINOR__\t{minor}\n"
    machine.write("/usr/include/features.h", text)


def with_toolkit(*versions: str, **options: Any) -> Callable[[Machine], None]:
    def make(machine: Machine) -> None:
        for version in versions:
            toolkit(machine, version, **options)

    return make


UNIT = "/etc/systemd/system/{name}.service"


def service(
    command: str, *lines: str, name: str = "ai", dropin: str | None = None
) -> Callable[[Machine], None]:
    def make(machine: Machine) -> None:
        text = "\n".join(["[Unit]", "Description=x", "[Service]", f"ExecStart={command}", *lines])
        machine.write(UNIT.format(name=name), f"{text}\n")
        if dropin is not None:
            machine.write(f"{UNIT.format(name=name)}.d/override.conf", dropin)

    return make


OLLAMA = "/usr/local/bin/ollama serve"
LLAMA_SERVER = "/opt/llama/llama-server -m /models/a.gguf"
VLLM_SERVE = "/opt/ai/bin/vllm serve x/y"


def folders(*names: str) -> Callable[[Machine], None]:
    def make(machine: Machine) -> None:
        for name in names:
            machine.write(f"/usr/local/lib/ollama/{name}/libggml-cuda.so", "")

    return make


def cdi(version: str, path: str = "/etc/cdi/nvidia.yaml") -> Callable[[Machine], None]:
    text = (
        "---\ncdiVersion: 0.5.0\ncontainerEdits:\n  mounts:\n"
        f"  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}\n"
        f"    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}\nkind: nvidia.com/gpu\n"
    )
    return lambda machine: machine.write(path, text)  # type: ignore[return-value]


def docker(*more: Callable[[Machine], object]) -> Callable[[Machine], None]:
    def make(machine: Machine) -> None:
        machine.write("/usr/bin/docker", "")
        for change in more:
            change(machine)

    return make


def group(machine: Machine, sound: str | None, kind: str = "0x040300") -> None:
    """The card for a virtual machine, a bridge, and the card's sound function."""
    address = machine.folder.rpartition("/")[2]
    folder = f"/sys/devices/pci0000:00/0000:00:3b.0/{address[:-1]}1"
    machine.bind(machine.folder, "vfio-pci")
    machine.write(f"{folder}/vendor", "0x10de\n")
    machine.write(f"{folder}/class", f"{kind}\n")
    if sound:
        machine.bind(folder, sound)
    bridge = "/sys/devices/pci0000:00/0000:00:3b.0"
    machine.write(f"{bridge}/vendor", "0x8086\n")
    machine.write(f"{bridge}/class", "0x060400\n")
    machine.bind(bridge, "pcieport")
    for path in (machine.folder, folder, bridge):
        name = path.rpartition("/")[2]
        target = f"../../../../{path.removeprefix('/sys/')}"
        machine.link(f"/sys/kernel/iommu_groups/7/devices/{name}", target)


def nixos(*settings: str) -> Callable[[Machine], None]:
    def make(machine: Machine) -> None:
        machine.write("/nix/store/abc-modules/x", "")
        for name in ("booted", "current"):
            machine.link(f"/run/{name}-system/kernel-modules", "/nix/store/abc-modules")
        machine.write("/etc/nixos/configuration.nix", "\n".join(settings))

    return make


def together(
    machine: Machine,
    *lines: str,
    kind: str = "DMA-FQ",
    command: str = f"{VLLM_SERVE} --tensor-parallel-size 2",
) -> None:
    """A service that divides a model, every card in an IOMMU group of its own."""
    service(command, *lines)(machine)
    for device in (machine.root / "sys/bus/pci/devices").iterdir():
        number = int(device.name[5:7], 16)
        group = f"/sys/kernel/iommu_groups/{number}"
        machine.link(f"{group}/devices/{device.name}", f"../../../../bus/pci/devices/{device.name}")
        machine.write(f"{group}/type", f"{kind}\n")


CASES: dict[str, tuple[Case, str, list[Case]]] = {
    "P2": (
        changed("p40", change=with_packages({"torch": "2.9.9+cu128"}, {TORCH: library(75, 80)})),
        f"torch 2.9.9+cu128, {P40}: does not run: libtorch_cuda.so has code for it in 0 of 10 "
        "containers",
        [
            changed("p40", change=with_packages({"torch": "2.9.9"}, {TORCH: library(60, 80)})),
            changed("h100", change=with_packages({"torch": "2.9.9"}, {TORCH: library(75)})),
            changed("p40", change=with_packages({"torch": "2.9.9+cpu"}, cuda=None)),
        ],
    ),
    "P1": (
        changed("p40", change=with_packages({"vllm": "0.99"}, {VLLM: library(70)})),
        f"vllm 0.99, {P40}: does not run: _C.abi3.so has code for it in 0 of 10 containers",
        [
            changed("v100", change=with_packages({"vllm": "0.99"}, {VLLM: library(70)})),
            changed("p40", change=with_packages({}, {VLLM: library(70)})),
        ],
    ),
    "P14": (
        changed(
            "p40",
            change=with_packages({"torch": "2.7.1", "bitsandbytes": "0.99"}, {BNB: library(75)}),
        ),
        f"bitsandbytes 0.99, {P40}: does not run: libbitsandbytes_cuda128.so has code for it in 0 "
        "of 10 containers",
        [
            changed(
                "p40",
                change=with_packages(
                    {"torch": "2.7.1", "bitsandbytes": "0.99"},
                    {BNB: library(60), BNB.replace("128", "130"): library(75)},
                ),
            ),
        ],
    ),
    "T7": (
        changed("p40", change=with_packages({"llama-cpp-python": "0.4"}, {LLAMA: library(75)})),
        f"llama-cpp-python 0.4, {P40}: does not run: libggml-cuda.so has code for it in 0 of 10 "
        "containers",
        [changed("p40", change=with_packages({"llama-cpp-python": "0.4"}, {LLAMA: library(61)}))],
    ),
    "T4": (
        changed("p40", change=with_packages({"torch": "2.7.1", "nvidia-cudnn-cu12": "9.11.0.98"})),
        f"nvidia-cudnn-cu12 9.11.0.98; 9.10.2 is the last for {P40}",
        [
            changed(
                "p40", change=with_packages({"torch": "2.7.1", "nvidia-cudnn-cu12": "9.10.2.21"})
            ),
            changed("rtx3090", change=with_packages({"torch": "2.9", "nvidia-cudnn-cu12": "9.20"})),
            # where 3.x ends was not read in a document, so nothing is said of it
            changed(
                "k80",
                version="470.256.02",
                change=with_packages({"torch": "2.0.1", "nvidia-cudnn-cu12": "8.9.1"}),
            ),
            changed("p40", change=with_packages({"vllm": "1", "nvidia-cudnn-cu12": "9.11.0"})),
        ],
    ),
    "P4": (
        changed(
            "p40",
            change=lambda m: m.write(
                "/home/u/.config/uv/uv.toml", '[pip]\ntorch-backend = "auto"\n'
            ),
        ),
        f'torch-backend = "auto", driver {GOOD}; {P40}',
        [
            # CUDA 12.2: the wheels that uv takes then have code for Pascal
            changed(
                "p40",
                version="535.288.01",
                change=lambda m: m.write("/home/u/.config/uv/uv.toml", 'torch-backend = "auto"\n'),
            ),
            changed(
                "p40",
                version=None,
                change=lambda m: m.write("/home/u/.config/uv/uv.toml", 'torch-backend = "auto"\n'),
            ),
            changed(
                "p40",
                change=lambda m: m.write("/home/u/.config/uv/uv.toml", 'torch-backend = "cu126"\n'),
            ),
            changed(
                "rtx3090",
                change=lambda m: m.write("/home/u/.config/uv/uv.toml", 'torch-backend = "auto"\n'),
            ),
        ],
    ),
    "P5": (
        changed("p40", change=with_packages({"torch": "2.7.1+cu126"})),
        f"torch 2.7.1+cu126 as published; {P40}",
        [
            changed("p40", change=with_packages({"torch": "2.7.1+legacy.1"})),
            changed("v100", change=with_packages({"torch": "2.7.1"})),
            changed("p40", change=with_packages({"torch": "1.13.1"})),
        ],
    ),
    "E3": (
        changed("p40", change=lambda m: m.write(f"{SITE}/vllm/__init__.py", "")),
        "a folder vllm, and no vllm-*.dist-info",
        [
            changed(
                "p40",
                change=lambda m: (
                    environment(m, {"vllm": "0.14.0+sm61"}),
                    m.write(f"{SITE}/vllm/__init__.py", ""),
                ),
            ),
            changed("p40", change=lambda m: m.write(f"{SITE}/vllm/notes.txt", "")),
        ],
    ),
    "E14": (
        changed("p40", change=with_packages({"exllamav2": "0.3.2"})),
        f"exllamav2 0.3.2; {P40} does fp16 at a 64th of fp32's rate",
        [
            changed("p100", change=with_packages({"exllamav2": "0.3.2"})),
            changed("p40", change=with_packages({"torch": "2.7.1"})),
        ],
    ),
    "T1": (
        changed("p40", change=with_toolkit("13.0")),
        f"CUDA 13.0 in /usr/local/cuda-13.0; {P40}",
        [
            changed("p40", change=with_toolkit("12.8")),
            changed("p40", change=with_toolkit("13.0", "12.8")),
            changed("rtx3090", change=with_toolkit("13.0")),
            # one that is not in the catalog may compile for anything
            changed("p40", change=with_toolkit("13.0", "99.9")),
        ],
    ),
    "T2": (
        changed("p40", change=with_toolkit("11.8", gcc=(13, 14))),
        "g++ 14; CUDA 11.8 in /usr/local/cuda-11.8 takes gcc 11 or older",
        [
            changed("p40", change=with_toolkit("11.8", gcc=(11, 14))),
            changed("p40", change=with_toolkit("11.8", "12.8", gcc=(14,))),
            changed("rtx3090", change=with_toolkit("11.8", gcc=(14,))),
        ],
    ),
    "T3": (
        changed("p40", change=with_toolkit("12.8", glibc="2.41")),
        "extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double cospi(double x); glibc 2.41",
        [
            changed("p40", change=with_toolkit("12.8", glibc="2.40")),
            changed(
                "p40",
                change=with_toolkit("12.8", glibc="2.41", cospi="cospi(double x) noexcept (true);"),
            ),
        ],
    ),
    "E1": (
        changed("v100", change=service(f"{VLLM_SERVE} --dtype bfloat16")),
        "ai.service: --dtype bfloat16; Tesla V100 PCIe 16GB (7.0) at 0000:3b:00.0",
        [
            changed("v100", change=service(f"{VLLM_SERVE} --dtype=half")),
            changed("v100", change=service(f"{VLLM_SERVE} --served-model-name bfloat16")),
            changed("v100", "rtx3090", change=service(f"{VLLM_SERVE} --dtype bfloat16")),
        ],
    ),
    "E5": (
        changed("p40", change=service(f"{VLLM_SERVE} --quantization awq")),
        f"ai.service: --quantization awq; {P40}",
        [
            changed("p40", change=service(f"{VLLM_SERVE} --quantization gptq")),
            changed("p40", change=service(f"{VLLM_SERVE} --served-model-name awq")),
            changed("10de:1eb8", change=service(f"{VLLM_SERVE} -q awq")),  # a T4: 7.5
        ],
    ),
    "E6": (
        changed("p40", "p40", change=lambda m: together(m)),
        "ai.service: tensor parallelism over 2 cards; IOMMU groups 59, 60: DMA-FQ",
        [
            changed("p40", "p40", change=lambda m: together(m, kind="identity")),
            changed("p40", "p40", change=lambda m: together(m, command=VLLM_SERVE)),
            changed("p40", "p40", change=lambda m: together(m, "Environment=NCCL_P2P_DISABLE=1")),
            changed("p40", change=lambda m: together(m)),
            changed("v100-sxm2", "v100-sxm2", change=lambda m: together(m)),
            changed(
                "p40",
                "p40",
                change=lambda m: (
                    together(m),
                    m.write("/proc/cpuinfo", "flags : avx avx2 hypervisor\n"),
                ),
            ),
        ],
    ),
    "E7": (
        changed("p40", change=folders("cuda_v13")),
        f"cuda_v13 only; {P40}",
        [
            changed("p40", change=folders("cuda_v12", "cuda_v13")),
            changed("rtx3090", change=folders("cuda_v13")),
            changed("p40", change=folders("vulkan")),
        ],
    ),
    "E11": (
        changed(
            "p40",
            change=service(
                OLLAMA,
                'Environment="OLLAMA_KV_CACHE_TYPE=q8_0" OLLAMA_FLASH_ATTENTION=1',
                dropin="[Service]\nEnvironment=OLLAMA_FLASH_ATTENTION=0\n",
            ),
        ),
        "ai.service: OLLAMA_KV_CACHE_TYPE=q8_0, OLLAMA_FLASH_ATTENTION=0",
        [
            changed("p40", change=service(OLLAMA, "Environment=OLLAMA_KV_CACHE_TYPE=q8_0")),
            changed("p40", change=service(OLLAMA, "Environment=OLLAMA_FLASH_ATTENTION=0")),
            changed(
                "p40",
                change=service(
                    OLLAMA,
                    "Environment=OLLAMA_KV_CACHE_TYPE=q8_0 OLLAMA_FLASH_ATTENTION=0",
                    dropin="[Service]\nEnvironment=\n",
                ),
            ),
        ],
    ),
    "E12": (
        changed("p40", change=service(f"{LLAMA_SERVER} -fa on -ctk q8_0 -ctv q4_0")),
        "ai.service: flash attention, KV cache q8_0/q4_0",
        [
            changed("p40", change=service(f"{LLAMA_SERVER} -fa on -ctk q8_0 -ctv q8_0")),
            changed("p40", change=service(f"{LLAMA_SERVER} -ctk q8_0")),  # without: on the GPU
            changed("p40", change=service(f"{LLAMA_SERVER} -fa off -ctk q5_1 -ctv q5_1")),
            changed(change=service(f"{LLAMA_SERVER} -fa on -ctk q5_1 -ctv q5_1")),
        ],
    ),
    "E16": (
        changed("p40", change=docker()),
        "docker; no CDI list, no container toolkit, no runtime nvidia",
        [
            changed("p40", change=docker(cdi(GOOD))),
            changed(
                "p40",
                change=docker(
                    lambda m: m.write(
                        "/etc/docker/daemon.json",
                        '{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}',
                    )
                ),
            ),
            changed("p40", change=docker(lambda m: m.write("/.dockerenv", ""))),
            healthy("p40"),
        ],
    ),
    "E17": (
        changed("p40", change=service(OLLAMA, 'Environment="CUDA_VISIBLE_DEVICES=-1"')),
        'ai.service: CUDA_VISIBLE_DEVICES="-1"',
        [
            changed("p40", change=service(OLLAMA, 'Environment="CUDA_VISIBLE_DEVICES=0"')),
            changed("p40", change=service("/bin/backup", 'Environment="CUDA_VISIBLE_DEVICES=-1"')),
        ],
    ),
    "E18": (
        changed("p40", change=service(OLLAMA, "PrivateDevices=yes")),
        "ai.service: PrivateDevices=yes",
        [
            changed("p40", change=service(OLLAMA, "PrivateDevices=no")),
            changed(
                "p40",
                change=service(
                    OLLAMA, "PrivateDevices=yes", dropin="[Service]\nPrivateDevices=false\n"
                ),
            ),
            changed("p40", change=service("/bin/backup", "PrivateDevices=yes")),
        ],
    ),
    "E19": (
        changed("p40", change=cdi("570.211.01")),
        f"libcuda 570.211.01; the driver is {GOOD}",
        [
            changed("p40", change=cdi(GOOD)),
            changed(
                "p40",
                change=lambda m: (
                    cdi("570.211.01")(m),
                    cdi(GOOD, "/var/run/cdi/nvidia.yaml")(m),
                ),
            ),
            changed("p40", version=None, change=cdi("570.211.01")),
        ],
    ),
    "H9": (
        changed("p40", change=lambda m: group(m, "snd_hda_intel")),
        "IOMMU group 7: 0000:3b:00.1 is bound to snd_hda_intel",
        [
            changed("p40", change=lambda m: group(m, "vfio-pci")),
            changed("p40", change=lambda m: group(m, None)),
            changed(
                "p40",
                change=lambda m: (group(m, "snd_hda_intel"), m.bind(m.folder, "nvidia")),
            ),
        ],
    ),
    "T6": (
        changed(
            "p40", system="nixos", change=nixos("{", "  nixpkgs.config.cudaSupport = true;", "}")
        ),
        f"nixpkgs.config.cudaSupport = true;; {P40}",
        [
            changed(
                "p40",
                system="nixos",
                change=nixos(
                    "nixpkgs.config = { cudaSupport = true;", 'cudaCapabilities = ["6.1"];'
                ),
            ),
            changed("p40", system="nixos", change=nixos("# cudaSupport = true;")),
            changed("rtx3090", system="nixos", change=nixos("cudaSupport = true;")),
        ],
    ),
}


def test_every_rule_has_machines() -> None:
    assert set(CASES) == set(software.FACT_RULES)


@pytest.mark.parametrize("rule_id", CASES)
def test_where_a_rule_fires(rule_id: str, tmp_path: Path) -> None:
    case, text, _ = CASES[rule_id]
    machine = case(tmp_path)
    facts = machine.facts()
    assert facts.failures == ()
    found = {item.rule.id: item for item in diagnose(facts).findings}
    assert [item.text for item in found[rule_id].evidence] == [text]
    rule = find_rule(rule_id)
    assert found[rule_id].severity == (rule.severity_machine or rule.severity)
    for item in found[rule_id].evidence:
        assert os.path.lexists(tmp_path / item.source.lstrip("/")), item.source
    for line in (found[rule_id].cause, *found[rule_id].fix):
        assert "?" not in line


@pytest.mark.parametrize(
    ("rule_id", "number"), [(name, n) for name, case in CASES.items() for n in range(len(case[2]))]
)
def test_where_it_nearly_does(rule_id: str, number: int, tmp_path: Path) -> None:
    machine = CASES[rule_id][2][number](tmp_path)
    facts = machine.facts()
    assert rule_id not in {item.rule.id for item in diagnose(facts).findings}
    assert facts.failures == ()


# ------------------------------------------------------------------------------- fixes


def fix(machine: Machine, rule_id: str) -> str:
    found = {item.rule.id: item for item in diagnose(machine.facts()).findings}
    return "\n".join(found[rule_id].fix)


def test_the_compiler_is_that_of_the_toolkit_that_is_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    toolkit(machine, "11.8", gcc=(14,))
    assert "g++-11 " in fix(machine, "T2") and "g++-14" not in fix(machine, "T2")


@pytest.mark.parametrize(
    ("gpus", "version", "says"),
    [
        (("p40", "v100"), GOOD, 'cudaCapabilities = [ "6.1" "7.0" ];'),
        (("p40", "rtx3090"), GOOD, 'cudaCapabilities = [ "6.1" "8.6" ];'),
        (("k80",), "470.256.02", "legacy-cuda resolve k80"),
    ],
)
def test_nixpkgs_is_told_of_every_card(
    gpus: tuple[str, ...], version: str, says: str, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, *gpus, version=version, system="nixos")
    nixos("nixpkgs.config.cudaSupport = true;")(machine)
    assert says in fix(machine, "T6")
    assert ("cudaCapabilities" in fix(machine, "T6")) == ("k80" not in gpus)


def test_every_card_is_compiled_for(tmp_path: Path) -> None:
    facts = Machine(tmp_path, "p40", "v100", "p40", system="nixos").facts()
    assert "$ legacy-cuda up p40 v100" in finding(facts, find_rule("P2"), ()).fix
    assert "$ legacy-cuda up p40" in finding(replace(facts, pci=None), find_rule("P2"), ()).fix
    assert '-DCMAKE_CUDA_ARCHITECTURES="61;70"' in "".join(finding(facts, find_rule("T7"), ()).fix)
    assert 'cudaArches = [ "61" "70" ]' in "".join(finding(facts, find_rule("E7"), ()).fix)


def test_ollama_has_nothing_for_kepler(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "k80", version="470.256.02")
    folders("cuda_v12", "cuda_v13")(machine)
    assert "resolve k80 --engine llama-cpp" in fix(machine, "E7")
    folders("cuda_v11")(machine)
    assert "E7" not in machine.found()


def test_rebuilt_and_not_restarted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", system="nixos")
    nixos("{ }")(machine)
    machine.driver("570.211.01")
    machine.write("/nix/store/def-modules/x", "")
    machine.link("/run/current-system/kernel-modules", "/nix/store/def-modules")
    (cause,) = [item for item in diagnose(machine.facts()).causes if item.finding.rule.id == "D5"]
    assert any("def-modules comes with the next start" in e.text for e in cause.finding.evidence)


# ------------------------------------------------------------------------------- probes


def test_evidence_saves_reading_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = list(evidence.of_release("torch", "2.8.0+cu128"))
    size = next(item.size for item in known.libraries if item.path == TORCH)
    machine = Machine(tmp_path, "p40")
    environment(machine, {"torch": "2.8.0+cu128"}, {TORCH: b""})
    with (tmp_path / f"{SITE}/{TORCH}".lstrip("/")).open("wb") as file:
        file.truncate(size)
    monkeypatch.setattr("legacy_cuda.devicecode.scan_file", None)
    (found,) = code.look(Place(tmp_path))
    assert known.file in found.source and found.version == "2.8.0+cu128"
    assert "P2" in machine.found()


def test_another_size_is_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    environment(machine, {"torch": "2.8.0"}, {TORCH: library(61)})
    (found,) = code.look(Place(tmp_path))
    assert found.source == f"{SITE}/{TORCH}"
    assert "P2" not in machine.found()
    praise = f"torch 2.8.0 in {SITE}: has code for the cards"
    assert praise in diagnose(machine.facts()).fine
    environment(machine, {"torch": "2.8.0"}, {TORCH: library(75)})
    assert praise not in diagnose(machine.facts()).fine
    assert all("torch" not in text for text in diagnose(facts_of(tmp_path / "x", "h100")).fine)


def facts_of(root: Path, gpu: str) -> Facts:
    """A newer card, of which nothing is said."""
    machine = Machine(root, gpu)
    environment(machine, {"torch": "2.8.0"}, {TORCH: library(75)})
    return machine.facts()


def test_a_virtual_machine_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path, "p40")
    assert machine.facts().virtual == VirtualFacts(None, ())
    machine.write("/proc/cpuinfo", "flags : sse2 avx avx2 hypervisor\n")
    machine.write("/sys/class/dmi/id/product_name", "KVM\n")
    facts = machine.facts()
    assert facts.virtual is not None and facts.virtual.guest == Fact("KVM", "/proc/cpuinfo")
    assert main(["doctor", "--root", str(tmp_path)]) == 0
    assert "in a virtual machine" in capsys.readouterr().out


def test_what_takes_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, "p40")
    environment(machine, {"torch": "2.9.9"}, {TORCH: library(75)})
    monkeypatch.setattr(code, "SECONDS", -1.0)
    facts = machine.facts()
    assert facts.code == () and "P2" not in {item.rule.id for item in diagnose(facts).findings}
    assert [item.what for item in facts.failures if "legacy-cuda audit" in item.what]


def test_a_broken_library_is_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    environment(machine, {"torch": "2.9.9"}, {TORCH: library(75)[:300]})
    facts = machine.facts()
    assert any(TORCH in item.what for item in facts.failures)
    assert "P2" not in {item.rule.id for item in diagnose(facts).findings}


def test_environments_are_found_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    for site in (
        "/usr/lib/python3/dist-packages",
        "/home/u/.venv/lib/python3.12/site-packages",
        "/home/u/miniconda3/envs/x/lib/python3.10/site-packages",
        "/home/u/.local/share/legacy-cuda/environments/p40/lib/python3.12/site-packages",
    ):
        environment(machine, {"torch": "2.7.1", "Triton": "3.3.1"}, site=site)
    environment(machine, {"requests": "2.0", "nvidia-cublas-cu12": "12.6.4.1"}, site=SITE)
    service("/srv/ai/bin/vllm serve x")(machine)
    environment(machine, {"vllm": "0.14.0"}, site="/srv/ai/lib/python3.12/site-packages")
    machine.link("/opt/same", "/home/u/.venv")
    found = python.look(Place(tmp_path), {"VIRTUAL_ENV": "/home/u/.venv"}).environments
    assert [item.site.partition("/lib/")[0] for item in found] == [
        "/home/u/.venv",
        "/srv/ai",
        "/home/u/.local/share/legacy-cuda/environments/p40",
        "/home/u/miniconda3/envs/x",
        "/usr",
    ]
    assert found[0].version("triton") == "3.3.1" and found[0].torch_cuda == (12, 8)


def test_nothing_found_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    machine = Machine(tmp_path, "p40")
    toolkit(machine, "12.8")
    environment(machine, {"torch": "2.9.9"}, {TORCH: library(75)})
    machine.write(f"{SITE}/torch/__init__.py", "raise SystemExit('imported')\n")
    service("/opt/ai/bin/vllm serve x")(machine)
    assert machine.facts().failures == ()


@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"version.txt": "CUDA Version 10.2.89\n"}, (10, 2)),
        ({"include/cuda.h": "#define CUDA_VERSION 12040\n"}, (12, 4)),
        ({"version.json": "[1]", "version.txt": "CUDA Version 11.0.1"}, (11, 0)),
        ({"version.json": "{broken"}, None),
        ({}, None),
    ],
)
def test_versions_of_toolkits(
    files: dict[str, str], version: tuple[int, int] | None, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, "p40")
    machine.write("/opt/cuda/bin/nvcc", "")
    for name, text in files.items():
        machine.write(f"/opt/cuda/{name}", text)
    found = build.look(Place(tmp_path)).toolkits
    assert [item.version for item in found] == ([version] if version else [])


def test_a_service_of_nixos_and_its_secrets(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40", system="nixos")
    unit = "/nix/store/abc-unit-ollama.service/ollama.service"
    machine.write(
        unit,
        '[Service]\n# a comment \\\nEnvironment="OLLAMA_MODELS=/var/lib/ollama/models"\n'
        "Environment=OLLAMA_HOST=0.0.0.0 VLLM_API_KEY=abc HF_TOKEN=def\n"
        "EnvironmentFile=-/etc/ollama.env\nUser=ollama\n"
        "ExecStart=\nExecStart=-/nix/store/def-ollama/bin/ollama serve \\\n  --api-key ghi "
        "--token=jkl\n",
    )
    machine.link("/etc/systemd/system/ollama.service", unit)
    machine.write("/etc/ollama.env", "# x\nOLLAMA_FLASH_ATTENTION='1'\nSECRET_OF_OLLAMA=mno\n")
    machine.link("/etc/systemd/system/vllm.service", "/dev/null")
    engines = machine.facts().engines
    assert engines is not None
    (service,) = engines.services
    assert service.engine == "ollama"
    assert service.variable("OLLAMA_FLASH_ATTENTION") == "1"
    assert dict(service.variables)["OLLAMA_FLASH_ATTENTION"].source == "/etc/ollama.env"
    assert service.variable("OLLAMA_HOST") == "0.0.0.0"
    said = repr(service)
    assert not any(secret in said for secret in ("abc-", "'abc", "def'", "ghi", "jkl", "mno"))
    assert service.command.value[0] == "/nix/store/def-ollama/bin/ollama"


@pytest.mark.parametrize(
    ("command", "engine"),
    [
        ("/usr/local/bin/ollama serve", "ollama"),
        ("/nix/store/x-ollama/bin/.ollama-wrapped serve", "ollama"),
        ("/usr/bin/env A=b /opt/ai/bin/vllm serve x", "vllm"),
        ("/opt/ai/bin/python3.11 -m vllm.entrypoints.openai.api_server", "vllm"),
        ("/opt/ai/bin/python -m sglang.launch_server", "sglang"),
        ("/usr/bin/python3 /opt/ai/bin/vllm serve x", "vllm"),
        ("/usr/bin/numactl --cpunodebind=0 /opt/llama-server -m x", "llama-cpp"),
        ("/usr/bin/python3 -m llama_cpp.server --model x", "llama-cpp"),
        ("/usr/bin/systemctl restart ollama", None),
        ("/usr/bin/docker run --name vllm --gpus all vllm/vllm-openai", None),
        ("/usr/bin/rsync /srv/ollama /backup/ollama", None),
        ("", None),
    ],
)
def test_which_engine_a_command_starts(command: str, engine: str | None) -> None:
    assert engines.engine_of(command.split()) == engine


def test_a_compiler_for_other_machines_does_not_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "p40")
    toolkit(machine, "11.8", gcc=(14,))
    machine.write("/usr/bin/aarch64-linux-gnu-g++-11", "")
    assert "T2" in machine.found()


# ------------------------------------------------------------------------------ journals

SKIPPED = (
    'ollama[9]: level=INFO msg="skipping CUDA device" '
    'reason="compute capability not in compiled architectures"'
)


def asked(monkeypatch: pytest.MonkeyPatch, text: str | None) -> list[str]:
    """Let the running system have one service, whose journal says this; which are asked for."""
    units_asked: list[str] = []

    def of_unit(unit: str) -> system_log.Said | None:
        units_asked.append(unit)
        return system_log.Said(text, f"journalctl --unit {unit}") if text is not None else None

    service = Service("ai.service", "ollama", Fact(("ollama",), "/x"), (), None)
    monkeypatch.setattr(engines, "services", lambda place: (service,))
    monkeypatch.setattr(system_log, "of_unit", of_unit)
    return units_asked


def test_what_a_service_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = "host systemd[1]: Started ai.service - AI.\n"
    units_asked = asked(monkeypatch, f"{started}ollama[9]: listening\n{SKIPPED}\n")
    (found,) = journals.look(Place())
    assert found.lines == (SKIPPED,) and units_asked == ["ai.service"]
    facts = replace(Machine(tmp_path, "p40").facts(), journals=(found,))
    (cause,) = diagnose(facts).causes
    assert cause.finding.rule.id == "E7" and "P40" not in cause.finding.evidence[0].text
    assert cause.finding.evidence[0].source == "journalctl --unit ai.service"
    assert journals.look(Place(tmp_path)) == ()  # a recorded tree asks no program


@pytest.mark.parametrize(
    "text",
    [
        None,
        "ollama[9]: listening\n",
        # before it was started anew
        f"{SKIPPED}\nhost systemd[1]: Started ai.service.\nollama[9]: listening\n",
        f"host systemd[1]: Starting ai...\n{SKIPPED}\nhost systemd[1]: Starting ai...\n",
    ],
)
def test_a_service_that_says_nothing_now(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, text)
    assert journals.look(Place()) == ()


def test_a_journal_that_hangs_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        assert options["timeout"] <= system_log.SECONDS and options["env"]["LC_ALL"] == "C"
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert system_log.of_unit("ai.service") is None
    assert commands[0][0] == "/usr/bin/journalctl" and commands[0][-2:] == ["--unit", "ai.service"]


# ------------------------------------------------------------------------------- units


def test_settings_of_units() -> None:
    found = units.settings(
        [
            "[Service]\nEnvironment=A=1 'B=2 3'\nExecStart=/a b\n; no\nbroken line\n",
            '[Service]\nEnvironment=C="4" \\\n# between\n D=5\nExecStart=\nExecStart=@!/c d\n',
        ]
    )
    assert units.variables(found) == {"A": "1", "B": "2 3", "C": "4", "D": "5"}
    assert units.command(found) == ["/c", "d"]
    assert units.command({}) == [] and units.last(found, "User") is None
    assert units.words('a "b') == ["a", '"b']
    assert units.of_file('A="b c"\n#D=e\nF\n') == {"A": "b c"}


TEXTS = st.text(alphabet=st.sampled_from("[]=\\\"' \n#;AZaz/-:\0é$%"), max_size=200)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_any_text_is_a_unit(texts: list[str]) -> None:
    found = units.settings(texts)
    assert all("\n" not in key for _, key in found)
    units.command(found)
    units.variables(found)


GARBAGE = (
    *(f"/etc/systemd/system/{name}" for name in ("ai.service", "ai.service.d/a.conf")),
    *("/etc/docker/daemon.json", "/etc/cdi/nvidia.yaml", "/etc/nixos/configuration.nix"),
    *("/usr/local/cuda-12.8/version.json", "/usr/local/cuda-12.8/include/crt/math_functions.h"),
    *("/usr/include/features.h", f"{SITE}/torch/version.py", f"{SITE}/{TORCH}"),
    "/sys/kernel/iommu_groups/7/devices/0000:3b:00.1/class",
)
PIECES = st.sampled_from(
    [
        *(b"[Service]\n", b"ExecStart=", b"/bin/ollama serve", b"Environment=", b'"', b"\\\n"),
        *(b'{"runtimes": ', b"{" * 2000, b"[" * 2000, b"]", b"null", b'{"cuda": {"version": 1}}'),
        *(b"kind: nvidia.com/gpu", b"libcuda.so.580.1", b"\xff", b"\0", b"cuda = '12.6'\n"),
        *(b"#define __GLIBC__ 99999\n", b"double cospi(double x)", b"\x7fELF\x02\x01\x01"),
        *(b"cudaSupport = true;", b"0x03", b"9" * 50, "²".encode()),
    ]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(GARBAGE), st.lists(PIECES, max_size=8).map(b"".join)))
def test_garbage_in_what_is_installed(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    machine = Machine(tmp_path_factory.mktemp("m"), "p40")
    toolkit(machine, "12.8")
    environment(machine, {"torch": "2.9.9"}, {TORCH: library(61)})
    group(machine, "vfio-pci")
    nixos("{ }")(machine)
    for path, content in contents.items():
        machine.write(path, "").write_bytes(content)
    facts = machine.facts()
    assert facts.pci is not None and cards(facts) == []  # it is kept for a virtual machine
    assert diagnose(facts).verdict in ("errors", "warnings", "fine")
    allowed = (TORCH, "/etc/docker/daemon.json")
    assert all(any(path in item.what for path in allowed) for item in facts.failures)


def test_every_catalog_card_has_a_fix_for_every_rule(tmp_path: Path) -> None:
    facts = Machine(tmp_path, "p40").facts()
    for rule_id in software.FACT_RULES:
        for gpu in catalog.gpus():
            found = finding(replace(facts, named=(gpu,)), find_rule(rule_id), ())
            assert all("{" not in line.replace("{ }", "") for line in found.fix), found.fix
