"""Rules about what is installed: Python environments, toolkits, engines, containers, passthrough.

As those in :mod:`legacy_cuda.doctor.rules`: pure functions from facts to evidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import Gpu, version_tuple
from legacy_cuda.catalog.doctor import find_rule
from legacy_cuda.doctor import units
from legacy_cuda.doctor.cards import PASSTHROUGH, Card, Evidence, Seen, cards, present, where
from legacy_cuda.doctor.facts import Facts, InstalledToolkit, Service

_BRIDGES = ("0x0604", "0x0600")
"""PCI classes of a group's devices that a virtual machine does without: bridges."""
_FA_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""KV cache types that llama.cpp's CUDA kernels take when it is compiled without further words
(ggml-cuda/fattn.cu, ggml-org/llama.cpp #27109)."""
_BARE = re.compile(r"\bcospi ?\( ?double x ?\)$")
"""A declaration without a word on exceptions behind it."""
_NCCL = ("vllm", "sglang")
_TENSOR_PARALLEL = ("--tensor-parallel-size", "-tp", "--tp-size", "--tp")
_TRANSLATED = ("DMA", "DMA-FQ")
"""Types of IOMMU groups whose devices see translated addresses (sysfs-kernel-iommu_groups)."""
_CUDNN = re.compile(r"nvidia-cudnn-cu\d\d")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6})*")


def _kinds(facts: Facts) -> list[Card]:
    """One card of each kind of legacy GPU: what is installed is the same to all of them."""
    return list({card.gpu.name: card for card in cards(facts) if card.gpu.legacy}.values())


# --------------------------------------------------------------------- Python environments


def _without_code(facts: Facts, package: str) -> Seen:
    if not facts.code:
        return
    from legacy_cuda import audit

    for code in facts.code:
        for card in _kinds(facts) if code.package == package else ():
            verdict = audit.judge(code.libraries, card.gpu.capability, code.torch_cuda)
            if not verdict.good:
                yield Evidence(
                    f"{package} {code.version}, {where(card)}: {audit.describe(verdict)}",
                    code.source,
                    card.gpu,
                )


def torch_without_code(facts: Facts) -> Seen:
    """P2: a PyTorch whose libraries have no code for a card."""
    return _without_code(facts, "torch")


def vllm_without_code(facts: Facts) -> Seen:
    """P1: a vLLM whose libraries have no code for a card."""
    return _without_code(facts, "vllm")


def bitsandbytes_without_code(facts: Facts) -> Seen:
    """P14: the library of bitsandbytes for this PyTorch has no code for a card."""
    return _without_code(facts, "bitsandbytes")


def llama_without_code(facts: Facts) -> Seen:
    """T7: a llama-cpp-python whose CUDA library has no code for a card."""
    return _without_code(facts, "llama-cpp-python")


def cudnn_too_new(facts: Facts) -> Seen:
    """T4: cuDNN beside a PyTorch is of a release that dropped a card."""
    for environment in facts.python.environments if facts.python else ():
        if environment.version("torch") is None:
            continue
        for package, version in environment.packages:
            if not _CUDNN.fullmatch(package) or not _VERSION.fullmatch(version):
                continue
            for card in _kinds(facts):
                last, dropped = _cudnn(card.gpu.capability)
                if dropped and version_tuple(version) >= version_tuple(dropped):
                    yield Evidence(
                        f"{package} {version}; {last} is the last for {where(card)}",
                        environment.site,
                        card.gpu,
                    )


def _cudnn(capability: Capability) -> tuple[str | None, str | None]:
    """The last cuDNN for a capability and the first without it, where a document says so."""
    for row in catalog.cudnn():
        sure = row.status != "unverified"
        if sure and row.capability_min <= capability <= row.capability_max:
            return row.last, row.dropped_in
    return None, None


def uv_chooses(facts: Facts) -> Seen:
    """P4: uv takes PyTorch's wheels for the newest CUDA that the driver runs, whatever the card is,
    and for this driver these have no code for it."""
    if facts.python is None or facts.python.uv_chooses is None:
        return
    if facts.driver is None or facts.driver.version is None:
        return
    setting, version = facts.python.uv_chooses, facts.driver.version.value
    major = version.partition(".")[0]
    newest = next((item.cuda for item in catalog.branches() if item.branch == major), None)
    limits = find_rule("P4").limits
    for card in _kinds(facts) if newest else ():
        without = limits.get(card.gpu.facts.architecture)
        if newest and without and newest >= version_tuple(without):
            yield Evidence(
                f"{setting.value}, driver {version}; {where(card)}", setting.source, card.gpu
            )


