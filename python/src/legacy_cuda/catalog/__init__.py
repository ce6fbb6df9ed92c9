"""The catalog: GPUs, capabilities, drivers, toolkits, stacks, engines and audit rules, as data.

The files under ``data/`` are the one place for each fact; what is here reads them into typed,
immutable records. Nix reads the same files (``nix/catalog.nix``). Their form is described by the
JSON Schemas under ``schema/``, which the tests hold them to.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from legacy_cuda.capability import Capability

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parent / "data"

Flavour = Literal["proprietary", "open"]
EngineVerdict = Literal["offered", "not-packaged", "refused"]
PowerPlug = Literal["eps", "pcie", "none"]
Role = Literal["core", "dispatching", "feature", "alternative", "tool"]


class CatalogError(ValueError):
    """A name is not in the catalog. ``near`` lists what may have been meant."""

    def __init__(self, message: str, near: tuple[str, ...] = ()) -> None:
        self.near = near
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class CapabilityFacts:
    """What a compute capability can do. Ratios are relative to fp32, shared memory is in KiB."""

    capability: Capability
    architecture: str
    legacy: bool
    dp4a: bool
    tensor_cores: bool
    bf16: bool
    half_atomics: bool
    double_atomics: bool
    shared_memory_per_block_kib: int
    shared_memory_optin_kib: int
    shared_memory_reserved_kib: int
    page_migration: bool
    cooperative_launch: bool
    l2_persistence: bool
    clusters: bool
    cublas_gemm_ex: bool
    open_kernel_module: bool
    fp16_fp32_ratio: str | None
    fp64_fp32_ratio: str | None
    source: str
    shared_memory_per_multiprocessor_kib: int | None = None
    registers_per_multiprocessor: int | None = None
    registers_per_block: int | None = None
    threads_per_multiprocessor: int | None = None
    blocks_per_multiprocessor: int | None = None
    fp32_per_multiprocessor: int | None = None
    l2_cache_kib: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. Memory in MiB, bandwidth in 10^9 bytes/s, fp32 in TFLOP/s, all per die; TDP per card.

    None stands for what is not known, or not recorded for cards outside the legacy range.
    """

    name: str
    product: str
    aliases: tuple[str, ...]
    pci_ids: tuple[str, ...]
    capability: Capability
    chip: str
    memory_mib: int
    dies: int
    usable_mib_ecc_on: int | None
    usable_mib_ecc_off: int | None
    memory_type: str | None
    bandwidth_gb_s: float | None
    tdp_w: int | None
    cooling: str | None
    ecc: bool | None
    fp32_tflops: float | None
    source: str
    power_plug: PowerPlug | None = None
    data_center: bool | None = None
    slow_mib: int = 0  # at the end of its memory, slower than the rest

    @property
    def facts(self) -> CapabilityFacts:
        """What its capability can do."""
        return capabilities()[self.capability]

    @property
    def legacy(self) -> bool:
        return self.facts.legacy


@dataclass(frozen=True, slots=True)
class Module:
    """One flavour of a driver's kernel module and the capabilities it serves, ends included."""

    flavour: Flavour
    capability_min: Capability
    capability_max: Capability

    def serves(self, capability: Capability) -> bool:
        return self.capability_min <= capability <= self.capability_max


@dataclass(frozen=True, slots=True)
class Branch:
    """A driver branch. ``cuda`` is the version its libcuda implements; ``end_of_life`` the year, or
    year and month (``2028-06``), in which its support ends or ended, where that is known;
    ``debian_*`` are Debian's own packages of it."""

    branch: str
    latest: str
    cuda: tuple[int, int]
    ptx_isa: tuple[int, int]
    support: str
    nixos_attribute: str | None
    kernel_below: str | None
    kernel_fixed_by: str | None
    modules: tuple[Module, ...]
    source: str
    end_of_life: str | None = None
    debian_driver: str = "nvidia-driver"
    debian_libcuda: str = "libcuda1"

    @property
    def latest_version(self) -> tuple[int, ...]:
        return version_tuple(self.latest)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit: what it targets, which host compiler it takes, which driver runs it."""

    version: tuple[int, int]
    capability_min: Capability
    capability_max: Capability
    ptx_isa: tuple[int, int]
    gcc_max: int
    driver_min: str
    glibc_below: str | None
    source: str


@dataclass(frozen=True, slots=True)
class CudnnWindow:
    """Which cuDNN serves a range of capabilities, ends included: the last release and the first
    without code for it; both None where today's releases serve it."""

    capability_min: Capability
    capability_max: Capability
    last: str | None
    dropped_in: str | None
    status: str


