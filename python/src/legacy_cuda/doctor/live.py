"""Rules about what runs now: what the driver says of the GPUs, and engines of themselves.

As those in :mod:`legacy_cuda.doctor.rules`: pure functions from facts to evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from legacy_cuda import catalog
from legacy_cuda.catalog import Gpu
from legacy_cuda.doctor import units
from legacy_cuda.doctor.cards import Evidence, Seen, cards, present, where
from legacy_cuda.doctor.facts import Facts, Service
from legacy_cuda.doctor.probes import apis

if TYPE_CHECKING:
    from legacy_cuda.nvml import Device

MIB = 1 << 20
SLOW = 1.0
"""Seconds. A driver that keeps its GPUs awake answers in about a tenth of one; nvidia-smi is felt
to be slow from here on."""
_HEAT = ("sw_thermal_slowdown", "hw_thermal_slowdown")
_ONE_STATE = ("GP100", "GV100")
"""Chips that have one performance state, P0 (sasha0552/nvidia-pstated #6, #7)."""


def _seen(facts: Facts) -> Iterator[tuple[Device, Gpu | None, str, str]]:
    """Every GPU that NVML lists: its card, where the catalog has it, words for it, and who says
    what is known of it."""
    if facts.nvml is None:
        return
    known = {card.device.address: card for card in cards(facts)}
    devices, source = facts.nvml.value.devices, facts.nvml.source
    unseen = set(known) - {device.pci_address for device in devices}
    nameless = [device for device in devices if device.pci_address is None]
    for device in devices:
        card = known.get(device.pci_address or "")
        if len(unseen) == len(nameless) == 1 and device in nameless:
            card = known[min(unseen)]  # a lost GPU does not tell where it is
        if card is not None:
            yield device, card.gpu, where(card), source
            continue
        gpu = catalog.identify(device.pci_id or "", device.memory_total_bytes)
        name = device.name or f"GPU {device.index}"
        words = f"{name} at {device.pci_address}" if device.pci_address else name
        yield device, gpu, words, source


def summary(facts: Facts) -> Iterator[str]:
    """What each GPU that answers is at, and where Ollama's models are, in words."""
    for device, _, words, _ in _seen(facts):
        if device.failure is not None:
            continue
        said = []
        if device.temperature_c is not None:
            said.append(f"{device.temperature_c} C")
        if device.power_w is not None:
            limit = device.power_enforced_limit_w
            said.append(f"{device.power_w:.0f}{f' of {limit:.0f}' if limit else ''} W")
        if device.pstate is not None:
            said.append(f"P{device.pstate}")
        if device.memory_used_bytes is not None and device.memory_total_bytes:
            used, total = device.memory_used_bytes // MIB, device.memory_total_bytes // MIB
            said.append(f"{used} of {total} MiB used")
        if said:
            yield f"{words}: {', '.join(said)}"
    for answer in facts.apis or ():
        for model in answer.models:
            yield f"Ollama: {model.name}: {100 * model.on_gpu // model.size} % on the GPU"


def releases_differ(facts: Facts) -> Seen:
    """D5: NVML itself refuses the kernel module."""
    error = facts.nvml.value.error if facts.nvml else None
    if facts.nvml is not None and error is not None and error.error == "LIB_RM_VERSION_MISMATCH":
        yield Evidence(f"NVML: {error}", facts.nvml.source)


def asleep(facts: Facts) -> Seen:
    """D12: the driver starts its GPUs anew for every program, and took its time for this one.

    Silent where there is a Kepler card: setting persistence mode may have halted hosts with K80s.
    """
    if facts.nvml is None or facts.nvml.value.start_s < SLOW:
        return
    found = list(_seen(facts))
    if any(gpu is not None and gpu.facts.architecture == "Kepler" for _, gpu, _, _ in found):
        return
    for device, gpu, words, source in found:
        idle = device.processes == () and device.display_active is False
        if device.persistence is False and idle and device.failure is None:
            yield Evidence(
                f"{words}: persistence mode is off; the driver took "
                f"{facts.nvml.value.start_s:.1f} s to start",
                source,
                gpu,
            )


def lost(facts: Facts) -> Seen:
    """H2: NVML says that a GPU is lost."""
    for device, gpu, words, source in _seen(facts):
        if device.failure is not None and device.failure.error == "GPU_IS_LOST":
            yield Evidence(f"{words}: {device.failure}", source, gpu)


def silent(facts: Facts) -> Seen:
    """S5: a call for a GPU did not come back. The first one is left out, in which the driver starts
    a GPU, and calls that were not made in time, on a machine that is busy."""
    for device, gpu, words, source in _seen(facts):
        failure = device.failure
        if failure is None or failure.error != "TIMED_OUT" or ", for " not in failure.call:
            continue
        if not failure.call.startswith("nvmlDeviceGetHandle"):
            call = failure.call.partition(",")[0]
            yield Evidence(f"{words}: {call} did not come back", source, gpu)


def too_hot(facts: Facts) -> Seen:
    """H3: the clocks are lowered for heat."""
    for device, gpu, words, source in _seen(facts):
        reasons = [item for item in device.throttle_reasons or () if item in _HEAT]
        if not reasons:
            continue
        said = [", ".join(reasons)]
        if device.temperature_c is not None:
            said.insert(0, f"{device.temperature_c} C")
        if device.clock_sm_mhz is not None and device.clock_sm_max_mhz:
            said.append(f"{device.clock_sm_mhz} of {device.clock_sm_max_mhz} MHz")
        yield Evidence(f"{words}: {'; '.join(said)}", source, gpu)


def _waits(device: Device) -> bool:
    """Whether programs hold memory of it and nothing was computed in the last sampling period."""
    return bool(device.processes) and device.utilization_percent == 0


def awake_for_nothing(facts: Facts) -> Seen:
    """H4: a Tesla of Pascal's smaller chips that nothing is computed on stays in its highest state,
    because a program holds memory of it."""
    for device, gpu, words, source in _seen(facts):
        if gpu is None or not gpu.legacy or not gpu.data_center:
            continue
        if gpu.facts.architecture != "Pascal" or gpu.chip in _ONE_STATE:
            continue
        if device.pstate == 0 and _waits(device) and device.power_w is not None:
            yield Evidence(
                f"{words}: P0 and {device.power_w:.0f} W at 0 % use, "
                f"{(device.memory_used_bytes or 0) // MIB} MiB held",
                source,
                gpu,
            )


def one_state(facts: Facts) -> Seen:
    """H5: a card with one performance state holds a program's memory and computes nothing."""
    for device, gpu, words, source in _seen(facts):
        if gpu is None or gpu.chip not in _ONE_STATE:
            continue
        if _waits(device) and device.power_w is not None and device.clock_sm_mhz is not None:
            yield Evidence(
                f"{words}: {device.power_w:.0f} W and {device.clock_sm_mhz} MHz at 0 % use",
                source,
                gpu,
            )


def ecc_takes_memory(facts: Facts) -> Seen:
    """H6: ECC is on, and stays on, on a card that keeps its check bits in its memory."""
    for device, gpu, words, source in _seen(facts):
        if gpu is None or not (gpu.memory_type or "").startswith("GDDR"):
            continue
        if device.ecc and device.ecc_pending is not False and device.memory_total_bytes:
            yield Evidence(
                f"{words}: ECC is on, {device.memory_total_bytes // MIB} of {gpu.memory_mib} MiB",
                source,
                gpu,
            )


def memory_errors(facts: Facts) -> Seen:
    """H10: errors that ECC could not mend since the driver was loaded, or memory to be retired."""
    for device, gpu, words, source in _seen(facts):
        said = []
        if device.ecc_uncorrected_volatile:
            count = device.ecc_uncorrected_volatile
            said.append(f"{count} uncorrected memory errors since the driver was loaded")
        if device.retired_pages_pending:
            said.append("pages of its memory wait to be retired")
        if said:
            yield Evidence(f"{words}: {'; '.join(said)}", source, gpu)


# ------------------------------------------------------------------------ engines, containers


def ollama_on_the_cpu(facts: Facts) -> Seen:
    """E9: a model that Ollama has loaded is not on the GPUs, or not wholly."""
    for answer in facts.apis or () if _gpu_is_there(facts) else ():
        for model in answer.models:
            if model.on_gpu < model.size:
                yield Evidence(
                    f"{model.name}: {model.on_gpu / 2**30:.1f} of {model.size / 2**30:.1f} GiB on "
                    "the GPU",
                    answer.source,
                )


def _gpu_is_there(facts: Facts) -> bool:
    return bool(present(facts) or (facts.nvml and facts.nvml.value.devices))


def engine_without_gpu(facts: Facts) -> Seen:
    """E22: llama-server is ready, or Ollama says that a model is on the GPU, and NVML lists no
    process of it. In a container NVML numbers processes otherwise, and on WSL2 it lists none, so
    nothing is said there."""
    if facts.system is None or facts.system.container is not None:
        return
    if facts.system.platform is not None and facts.system.platform.value == "WSL2":
        return
    devices = facts.nvml.value.devices if facts.nvml else ()
    if not devices or any(device.processes is None for device in devices):
        return
    there = {process.pid for device in devices for process in device.processes or ()}
    running = facts.engines.processes if facts.engines else ()
    installed = facts.engines.services if facts.engines else ()
    for answer in facts.apis or ():
        if answer.engine == "ollama" and any(model.on_gpu for model in answer.models):
            if not there:
                text = "Ollama has a model on the GPU, and NVML lists no process on any GPU"
                yield Evidence(text, answer.source)
            continue
        port = urlsplit(answer.source).port
        if any(apis.port_of(item) == port and _meant_for_the_cpu(item) for item in installed):
            continue  # its process does not show the variables of its unit
        own = [item for item in running if item.engine == answer.engine == "llama-cpp"]
        wanted = [item for item in own if not _meant_for_the_cpu(item)]
        pids = {int(item.unit.rpartition(" ")[2]) for item in own}
        if wanted and not pids & there:
            text = f"{wanted[0].unit} is ready; NVML lists it on no GPU"
            yield Evidence(text, wanted[0].command.source)


def _meant_for_the_cpu(service: Service) -> bool:
    words = service.command.value
    layers = units.option(words, ("-ngl", "--gpu-layers", "--n-gpu-layers"))
    device = units.option(words, ("-dev", "--device"))
    return (layers or service.variable("LLAMA_ARG_N_GPU_LAYERS")) == "0" or (
        device or service.variable("LLAMA_ARG_DEVICE")
    ) == "none"


def requests_put_back(facts: Facts) -> Seen:
    """E23: vLLM had no room for the KV cache of requests that it had begun."""
    for answer in facts.apis or ():
        if answer.preempted:
            yield Evidence(f"{answer.preempted:.0f} requests were preempted", answer.source)


def devices_taken_away(facts: Facts) -> Seen:
    """E21: in a container NVML answers with an unknown error; or NVIDIA's runtime for Docker is
    told to let cgroups alone, which is right for rootless Docker only."""
    error = facts.nvml.value.error if facts.nvml else None
    inside = facts.system is not None and facts.system.container is not None
    if facts.nvml is not None and inside and error is not None and error.error == "UNKNOWN":
        yield Evidence(f"NVML: {error}", facts.nvml.source)
    containers = facts.containers
    if containers is None or inside or containers.runtime is None:
        return
    if containers.no_cgroups is not None and containers.no_cgroups.value:
        legacy = containers.mode is None or containers.mode.value in ("auto", "legacy")
        if legacy and any(program.value == "docker" for program in containers.programs):
            text = "no-cgroups = true, and Docker's daemon.json names the runtime nvidia"
            yield Evidence(text, containers.no_cgroups.source)


FACT_RULES: Mapping[str, Callable[[Facts], Seen]] = {
    "S5": silent,
    "D12": asleep,
    "E9": ollama_on_the_cpu,
    "E21": devices_taken_away,
    "E22": engine_without_gpu,
    "E23": requests_put_back,
    "H2": lost,
    "H3": too_hot,
    "H4": awake_for_nothing,
    "H5": one_state,
    "H6": ecc_takes_memory,
    "H10": memory_errors,
}