def compile_refused(facts: Facts) -> Seen:
    """P5: PyTorch as published, whose compiler refuses a card."""
    oldest = Capability.parse(find_rule("P5").limits["capability"])
    for environment in facts.python.environments if facts.python else ():
        version = environment.version("torch")
        if version is None or "legacy" in version or not version.startswith("2."):
            continue
        for card in _kinds(facts):
            if card.gpu.capability < oldest:
                yield Evidence(
                    f"torch {version} as published; {where(card)}", environment.site, card.gpu
                )


def nameless_vllm(facts: Facts) -> Seen:
    """E3: vLLM's code is there, and no distribution called vllm."""
    for environment in facts.python.environments if facts.python else ():
        if "vllm" in environment.nameless and present(facts):
            yield Evidence("a folder vllm, and no vllm-*.dist-info", environment.site)


def half_precision_engine(facts: Facts) -> Seen:
    """E14: an engine that computes in half precision, and a card that is slow at it."""
    for environment in facts.python.environments if facts.python else ():
        version = environment.version("exllamav2")
        for card in _kinds(facts) if version else ():
            if card.gpu.facts.fp16_fp32_ratio == "1:64":
                yield Evidence(
                    f"exllamav2 {version}; {where(card)} does fp16 at a 64th of fp32's rate",
                    environment.site,
                    card.gpu,
                )


# ------------------------------------------------------------------------------- toolkits


def no_toolkit_for_card(facts: Facts) -> Seen:
    """T1: none of the toolkits that are installed compiles for a card."""
    known = list(_toolkits(facts))
    if facts.build is None or len(known) < len(facts.build.toolkits):
        return  # there is one that the catalog does not know
    for card in _kinds(facts):
        if not any(_compiles_for(number, card.gpu) for _, number in known):
            for toolkit, number in known:
                yield Evidence(
                    f"CUDA {catalog.dotted(number)} in {toolkit.root}; {where(card)}",
                    toolkit.source,
                    card.gpu,
                )


def compiler_too_new(facts: Facts) -> Seen:
    """T2: no g++ that is installed is old enough for any toolkit that compiles for a card."""
    build = facts.build
    if build is None or build.usual is None:
        return
    oldest = min(item.value for item in (build.usual, *build.compilers))
    useful = list(_useful_toolkits(facts))
    if any(oldest <= catalog.toolkits()[number].gcc_max for _, number in useful):
        return
    for toolkit, number in useful:
        most = catalog.toolkits()[number].gcc_max
        yield Evidence(
            f"g++ {build.usual.value}; CUDA {catalog.dotted(number)} in {toolkit.root} takes gcc "
            f"{most} or older",
            build.usual.source,
            said=(("gcc", str(most)),),
        )


def glibc_too_new(facts: Facts) -> Seen:
    """T3: the C library's headers and those of a toolkit that a card needs do not agree."""
    build = facts.build
    if build is None or build.glibc is None:
        return
    for toolkit, number in _useful_toolkits(facts):
        limit = catalog.toolkits()[number].glibc_below
        cospi = toolkit.cospi
        if limit is None or build.glibc.value < version_tuple(limit) or cospi is None:
            continue
        if _BARE.search(cospi.value):
            version = ".".join(map(str, build.glibc.value))
            yield Evidence(f"{cospi.value}; glibc {version}", cospi.source)


def _toolkits(facts: Facts) -> Iterator[tuple[InstalledToolkit, tuple[int, int]]]:
    """The installed toolkits that the catalog knows."""
    for toolkit in facts.build.toolkits if facts.build else ():
        if toolkit.version in catalog.toolkits():
            yield toolkit, toolkit.version


def _useful_toolkits(facts: Facts) -> Iterator[tuple[InstalledToolkit, tuple[int, int]]]:
    for toolkit, number in _toolkits(facts):
        if any(_compiles_for(number, card.gpu) for card in _kinds(facts)):
            yield toolkit, number


def _compiles_for(number: tuple[int, int], gpu: Gpu) -> bool:
    row = catalog.toolkits()[number]
    return row.capability_min <= gpu.capability <= row.capability_max


# -------------------------------------------------------------------------------- engines


def _services(facts: Facts, engine: str | None = None) -> Iterator[Service]:
    for service in facts.engines.services if facts.engines else ():
        if engine in (None, service.engine):
            yield service