@dataclass(frozen=True, slots=True)
class EngineRule:
    """What is said of an engine for a range of capabilities, ends included."""

    capability_min: Capability
    capability_max: Capability
    verdict: EngineVerdict
    reason: str
    instead: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    title: str
    aliases: tuple[str, ...]
    rules: tuple[EngineRule, ...]

    def rule(self, capability: Capability) -> EngineRule:
        """The rule for a capability; the rules of an engine cover 3.0 to 12.1 without overlap."""
        for rule in self.rules:
            if rule.capability_min <= capability <= rule.capability_max:
                return rule
        raise CatalogError(f"engine {self.name} has no rule for capability {capability}")


@dataclass(frozen=True, slots=True)
class StackFacts:
    """A stack as the catalog has it: its lock, its CUDA, the capabilities it was shown to cover.

    ``engine`` is the name of what it runs; ``torch_compile_min`` None where that is not PyTorch.
    ``patched`` names the packages of the lock that are installed with our patches, ``compiled``
    those that are compiled for the GPUs and installed beside the lock's.
    """

    name: str
    title: str
    engine: str
    lock: str
    cuda: tuple[int, int]
    toolkit: tuple[int, int]
    architecture: str
    home: tuple[Capability, ...]
    covers: tuple[Capability, ...]
    jit_driver: tuple[tuple[Capability, str], ...]
    torch_compile_min: Capability | None
    pythons: tuple[str, ...]
    patched: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()

    def jit_branch(self, capability: Capability) -> str | None:
        """The oldest driver branch that compiles the PTX this capability needs, if it needs any."""
        return dict(self.jit_driver).get(capability)


@dataclass(frozen=True, slots=True)
class LibraryRule:
    """What a library is to its package; see ``data/audit.toml``."""

    path: str
    role: Role
    feature: str | None
    group: str | None
    picks_kernels: bool = False


@dataclass(frozen=True, slots=True)
class AuditRules:
    """Least shares of serving containers, in per cent, and what each library is."""

    least_share_percent: float
    least_share_percent_core: float
    libraries: tuple[LibraryRule, ...]


def version_tuple(text: str) -> tuple[int, ...]:
    """``"580.173.02"`` as ``(580, 173, 2)``, to compare with."""
    return tuple(int(part) for part in text.split("."))


def dotted(version: tuple[int, int]) -> str:
    """``"12.6"`` for ``(12, 6)``."""
    return f"{version[0]}.{version[1]}"


