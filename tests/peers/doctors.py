"""Which of doctor, env-doctor, collect_env and nvidia-smi names what is wrong with ten machines.

    python -m tests.peers.doctors --env-doctor PYTHON --torch PYTHON [--nvidia-smi FILE] [--show]

PYTHON is that of an environment with env-doctor 0.3.5, and of one with PyTorch and pip; FILE is
Debian's nvidia-smi, unpacked. Prints a table in Markdown; ``--show`` prints what the tools wrote.

Each machine is a tree (for the doctor, which reads files) and a stand-in for NVML (for all). The
others look at no files of a driver, so that the tree is no loss to them. They get nvidia-smi by
``nvidia_smi.py``, and env-doctor a torch that says of itself what the release in question says.
A tool names the cause if it prints one of the words that stand with the machine here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[0] / "unit"))

from machines import Machine  # noqa: E402  # the path has to be set first

from legacy_cuda import nvml  # noqa: E402
from legacy_cuda.cli import doctor  # noqa: E402
from legacy_cuda.doctor.diagnosis import diagnose  # noqa: E402
from legacy_cuda.doctor.facts import Fact  # noqa: E402
from tests.nvml.standin import Standin  # noqa: E402

NOT_RUN = "not run"


@dataclass(frozen=True)
class Broken:
    """A machine: its cards, its driver, what NVML says, what is wrong in its tree, and the words of
    which one names the cause. ``torch``: what a PyTorch there says of itself. ``smi``: whether
    nvidia-smi names it where it cannot be run here, after its manual."""

    what: str
    rule: str | None
    words: tuple[str, ...]
    gpus: tuple[str, ...] = ("p40",)
    version: str | None = "580.173.02"
    opened: bool = False
    nvml: Any = None  # what differs from a healthy machine in the stand-in
    tree: Callable[[Machine], object] = lambda _: None
    torch: tuple[str, str, tuple[str, ...]] | None = None
    smi: bool = False


def torch_of(machine: Machine, version: str, *numbers: int) -> None:
    """A PyTorch in the tree, with code for these capabilities."""
    import builders

    site = "/opt/ai/lib/python3.11/site-packages"
    container = builders.container(*(builders.entry(number=number) for number in numbers))
    machine.write(f"{site}/torch-{version}.dist-info/METADATA", "")
    machine.write(f"{site}/torch/version.py", "cuda: Optional[str] = '12.8'\n")
    machine.write(f"{site}/torch/lib/libtorch_cuda.so", "").write_bytes(
        builders.library(*[container] * 10)
    )


def unmapped(machine: Machine) -> None:
    machine.write(
        f"{machine.folder}/resource",
        "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n"
        + "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 12,
    )
    line = "[    5.1] NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\n"
    machine.write("/var/log/dmesg", line + "[    5.2] NVRM: BAR1 is 0M @ 0x0 (PCI:0000:01:00.0)\n")


NONE: dict[str, Any] = {"card": []}
PASCAL = ("12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"))
VOLTA = ("12.8", ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
MACHINES = (
    Broken(
        "driver 590, which ignores a P40",
        "D1",
        ("no longer serves", "dropped", "legacy driver", "580.xx"),
        version="590.48.01",
        nvml=NONE,
    ),
    Broken(
        "the open kernel module and a P40",
        "D2",
        ("open kernel module", "open module", "proprietary"),
        opened=True,
        nvml=NONE,
    ),
    Broken(
        "nouveau holds a V100",
        "D6",
        ("nouveau",),
        gpus=("v100",),
        version=None,
        nvml={"init_error": "DRIVER_NOT_LOADED"},
        tree=lambda m: m.bind(m.folder, "nouveau"),
    ),
    Broken(
        "a driver that was updated, and no restart",
        "D5",
        ("version mismatch", "different releases"),
        nvml={"init_error": "LIB_RM_VERSION_MISMATCH"},
        tree=lambda m: m.driver("580.95.05"),
    ),
    Broken(
        "no node /dev/nvidia-uvm",
        "D15",
        ("nvidia-uvm", "nvidia_uvm"),
        tree=lambda m: m.remove("/dev/nvidia-uvm"),
    ),
    Broken(
        "PyTorch 2.8.0, without code for a P40",
        "P2",
        ("no code for the GPU", "ARCHITECTURE MISMATCH"),
        tree=lambda m: torch_of(m, "2.8.0+cu128", 70, 75, 80, 90),
        torch=("2.8.0+cu128", *VOLTA),
    ),
    Broken(
        "Ollama with libraries of CUDA 13 only",
        "E7",
        ("cuda_v13", "CUDA 12 libraries"),
        tree=lambda m: m.write("/usr/local/lib/ollama/cuda_v13/libggml-cuda.so", ""),
    ),
    Broken(
        "a firmware without above-4G decoding",
        "H1",
        ("BAR1", "4G"),
        nvml=NONE,
        tree=unmapped,
    ),
    Broken(
        "a P40 that fell off the bus",
        "H2",
        ("fell off", "lost", "fallen off"),
        gpus=("p40", "p40"),
        nvml={"card": [{"gpu": "p40"}, {"gpu": "p40", "fails": "GPU_IS_LOST"}]},
        smi=True,
    ),
    Broken(
        "a P4 that is too hot",
        "H3",
        ("heat", "thermal", "Thermal"),
        gpus=("p4",),
        nvml={
            "card": [
                {
                    "gpu": "p4",
                    "temperature_c": 91,
                    "throttle": ["sw_thermal_slowdown", "hw_thermal_slowdown"],
                }
            ]
        },
        smi=True,
    ),
    Broken(
        "**nothing: a P40 with PyTorch 2.7.1**",
        None,
        ("MISMATCH", "error ", "warning "),
        tree=lambda m: torch_of(m, "2.7.1+legacy", 50, 60, 70, 80),
        torch=("2.7.1+cu126", *PASCAL),
        nvml={"card": [{"gpu": "p40", "ecc": False}]},
    ),
)


def run(command: list[str], variables: dict[str, str], folder: Path) -> str:
    """What a program prints in a bare environment."""
    done = subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def look(machine: Broken, options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """What each tool prints about a machine."""
    tree = Machine(folder / "tree", version=machine.version, opened=machine.opened)
    for number, gpu in enumerate(machine.gpus):
        tree.gpu(gpu, f"0000:{number + 1:02x}:00.0", "nvidia" if machine.version else None)
    machine.tree(tree)
    cards = [{"gpu": gpu} for gpu in machine.gpus]
    branch = (machine.version or "580").partition(".")[0]
    standin = Standin({"driver_branch": branch, "card": cards, **(machine.nvml or {})}, folder)
    home = folder / "home"
    (home / "bin").mkdir(parents=True)
    smi = home / "bin" / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "nvidia_smi.py"} "$@"\n')
    smi.chmod(0o755)
    variables = {**standin.environment, "PATH": f"{smi.parent}:/usr/bin:/bin"}
    said = {"doctor": of_doctor(tree, standin)}
    if machine.torch is not None:
        release, cuda, names = machine.torch
        package = home / "site" / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            f"from types import SimpleNamespace as N\n__version__ = {release!r}\n"
            f"version = N(cuda={cuda!r})\nbackends = N(cudnn=N(version=lambda: None))\n"
            f"cuda = N(get_arch_list=lambda: {list(names)!r}, is_available=lambda: True)\n"
        )
        known = {"PYTHONPATH": str(package.parent)}
    else:
        known = {}
    program = str(Path(options.env_doctor).parent / "env-doctor")
    said["env-doctor"] = run([program, "check"], {**variables, **known}, home)
    said["collect_env"] = run([options.torch, "-m", "torch.utils.collect_env"], variables, home)
    if options.nvidia_smi and "init_error" in (machine.nvml or {}):
        said["nvidia-smi"] = run([options.nvidia_smi], variables, home)
    else:
        said["nvidia-smi"] = NOT_RUN
    return said


def of_doctor(tree: Machine, standin: Standin) -> str:
    """The page that the command prints for such a machine."""
    with patch.dict(os.environ, standin.environment):
        facts = replace(tree.facts(), nvml=Fact(nvml.snapshot(20.0), "NVML"))
    page = StringIO()
    with redirect_stdout(page):
        doctor._show(facts, diagnose(facts), None)
    return page.getvalue()


def cell(machine: Broken, tool: str, text: str) -> str:
    """Yes, no, or what else is to be said."""
    if text == NOT_RUN:
        return ("yes (1)" if machine.smi else "no (1)") if machine.rule else "right (1)"
    found = any(word in text for word in machine.words)
    if machine.rule is None:
        return "**false alarm**" if found else "right"
    return "yes" if found else "no"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env-doctor", required=True, metavar="PYTHON")
    parser.add_argument("--torch", required=True, metavar="PYTHON")
    parser.add_argument("--nvidia-smi", metavar="FILE")
    parser.add_argument("--show", action="store_true", help="print what the tools wrote")
    options = parser.parse_args()
    tools = ("doctor", "env-doctor", "collect_env", "nvidia-smi")
    print(f"| what is wrong | rule | {' | '.join(tools)} |\n|{' --- |' * (len(tools) + 2)}")
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as folder:
            said = look(machine, options, Path(folder))
        cells = [cell(machine, tool, said[tool]) for tool in tools]
        print(f"| {machine.what} | {machine.rule or ''} | {' | '.join(cells)} |", flush=True)
        if options.show:
            for tool, text in said.items():
                print(f"\n--- {tool}\n{text}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