def vllm_bfloat16(facts: Facts) -> Seen:
    """E1: a service starts vLLM with bfloat16, and no card has it."""
    known = cards(facts)
    if not known or any(card.gpu.facts.bf16 for card in known):
        return
    for service in _services(facts, "vllm"):
        if units.option(service.command.value, ("--dtype",)) == "bfloat16":
            text = f"{service.unit}: --dtype bfloat16; {where(known[0])}"
            yield Evidence(text, service.command.source, known[0].gpu)


def awq(facts: Facts) -> Seen:
    """E5: a service starts vLLM with AWQ, and a card is older than its kernels."""
    oldest = Capability.parse(find_rule("E5").limits["capability"])
    for service in _services(facts, "vllm"):
        kind = units.option(service.command.value, ("--quantization", "-q"))
        for card in _kinds(facts) if kind == "awq" else ():
            if card.gpu.capability < oldest:
                text = f"{service.unit}: --quantization awq; {where(card)}"
                yield Evidence(text, service.command.source, card.gpu)


def direct_copies_translated(facts: Facts) -> Seen:
    """E6: a service divides a model over cards whose direct copies an IOMMU translates. Cards on
    SXM2 boards, which are joined by NVLink, are left out."""
    virtual = facts.virtual
    if virtual is None or virtual.guest is not None:
        return
    apart = [card for card in cards(facts) if card.gpu.legacy and "SXM" not in card.gpu.product]
    addresses = {card.device.address for card in apart}
    groups = [
        (item.number, item.translation)
        for item in virtual.groups
        if item.translation is not None
        and item.translation.value in _TRANSLATED
        and any(device.address in addresses for device in item.devices)
    ]
    for service in _services(facts) if len(groups) > 1 else ():
        said = (
            units.option(service.command.value, _TENSOR_PARALLEL)
            if service.engine in _NCCL
            else None
        )
        if said not in (None, "", "1") and service.variable("NCCL_P2P_DISABLE") != "1":
            numbers = ", ".join(number for number, _ in groups)
            kind = groups[0][1]
            yield Evidence(
                f"{service.unit}: tensor parallelism over {said} cards; IOMMU groups {numbers}: "
                f"{kind.value}",
                kind.source,
            )


def ollama_without_libraries(facts: Facts) -> Seen:
    """E7: Ollama's CUDA libraries are all of CUDA versions that do not compile for a card."""
    for folder in facts.engines.ollama if facts.engines else ():
        for card in _kinds(facts):
            if not any(_major_serves(major, card.gpu) for major in folder.value):
                names = ", ".join(f"cuda_v{major}" for major in folder.value)
                yield Evidence(f"{names} only; {where(card)}", folder.source, card.gpu)


def _major_serves(major: int, gpu: Gpu) -> bool:
    """Whether a release of a CUDA version compiles for a card; true for one that is not known."""
    numbers = [number for number in catalog.toolkits() if number[0] == major]
    return not numbers or any(_compiles_for(number, gpu) for number in numbers)


def kv_cache_without_flash_attention(facts: Facts) -> Seen:
    """E11: Ollama is told of a quantised KV cache, and to leave flash attention off."""
    for service in _services(facts, "ollama"):
        variables = dict(service.variables)
        kind = (service.variable("OLLAMA_KV_CACHE_TYPE") or "f16").lower()
        flash = (service.variable("OLLAMA_FLASH_ATTENTION") or "").lower()
        if kind not in ("f16", "f32", "bf16") and flash in ("0", "false", "f"):
            yield Evidence(
                f"{service.unit}: OLLAMA_KV_CACHE_TYPE={kind}, OLLAMA_FLASH_ATTENTION={flash}",
                variables["OLLAMA_FLASH_ATTENTION"].source,
            )


def kv_cache_on_the_cpu(facts: Facts) -> Seen:
    """E12: llama.cpp is told to use flash attention with KV cache types that its usual CUDA kernels
    do not take."""
    for service in _services(facts, "llama-cpp") if present(facts) else ():
        words = service.command.value
        flash = units.option(words, ("-fa", "--flash-attn"))
        if flash is None:
            flash = service.variable("LLAMA_ARG_FLASH_ATTN") or "auto"
        if flash in ("auto", "off", "0", "false", "disabled"):
            continue
        key, value = (
            units.option(words, (f"-ct{short}", f"--cache-type-{short}"))
            or service.variable(f"LLAMA_ARG_CACHE_TYPE_{short.upper()}")
            or "f16"
            for short in "kv"
        )
        if key != value or key not in _FA_TYPES:
            yield Evidence(
                f"{service.unit}: flash attention, KV cache {key}/{value}", service.command.source
            )