def _pair(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


@cache
def _read(name: str) -> dict[str, Any]:
    with (DATA / f"{name}.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)
    return data


def _capabilities(row: dict[str, Any]) -> tuple[Capability, Capability]:
    return Capability.parse(row["capability_min"]), Capability.parse(row["capability_max"])


@cache
def capabilities() -> dict[Capability, CapabilityFacts]:
    """Every known capability, ascending."""
    found = {}
    for row in _read("capabilities")["capability"]:
        capability = Capability.parse(row["capability"])
        found[capability] = CapabilityFacts(
            capability=capability,
            architecture=row["architecture"],
            legacy=row["legacy"],
            dp4a=row["dp4a"],
            tensor_cores=row["tensor_cores"],
            bf16=row["bf16"],
            half_atomics=row["half_atomics"],
            double_atomics=row["double_atomics"],
            shared_memory_per_block_kib=row["shared_memory_per_block_kib"],
            shared_memory_optin_kib=row["shared_memory_optin_kib"],
            shared_memory_reserved_kib=row["shared_memory_reserved_kib"],
            page_migration=row["page_migration"],
            cooperative_launch=row["cooperative_launch"],
            l2_persistence=row["l2_persistence"],
            clusters=row["clusters"],
            cublas_gemm_ex=row["cublas_gemm_ex"],
            open_kernel_module=row["open_kernel_module"],
            fp16_fp32_ratio=row.get("fp16_fp32_ratio"),
            fp64_fp32_ratio=row.get("fp64_fp32_ratio"),
            source=row["source"],
            shared_memory_per_multiprocessor_kib=row.get("shared_memory_per_multiprocessor_kib"),
            registers_per_multiprocessor=row.get("registers_per_multiprocessor"),
            registers_per_block=row.get("registers_per_block"),
            threads_per_multiprocessor=row.get("threads_per_multiprocessor"),
            blocks_per_multiprocessor=row.get("blocks_per_multiprocessor"),
            fp32_per_multiprocessor=row.get("fp32_per_multiprocessor"),
            l2_cache_kib=row.get("l2_cache_kib"),
        )
    return found


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every card, in the catalog's order (by generation)."""
    return tuple(
        Gpu(
            name=row["name"],
            product=row["product"],
            aliases=tuple(row["aliases"]),
            pci_ids=tuple(row["pci_ids"]),
            capability=Capability.parse(row["capability"]),
            chip=row["chip"],
            memory_mib=row["memory_mib"],
            dies=row.get("dies", 1),
            usable_mib_ecc_on=row.get("usable_mib_ecc_on"),
            usable_mib_ecc_off=row.get("usable_mib_ecc_off"),
            memory_type=row.get("memory_type"),
            bandwidth_gb_s=row.get("bandwidth_gb_s"),
            tdp_w=row.get("tdp_w"),
            cooling=row.get("cooling"),
            ecc=row.get("ecc"),
            fp32_tflops=row.get("fp32_tflops"),
            source=row["source"],
            power_plug=row.get("power_plug"),
            data_center=row.get("data_center"),
            slow_mib=row.get("slow_mib", 0),
        )
        for row in _read("gpus")["gpu"]
    )


@cache
def branches() -> tuple[Branch, ...]:
    """Every driver branch, oldest first."""
    return tuple(
        Branch(
            branch=row["branch"],
            latest=row["latest"],
            cuda=_pair(row["cuda"]),
            ptx_isa=_pair(row["ptx_isa"]),
            support=row["support"],
            nixos_attribute=row.get("nixos_attribute"),
            kernel_below=row.get("kernel_below"),
            kernel_fixed_by=row.get("kernel_fixed_by"),
            modules=tuple(
                Module(module["flavour"], *_capabilities(module)) for module in row["module"]
            ),
            source=row["source"],
            end_of_life=row.get("end_of_life"),
            **{key: row[key] for key in ("debian_driver", "debian_libcuda") if key in row},
        )
        for row in _read("drivers")["branch"]
    )


@cache
def toolkits() -> dict[tuple[int, int], Toolkit]:
    """Every CUDA toolkit by version, oldest first."""
    found = {}
    for row in _read("toolkits")["toolkit"]:
        version = _pair(row["version"])
        low, high = _capabilities(row)
        found[version] = Toolkit(
            version=version,
            capability_min=low,
            capability_max=high,
            ptx_isa=_pair(row["ptx_isa"]),
            gcc_max=row["gcc_max"],
            driver_min=row["driver_min"],
            glibc_below=row.get("glibc_below"),
            source=row["source"],
        )
    return found


@cache
def cudnn() -> tuple[CudnnWindow, ...]:
    """Which cuDNN serves which capabilities, oldest range first."""
    return tuple(
        CudnnWindow(*_capabilities(row), row.get("last"), row.get("dropped_in"), row["status"])
        for row in _read("cudnn")["cudnn"]
    )


@cache
def engines() -> tuple[Engine, ...]:
    """Every engine."""
    return tuple(
        Engine(
            name=row["name"],
            title=row["title"],
            aliases=tuple(row["aliases"]),
            rules=tuple(
                EngineRule(
                    *_capabilities(rule),
                    verdict=rule["verdict"],
                    reason=rule["reason"],
                    instead=tuple(rule["instead"]),
                )
                for rule in row["rule"]
            ),
        )
        for row in _read("engines")["engine"]
    )


@cache
def stacks() -> tuple[StackFacts, ...]:
    """Every stack, by engine, oldest first."""
    return tuple(
        StackFacts(
            name=row["name"],
            title=row["title"],
            engine=row["engine"],
            lock=row["lock"],
            cuda=_pair(row["cuda"]),
            toolkit=_pair(row["toolkit"]),
            architecture=row["architecture"],
            home=tuple(Capability.parse(item) for item in row["home"]),
            covers=tuple(Capability.parse(item) for item in row["covers"]),
            jit_driver=tuple(
                (Capability.parse(capability), branch)
                for capability, branch in row["jit_driver"].items()
            ),
            torch_compile_min=Capability.parse(row["torch_compile_min"])
            if "torch_compile_min" in row
            else None,
            pythons=tuple(row["pythons"]),
            patched=tuple(row.get("patched", [])),
            compiled=tuple(row.get("compiled", [])),
        )
        for row in _read("stacks")["stack"]
    )


@cache
def audit_rules() -> AuditRules:
    """How libraries are judged."""
    data = _read("audit")
    return AuditRules(
        least_share_percent=data["least_share_percent"],
        least_share_percent_core=data["least_share_percent_core"],
        libraries=tuple(
            LibraryRule(
                row["path"],
                row["role"],
                row.get("feature"),
                row.get("group"),
                row.get("picks_kernels", row["role"] == "dispatching"),
            )
            for row in data["library"]
        ),
    )


def _normal(text: str) -> str:
    return "".join(text.lower().replace("nvidia", "").split()).replace("-", "").replace("_", "")


@cache
def _gpu_index() -> dict[str, Gpu]:
    index: dict[str, Gpu] = {}
    for gpu in gpus():
        for text in (*gpu.aliases, gpu.product, gpu.name):
            index.setdefault(_normal(text), gpu)
        for pci_id in gpu.pci_ids:
            index.setdefault(pci_id, gpu)
    for gpu in gpus():  # a name wins over another card's alias
        index[_normal(gpu.name)] = gpu
    return index


def find_gpu(text: str) -> Gpu:
    """The card of that name, alias, product name or PCI id (``10de:1b38``, case ignored).

    Of cards that share a PCI id, the one listed first.

    Raises:
        CatalogError: there is none; names that are near are given.
    """
    index = _gpu_index()
    found = index.get(text.strip().lower()) or index.get(_normal(text))
    if found is not None:
        return found
    if ":" in text:
        raise CatalogError(f"no GPU with PCI id {text!r} is in the catalog")
    raise CatalogError(f"no GPU called {text!r} is in the catalog", _near_gpus(text))


def identify(pci_id: str, memory: int | None, name: str = "") -> Gpu | None:
    """The card of which a driver says this, or None.

    Args:
        pci_id: ``10de:1b38``, or "" if not known.
        memory: bytes, as much as the driver shows. Of cards that share a PCI id it is the one whose
            memory is nearest, and none of them where the memory is not known.
        name: what to go by where no card has that PCI id.
    """
    fits = [gpu for gpu in gpus() if pci_id in gpu.pci_ids]
    if len(fits) > 1:
        if memory is None:
            return None
        return min(fits, key=lambda gpu: abs((gpu.memory_mib << 20) - memory))
    if fits:
        return fits[0]
    try:
        return find_gpu(name)
    except CatalogError:
        return None


def _near_gpus(text: str) -> tuple[str, ...]:
    """Cards that may have been meant: of that capability or PCI device id, longer names, typos."""
    import difflib
    import re

    capability = re.fullmatch(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)", text.strip().lower())
    if capability is not None:
        wanted = Capability(int(capability[1]), int(capability[2]))
        return tuple(gpu.name for gpu in gpus() if gpu.capability == wanted)[:6]
    by_id = _gpu_index().get(f"10de:{text.strip().lower()}")
    if by_id is not None:
        return (by_id.name,)
    names = {_normal(name): gpu.name for gpu in gpus() for name in (gpu.name, *gpu.aliases)}
    longer = [name for normal, name in names.items() if normal.startswith(_normal(text))]
    close = difflib.get_close_matches(_normal(text), names, n=4, cutoff=0.75 if longer else 0.6)
    return tuple(dict.fromkeys([*longer, *(names[name] for name in close)]))[:6]


def find_engine(text: str) -> Engine:
    """The engine of that name or alias.

    Raises:
        CatalogError: there is none; names that are near are given.
    """
    for engine in engines():
        if text.lower() in (engine.name, *engine.aliases):
            return engine
    import difflib

    near = difflib.get_close_matches(text.lower(), [engine.name for engine in engines()], n=3)
    raise CatalogError(f"no engine called {text!r} is in the catalog", tuple(near))


def driver_for_ptx(isa: tuple[int, int], capability: Capability) -> Branch | None:
    """The oldest driver branch that serves the capability and compiles PTX of this ISA version.

    None means that no driver ever will: the PTX is of no use on that capability.
    """
    for branch in branches():
        serves = any(module.serves(capability) for module in branch.modules)
        if serves and branch.ptx_isa >= isa:
            return branch
    return None
