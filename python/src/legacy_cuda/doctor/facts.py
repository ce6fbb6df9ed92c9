"""What was seen on a machine. Every fact carries the file it was read from.

None stands for what was not found out: a probe that failed leaves None, so that no rule takes
"not looked at" for "not there". What a probe looked for and did not find is an empty value.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from legacy_cuda.catalog import Flavour, Gpu

if TYPE_CHECKING:
    from legacy_cuda.audit import Library as CodeOfLibrary
    from legacy_cuda.nvml import Snapshot

T = TypeVar("T")
Platform = Literal["WSL2", "Jetson"]
SystemKind = Literal["nixos", "debian", "ubuntu", "other"]


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """A value and where it was read."""

    value: T
    source: str


@dataclass(frozen=True, slots=True)
class Region:
    """A region of a device's address space: a BAR. Its start is 0 where it was given no place.
    One of 64 bits takes the next number too, whose own region is empty."""

    number: int
    start: int
    end: int
    wide: bool = False

    @property
    def placed(self) -> bool:
        """Whether the firmware or the kernel gave it a place."""
        return self.start > 0 and self.end > self.start


@dataclass(frozen=True, slots=True)
class Link:
    """A device's PCIe link: lanes now, lanes the device has, lanes its slot has (None: unknown, or
    the slot is a virtual machine's, which has no lanes)."""

    width: int
    width_max: int
    slot_width_max: int | None
    speed: str
    speed_max: str


@dataclass(frozen=True, slots=True)
class Device:
    """An NVIDIA device of the PCI bus. ``kind`` is its PCI class, ``0x0302`` for a 3D controller.

    ``driver`` is None where no driver is bound to it; ``switch`` is the link of the bridge above
    its slot, which on a card with several dies is the card's own.
    """

    address: str
    pci_id: str
    kind: str
    driver: Fact[str] | None
    regions: Fact[tuple[Region, ...]] | None
    link: Fact[Link] | None
    switch: Fact[Link] | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is a display or 3D controller, and not the card's sound or USB function."""
        return self.kind.startswith(("0x0300", "0x0302"))


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The kernel module: release and flavour if it is loaded, and NVIDIA's modules that are.

    ``sources`` are releases whose sources wait to be built for the kernel (``/usr/src/nvidia-*``).
    """

    version: Fact[str] | None
    flavour: Fact[Flavour] | None
    modules: Fact[tuple[str, ...]]
    sources: tuple[Fact[str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """NVIDIA's device nodes by name, and the setuid helper that makes them when they are needed."""

    names: Fact[tuple[str, ...]]
    helper: Fact[str] | None


@dataclass(frozen=True, slots=True)
class Library:
    """A libcuda.so.1. ``version`` is that of its file's name; ``compat``: CUDA's compat folder."""

    path: str
    version: str | None
    compat: bool


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """Every libcuda found, and the one of a compat folder that the loader sees first, if it does,
    with what puts it there."""

    found: tuple[Library, ...]
    compat_first: Fact[Library] | None


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel's release and the lines of its log that speak of GPUs, oldest first."""

    release: Fact[str] | None
    log: Fact[tuple[str, ...]] | None


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """Vector instructions that the CPU lists."""

    avx: Fact[bool]
    avx2: Fact[bool]


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """Which system this is, and what says that it is a container, if it is one. ``platform``: its
    GPU is no device of the PCI bus, or not only."""

    kind: Fact[SystemKind]
    name: str
    container: Fact[str] | None
    platform: Fact[Platform] | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with Python packages. ``packages`` are those that use GPUs, by their normalised
    names, with their versions; ``nameless`` those of them whose code is there and no distribution
    of that name; ``torch_cuda`` the CUDA that PyTorch was built with, where it says one."""

    site: str
    packages: tuple[tuple[str, str], ...]
    nameless: tuple[str, ...] = ()
    torch_cuda: tuple[int, int] | None = None

    def version(self, package: str) -> str | None:
        """The version of one of the packages."""
        return dict(self.packages).get(package)


@dataclass(frozen=True, slots=True)
class PythonFacts:
    """Every environment with a package that uses GPUs; what tells uv to choose PyTorch's wheels by
    the driver (``UV_TORCH_BACKEND=auto``), if something does."""

    environments: tuple[Environment, ...]
    uv_chooses: Fact[str] | None = None


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """The device code of a package in an environment; ``source`` is where it was read, or what
    the catalog's evidence on the same release says."""

    site: str
    package: str
    version: str
    torch_cuda: tuple[int, int] | None
    libraries: tuple[CodeOfLibrary, ...]
    source: str