def gpus_hidden(facts: Facts) -> Seen:
    """E17: a service is told to see no GPU."""
    for service in _services(facts) if present(facts) else ():
        found = dict(service.variables).get("CUDA_VISIBLE_DEVICES")
        if found is not None and found.value.strip() in ("", "-1"):
            yield Evidence(f'{service.unit}: CUDA_VISIBLE_DEVICES="{found.value}"', found.source)


def devices_hidden(facts: Facts) -> Seen:
    """E18: systemd hides the device nodes from a service."""
    for service in _services(facts) if present(facts) else ():
        private = service.private_devices
        if private is not None and units.yes(private.value):
            yield Evidence(f"{service.unit}: PrivateDevices={private.value}", private.source)


# ----------------------------------------------------------------- containers, passthrough


def no_gpus_for_containers(facts: Facts) -> Seen:
    """E16: containers can be started, and nothing tells their engine of the GPUs."""
    containers = facts.containers
    if containers is None or facts.driver is None or facts.driver.version is None:
        return
    inside = facts.system is not None and facts.system.container is not None
    if inside or containers.lists or containers.runtime or not _kinds(facts):
        return
    for program in containers.programs:
        toolkit = "no CDI list" if containers.toolkit else "no CDI list, no container toolkit"
        yield Evidence(f"{program.value}; {toolkit}, no runtime nvidia", program.source)


def list_of_another_driver(facts: Facts) -> Seen:
    """E19: a CDI list names libcuda of another release than the driver's."""
    if facts.containers is None or facts.driver is None or facts.driver.version is None:
        return
    version = facts.driver.version.value
    if any(item.value == version for item in facts.containers.lists):
        return  # of several lists the one in /run counts
    for item in facts.containers.lists:
        if item.value is not None:
            yield Evidence(f"libcuda {item.value}; the driver is {version}", item.source)


def group_is_shared(facts: Facts) -> Seen:
    """H9: a card is kept for a virtual machine, and another device of its IOMMU group is not."""
    for group in facts.virtual.groups if facts.virtual else ():
        if not any(
            item.driver in PASSTHROUGH and item.kind.startswith("0x03") for item in group.devices
        ):
            continue
        for item in group.devices:
            bridge = item.kind.startswith(_BRIDGES)
            if not bridge and item.driver is not None and item.driver not in PASSTHROUGH:
                yield Evidence(
                    f"IOMMU group {group.number}: {item.address} is bound to {item.driver}",
                    f"/sys/kernel/iommu_groups/{group.number}/devices/{item.address}",
                )


# ---------------------------------------------------------------------------------- NixOS


def nixpkgs_without_capability(facts: Facts) -> Seen:
    """T6: CUDA is switched on for nixpkgs, and no file says for which capabilities."""
    if facts.nixos is None or any(
        "cudaCapabilities" in item.value for item in facts.nixos.settings
    ):
        return
    for item in facts.nixos.settings:
        if re.search(r"\bcudaSupport\s*=\s*true\b", item.value):
            for card in _kinds(facts):
                yield Evidence(f"{item.value}; {where(card)}", item.source, card.gpu)


FACT_RULES: Mapping[str, Callable[[Facts], Seen]] = {
    "T1": no_toolkit_for_card,
    "T2": compiler_too_new,
    "T3": glibc_too_new,
    "T4": cudnn_too_new,
    "T6": nixpkgs_without_capability,
    "T7": llama_without_code,
    "P1": vllm_without_code,
    "P2": torch_without_code,
    "P4": uv_chooses,
    "P5": compile_refused,
    "P14": bitsandbytes_without_code,
    "E1": vllm_bfloat16,
    "E3": nameless_vllm,
    "E5": awq,
    "E6": direct_copies_translated,
    "E7": ollama_without_libraries,
    "E11": kv_cache_without_flash_attention,
    "E12": kv_cache_on_the_cpu,
    "E14": half_precision_engine,
    "E16": no_gpus_for_containers,
    "E17": gpus_hidden,
    "E18": devices_hidden,
    "E19": list_of_another_driver,
    "H9": group_is_shared,
}
