"""Trees like those of machines, for the tests of the doctor."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.doctor.diagnosis import diagnose
from legacy_cuda.doctor.examine import examine
from legacy_cuda.doctor.facts import Facts

TODAY = date(2026, 11, 1)
GOOD = "580.173.02"


class Machine:
    """A tree like that of a machine; without further words a healthy one with one card."""

    def __init__(
        self,
        root: Path,
        *gpus: str,
        version: str | None = GOOD,
        opened: bool = False,
        linux: str = "6.12.48",
        system: str = "debian",
    ) -> None:
        self.root = root
        for number, name in enumerate(gpus):
            self.gpu(name, f"0000:{number + 59:02x}:00.0", "nvidia" if version else None)
        if version:
            self.driver(version, opened)
            self.library(f"/usr/lib/x86_64-linux-gnu/libcuda.so.{version}")
            for node in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"):
                self.write(f"/dev/{node}", "")
        self.write("/dev/null", "")
        (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
        self.write("/sys/module/usbcore/refcnt", "0\n")
        self.write("/proc/sys/kernel/osrelease", f"{linux}\n")
        self.write("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 f16c\n")
        self.write("/etc/os-release", f'ID={system}\nPRETTY_NAME="A system"\n')
        self.write("/var/log/dmesg", "[    0.0] Linux version 6.12.48\n[    9.1] usb 1-1: new\n")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def link(self, path: str, target: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.symlink_to(target)

    def gpu(self, name: str, address: str, driver: str | None) -> None:
        pci_id = name if ":" in name else catalog.find_gpu(name).pci_ids[0]
        slot = f"/sys/devices/pci0000:00/0000:00:{address[5:7]}.0"
        folder = f"{slot}/{address}"
        self.write(f"{slot}/max_link_width", "16\n")
        self.write(f"{folder}/vendor", "0x10de\n")
        self.write(f"{folder}/device", f"0x{pci_id.partition(':')[2]}\n")
        self.write(f"{folder}/class", "0x030200\n")
        self.write(
            f"{folder}/resource",
            "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n"
            "0x0000383800000000 0x0000383fffffffff 0x000000000014220c\n"
            + "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
            * 11,
        )
        for key, text in (("width", "16"), ("speed", "8.0 GT/s PCIe")):
            self.write(f"{folder}/current_link_{key}", f"{text}\n")
            self.write(f"{folder}/max_link_{key}", f"{text}\n")
        if driver:
            self.bind(folder, driver)
        self.link(f"/sys/bus/pci/devices/{address}", f"../../..{folder.removeprefix('/sys')}")
        self.folder = folder

    def bind(self, folder: str, driver: str) -> None:
        self.link(f"{folder}/driver", f"../../../../bus/pci/drivers/{driver}")

    def driver(self, version: str, opened: bool = False) -> None:
        name = "Open Kernel Module for x86_64" if opened else "x86_64 Kernel Module"
        self.write(
            "/proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX {name}  {version}  Mon Sep  1 12:00:00 UTC 2026\n"
            "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n",
        )
        self.write("/sys/module/nvidia/version", f"{version}\n")
        self.write("/sys/module/nvidia_uvm/refcnt", "0\n")

    def library(self, path: str) -> None:
        self.write(path, "")
        self.link(f"{path.rpartition('/')[0]}/libcuda.so.1", path.rpartition("/")[2])

    def facts(self) -> Facts:
        return examine(self.root, TODAY, seconds=20)

    def found(self) -> set[str]:
        return {item.rule.id for item in diagnose(self.facts()).findings}


Case = Callable[[Path], Machine]


def changed(*gpus: str, change: Callable[[Machine], object], **options: Any) -> Case:
    def make(root: Path) -> Machine:
        machine = Machine(root, *gpus, **options)
        change(machine)
        return machine

    return make


def healthy(*gpus: str, **options: Any) -> Case:
    return lambda root: Machine(root, *gpus, **options)