@dataclass(frozen=True, slots=True)
class InstalledToolkit:
    """A CUDA toolkit with an nvcc, and the declaration of cospi in its headers, which newer ones of
    glibc clash with; None where it was not found."""

    root: str
    version: tuple[int, int]
    source: str
    cospi: Fact[str] | None = None


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """Toolkits; the versions of gcc that there is a g++ of; the one called ``g++``; the glibc whose
    headers are installed."""

    toolkits: tuple[InstalledToolkit, ...]
    compilers: tuple[Fact[int], ...]
    usual: Fact[int] | None
    glibc: Fact[tuple[int, int]] | None


@dataclass(frozen=True, slots=True)
class Service:
    """A unit of systemd that starts an engine, with its drop-ins: the command's words, the
    variables about GPUs and whether its /dev is its own, each with the file that says so last.
    Values that may be secret are left out."""

    unit: str
    engine: str
    command: Fact[tuple[str, ...]]
    variables: tuple[tuple[str, Fact[str]], ...]
    private_devices: Fact[str] | None

    def variable(self, name: str) -> str | None:
        """The value of a variable that the unit sets."""
        found = dict(self.variables).get(name)
        return found.value if found else None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Services, the processes of engines that run (each as a service of the name ``process N``),
    and the CUDA versions that Ollama's folders of libraries are for, a folder each."""

    services: tuple[Service, ...]
    ollama: tuple[Fact[tuple[int, ...]], ...]
    processes: tuple[Service, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that Ollama has loaded, and how much of it lies on GPUs, in bytes."""

    name: str
    size: int
    on_gpu: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine says of itself where it listens: Ollama its ``models``, vLLM how many requests
    it ``preempted``, llama-server that it is ready. ``unit`` is what named the port."""

    engine: str
    unit: str
    source: str
    models: tuple[LoadedModel, ...] = ()
    preempted: float | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """Lines with known texts that a service wrote since it was last started; the command that
    showed them."""

    unit: str
    lines: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """Programs that start containers; lists of NVIDIA's devices for them (CDI) with the release of
    libcuda that each names; what names NVIDIA's runtime to Docker; the toolkit's programs; whether
    the toolkit is told to let cgroups alone, as rootless containers need it; its runtime's mode."""

    programs: tuple[Fact[str], ...]
    lists: tuple[Fact[str | None], ...]
    runtime: Fact[str] | None
    toolkit: Fact[str] | None
    no_cgroups: Fact[bool] | None = None
    mode: Fact[str] | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A device of an IOMMU group: its address, PCI class and driver."""

    address: str
    kind: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class Group:
    """An IOMMU group that an NVIDIA device is in. ``translation`` is its type: ``DMA`` and
    ``DMA-FQ`` translate addresses, ``identity`` does not."""

    number: str
    devices: tuple[Neighbour, ...]
    translation: Fact[str] | None = None


@dataclass(frozen=True, slots=True)
class VirtualFacts:
    """Whether this is a virtual machine, and the IOMMU groups with an NVIDIA device in them."""

    guest: Fact[str] | None
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class NixosFacts:
    """Kernel modules of the system that was started and of the one that is to be started next;
    which settings of the configuration's own files speak of CUDA, verbatim."""

    booted: Fact[str] | None
    current: Fact[str] | None
    settings: tuple[Fact[str], ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that could not be found out: the probe, and why."""

    probe: str
    what: str


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine as it was seen on a day. ``named`` are cards that a person says it is about."""

    today: date
    pci: tuple[Device, ...] | None = None
    driver: DriverFacts | None = None
    nodes: NodeFacts | None = None
    libraries: LibraryFacts | None = None
    kernel: KernelFacts | None = None
    cpu: CpuFacts | None = None
    system: SystemFacts | None = None
    python: PythonFacts | None = None
    code: tuple[DeviceCode, ...] | None = None
    build: BuildFacts | None = None
    engines: EngineFacts | None = None
    journals: tuple[Journal, ...] | None = None
    apis: tuple[Answer, ...] | None = None
    containers: ContainerFacts | None = None
    virtual: VirtualFacts | None = None
    nixos: NixosFacts | None = None
    nvml: Fact[Snapshot] | None = None
    failures: tuple[Failure, ...] = ()
    named: tuple[Gpu, ...] = ()
