"""From facts to findings: pure functions, one for each rule that a machine shows by itself.

What the catalog knows (which branch serves which card, which driver a CUDA needs) is asked of the
catalog and of :mod:`legacy_cuda.resolve`. A rule is silent where a fact it needs was not found out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import Branch, CatalogError, Gpu, PowerPlug, version_tuple
from legacy_cuda.catalog.doctor import Confidence, Rule, Severity, find_rule
from legacy_cuda.doctor import live, software
from legacy_cuda.doctor.cards import (
    Evidence,
    Seen,
    cards,
    kept_away,
    named,
    present,
    strangers,
    where,
)
from legacy_cuda.doctor.facts import Facts
from legacy_cuda.doctor.logs import Hit
from legacy_cuda.resolve import USUAL_ENGINE, Refusal, Stack, drivers_for, resolve

FOREIGN = ("nouveau", "nova_core", "NovaCore", "nova", "nvidiafb", "rivafb")
"""Drivers of the kernel's own that take NVIDIA's cards."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that holds. ``cause`` and ``fix`` are filled in for this machine; ``left_out`` counts
    the evidence that is not shown; ``example`` is the card they speak of where none is known."""

    rule: Rule
    severity: Severity
    confidence: Confidence
    evidence: tuple[Evidence, ...]
    cause: str
    fix: tuple[str, ...]
    left_out: int = 0
    example: str | None = None


def release(text: str) -> tuple[int, int] | None:
    """The first two numbers of a kernel's release, ``(6, 12)`` for ``6.12.105-production``."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def _branch(version: str) -> Branch | None:
    """The catalog's branch of a driver's version."""
    major = version.partition(".")[0]
    return next((item for item in catalog.branches() if item.branch == major), None)


def _last_branch(gpu: Gpu) -> Branch | None:
    drivers = drivers_for([gpu.capability])
    return drivers[-1].branch if drivers else None


# ------------------------------------------------------------------------- driver and kernel


def _dropped(facts: Facts, kepler: bool) -> Seen:
    if facts.driver is None or facts.driver.version is None:
        return
    version = facts.driver.version
    for card in cards(facts):
        last = _last_branch(card.gpu)
        is_kepler = card.gpu.facts.architecture == "Kepler"
        if not card.gpu.legacy or last is None or is_kepler != kepler:
            continue
        if version_tuple(version.value)[0] > int(last.branch):
            yield Evidence(
                f"{where(card)}; driver {version.value}, last branch {last.branch}",
                version.source,
                card.gpu,
            )


def branch_dropped(facts: Facts) -> Seen:
    """D1: the loaded driver is of a newer branch than the last that serves the card."""
    return _dropped(facts, kepler=False)


def branch_dropped_kepler(facts: Facts) -> Seen:
    """D3: the same for Kepler."""
    return _dropped(facts, kepler=True)


def open_module(facts: Facts) -> Seen:
    """D2: the open module is loaded, and a card has no GPU System Processor."""
    if facts.driver is None or facts.driver.flavour is None:
        return
    flavour = facts.driver.flavour
    if flavour.value != "open":
        return
    for card in cards(facts):
        if not card.gpu.facts.open_kernel_module:
            text = f"{where(card)}; the open kernel module is loaded"
            yield Evidence(text, flavour.source, card.gpu)


def card_left_out(facts: Facts) -> Seen:
    """D18: the kernel's log says that a card is ignored, and it is none of those in the catalog."""
    log = facts.kernel.log if facts.kernel else None
    if log is None or not cards(facts) or not strangers(facts):
        return
    before = ""
    for line in log.value:
        match = _IGNORED.search(line)
        if match is not None:
            branch = match["branch"]
            rule_id = "D2" if branch is None else "D3" if branch == _KEPLER_BRANCH else "D1"
            if not _caused_by_known(facts, rule_id, {"branch": {branch}} if branch else {}):
                yield Evidence(f"{before.strip()} {line.strip()}".strip(), log.source)
        before = line


def kernel_too_new(facts: Facts) -> Seen:
    """D4: no module is loaded, and the driver that is installed, or the one that the card needs,
    does not compile on this kernel."""
    if facts.driver is None or facts.kernel is None or facts.kernel.release is None:
        return
    running = release(facts.kernel.release.value)
    if running is None or facts.driver.version or "nvidia" in facts.driver.modules.value:
        return
    legacy = [card for card in cards(facts) if card.gpu.legacy]
    patched = facts.system is not None and facts.system.kind.value == "nixos"
    installed = [(item.value, item.source) for item in facts.driver.sources]
    if not installed and facts.libraries is not None:
        installed = [
            (item.version, item.path)
            for item in facts.libraries.found
            if item.version and not item.compat
        ]
    for version, source in installed if legacy else []:
        branch = _branch(version)
        if branch and not _compiles(branch, version, running):
            yield Evidence(
                f"driver {version} does not compile on Linux {branch.kernel_below} and newer; "
                f"this is {facts.kernel.release.value}",
                source,
            )
    if installed:
        return
    for card in legacy:
        last = _last_branch(card.gpu)
        if last and patched and last.kernel_fixed_by is None:
            continue  # nixpkgs patches branches that NVIDIA mends no more: see drivers.toml
        if last and not _compiles(last, last.latest, running):
            yield Evidence(
                f"{where(card)} needs driver {last.latest}, which does not compile on Linux "
                f"{last.kernel_below} and newer; this is {facts.kernel.release.value}",
                facts.kernel.release.source,
                card.gpu,
            )


def _compiles(branch: Branch, version: str, kernel: tuple[int, int]) -> bool:
    if branch.kernel_below is None or kernel < version_tuple(branch.kernel_below):
        return True
    fixed = branch.kernel_fixed_by
    return fixed is not None and version_tuple(version) >= version_tuple(fixed)


def releases_differ(facts: Facts) -> Seen:
    """D5: libcuda is of another release than the kernel module, or NVML says that it is."""
    yield from live.releases_differ(facts)
    if facts.driver is None or facts.driver.version is None or facts.libraries is None:
        return
    version = facts.driver.version
    found = [item for item in facts.libraries.found if item.version and not item.compat]
    if found and all(item.version != version.value for item in found):
        yield Evidence(f"kernel module {version.value}", version.source)
        for item in found:
            yield Evidence(f"libcuda {item.version}", item.path)
        nixos = facts.nixos
        if nixos and nixos.booted and nixos.current and nixos.booted.value != nixos.current.value:
            text = f"rebuilt and not restarted: {nixos.current.value} comes with the next start"
            yield Evidence(text, nixos.current.source)


def foreign_driver(facts: Facts) -> Seen:
    """D6: a driver of the kernel's own is bound to the card."""
    for card in cards(facts):
        driver = card.device.driver
        if driver is not None and driver.value in FOREIGN:
            yield Evidence(f"{where(card)}: driver {driver.value}", driver.source, card.gpu)


def too_old_for_stack(facts: Facts) -> Seen:
    """D7: the driver is older than the CUDA of the stack for these cards needs."""
    if facts.driver is None or facts.driver.version is None:
        return
    version = facts.driver.version
    gpus = [card.gpu for card in cards(facts)]
    if not any(gpu.legacy for gpu in gpus):
        return
    answer = resolve(gpus, catalog.find_engine(USUAL_ENGINE))
    if not isinstance(answer, Stack):
        return
    least = catalog.toolkits()[answer.facts.cuda].driver_min
    if version_tuple(version.value) < version_tuple(least):
        yield Evidence(
            f"driver {version.value}; stack {answer.facts.name} (CUDA "
            f"{catalog.dotted(answer.facts.cuda)}) needs {least}",
            version.source,
        )


def compat_in_the_way(facts: Facts) -> Seen:
    """D10: a compat libcuda newer than the driver comes first, and a card is none for data centres.
    Cards of which the catalog does not say it are left out."""
    if facts.driver is None or facts.driver.version is None or facts.libraries is None:
        return
    first = facts.libraries.compat_first
    if first is None or first.value.version is None:
        return
    if version_tuple(first.value.version) > version_tuple(facts.driver.version.value):
        for card in cards(facts):
            if card.gpu.data_center is False:
                yield Evidence(
                    f"libcuda {first.value.version} ({first.value.path}) comes before that of "
                    f"driver {facts.driver.version.value}; {where(card)} does not allow it",
                    first.source,
                    card.gpu,
                )


def branch_ended(facts: Facts) -> Seen:
    """D11: the support of the loaded branch has ended."""
    if facts.driver is None or facts.driver.version is None:
        return
    version = facts.driver.version
    branch = _branch(version.value)
    if branch is None or branch.end_of_life is None or not cards(facts):
        return
    year, _, month = branch.end_of_life.partition("-")
    if (facts.today.year, facts.today.month) > (int(year), int(month or 12)):
        yield Evidence(
            f"driver {version.value}: branch {branch.branch} ended {branch.end_of_life}",
            version.source,
        )


def no_module(facts: Facts) -> Seen:
    """D13: there is a legacy card, and NVIDIA's module is not loaded. Newer cards are left out:
    what mends it for these, such as the proprietary flavour, is wrong for the newest."""
    if facts.driver is None or facts.driver.version or "nvidia" in facts.driver.modules.value:
        return
    known = cards(facts)
    for card in known if any(card.gpu.legacy for card in known) else ():
        text = f"{where(card)}; no module nvidia is loaded"
        yield Evidence(text, facts.driver.modules.source, card.gpu if card.gpu.legacy else None)


def no_uvm_node(facts: Facts) -> Seen:
    """D15: the driver serves GPUs, CUDA's node is missing, and nothing makes it on demand."""
    if facts.driver is None or facts.driver.version is None or facts.nodes is None:
        return
    names = facts.nodes.names.value
    if "nvidia-uvm" in names or facts.nodes.helper is not None or not present(facts):
        return
    if "nvidiactl" in names:
        yield Evidence(f"there are {', '.join(names)}, and no nvidia-uvm", facts.nodes.names.source)


def no_libcuda(facts: Facts) -> Seen:
    """D16: the driver is loaded, and its libcuda is in none of the usual places."""
    if facts.driver is None or facts.driver.version is None or facts.libraries is None:
        return
    if any(failure.probe == "libraries" for failure in facts.failures):
        return  # it may be where nobody may look
    if present(facts) and not [item for item in facts.libraries.found if not item.compat]:
        yield Evidence(
            f"driver {facts.driver.version.value} is loaded; no libcuda.so.1 in the usual folders",
            facts.driver.version.source,
        )


# -------------------------------------------------------------------------- engines, hardware


def no_avx(facts: Facts) -> Seen:
    """E10: the CPU lists no AVX."""
    if facts.cpu is not None and not facts.cpu.avx.value and present(facts):
        yield Evidence("the CPU's flags have no avx", facts.cpu.avx.source)


def no_common_driver(facts: Facts) -> Seen:
    """E15: no driver branch with one flavour of its module serves all cards."""
    gpus = [card.gpu for card in cards(facts)]
    if not gpus or drivers_for({gpu.capability for gpu in gpus}):
        return
    answer = resolve(gpus, catalog.find_engine(USUAL_ENGINE))
    if isinstance(answer, Refusal) and answer.rule in ("driver-branch", "kernel-module-flavour"):
        for text in (*answer.because, *(f"instead: {item}" for item in answer.instead)):
            yield Evidence(text, "legacy-cuda resolve")
    else:
        names = ", ".join(dict.fromkeys(gpu.product for gpu in gpus))
        yield Evidence(names, "/sys/bus/pci/devices")


def memory_without_place(facts: Facts) -> Seen:
    """H1: the registers of a card or its window into its memory have no address. These are BAR0
    and the next one: BAR1, or BAR2 where BAR0 has 64 bits (Hopper)."""
    for name, device, gpu in named(facts):
        regions = device.regions
        if regions is None:
            continue
        first = regions.value[0]
        for region in (first, regions.value[2 if first.wide else 1]):
            if not region.placed:
                yield Evidence(
                    f"{name}: BAR{region.number} is {region.start:#x} to {region.end:#x}",
                    regions.source,
                    gpu,
                )


def several_dies(facts: Facts) -> Seen:
    """H7: a card with two dies."""
    for card in cards(facts):
        if card.gpu.dies > 1:
            yield Evidence(
                f"{where(card)}: one of {card.gpu.dies} dies, {card.gpu.memory_mib} MiB each",
                f"/sys/bus/pci/devices/{card.device.address}/device",
                card.gpu,
            )


def narrow_link(facts: Facts) -> Seen:
    """H8: fewer lanes than the card and its slot have. A narrower slot is no fault.

    A card with several dies has a switch of its own, and that is what stands in the slot.
    """
    for name, device, gpu in named(facts):
        link = device.switch if gpu is not None and gpu.dies > 1 else device.link
        if link is None:
            continue
        width = link.value
        most = min(width.width_max, width.slot_width_max or width.width)
        if width.width < most:
            yield Evidence(f"{name}: {width.width} lanes, {most} possible", link.source, gpu)


FACT_RULES: Mapping[str, Callable[[Facts], Seen]] = {
    "D1": branch_dropped,
    "D2": open_module,
    "D3": branch_dropped_kepler,
    "D4": kernel_too_new,
    "D5": releases_differ,
    "D6": foreign_driver,
    "D7": too_old_for_stack,
    "D10": compat_in_the_way,
    "D11": branch_ended,
    "D13": no_module,
    "D15": no_uvm_node,
    "D16": no_libcuda,
    "D18": card_left_out,
    "E10": no_avx,
    "E15": no_common_driver,
    "H1": memory_without_place,
    "H7": several_dies,
    "H8": narrow_link,
    **software.FACT_RULES,
    **live.FACT_RULES,
}

# -------------------------------------------------------------------- what a log's lines name

_KEPLER_BRANCH = "470"
_IGNORED = re.compile(
    r"supported through the NVIDIA (?P<branch>\d+)\.xx\s+Legacy"
    r"|installed in this system is not supported by open"
)
Names = Mapping[str, Collection[str]]


def named_by(hit: Hit) -> dict[str, set[str]]:
    """What the lines themselves name, by the named groups of the rule's patterns."""
    found: dict[str, set[str]] = {}
    for line in hit.lines:
        for pattern in hit.rule.patterns:
            match = pattern.regex.search(line.text) if pattern.regex else None
            if match is not None and pattern.text in line.text:
                for key, value in match.groupdict().items():
                    found.setdefault(key, set()).add(value)
    return found


def fits(gpu: Gpu, rule_id: str, names: Names) -> bool:
    """Whether a line of a log may be about a card: no line is blamed on another one."""
    if rule_id == "D2":
        return not gpu.facts.open_kernel_module
    last = _last_branch(gpu)
    if "branch" in names and (last is None or last.branch not in names["branch"]):
        return False
    return "number" not in names or str(gpu.capability.number) in names["number"]


def _caused_by_known(facts: Facts, rule_id: str, names: Names) -> bool:
    """Whether a line of this machine's kernel log that says D1, D2 or D3 is about a card of the
    catalog: the facts show the same or, while no module is loaded, do not speak against it."""
    if next(FACT_RULES[rule_id](facts), None) is not None:
        return True
    if facts.driver is not None and facts.driver.version is not None:
        unknown = rule_id == "D2" and facts.driver.flavour is None
        if not unknown:
            return False
    return any(fits(card.gpu, rule_id, names) for card in cards(facts))


def contradicted(facts: Facts, hit: Hit) -> bool:
    """Whether the facts speak against what this machine's kernel log said: it was before the module
    was loaded anew, or about a card that is kept for a virtual machine or not in the catalog."""
    rule_id = hit.rule.id
    if rule_id == "S3":
        away = [device.address for device in facts.pci or () if kept_away(device)]
        return all(any(address in line.text for address in away) for line in hit.lines)
    if rule_id not in ("D1", "D2", "D3", "S1"):
        return False
    known = cards(facts)
    if not known:
        return bool(facts.pci) and not present(facts)
    if rule_id != "S1":
        return not _caused_by_known(facts, rule_id, named_by(hit))
    if facts.driver is None or facts.driver.version is None:
        return False
    if any(_caused_by_known(facts, item, {}) for item in ("D1", "D2", "D3")):
        return False
    return all(
        card.device.driver is not None and card.device.driver.value == "nvidia" for card in known
    )


def settled(facts: Facts, rule: Rule) -> bool:
    """Whether the kernel's log tells of a quarrel that this machine does not have any more, or had
    with a container: D5, while the libraries found are of the module's release."""
    if rule.id != "D5" or facts.libraries is None or facts.driver is None:
        return False
    version = facts.driver.version
    own = [item for item in facts.libraries.found if not item.compat]
    return version is not None and any(item.version == version.value for item in own)


# ------------------------------------------------------------------------------- findings

_PLUGS = {
    "eps": "an EPS (CPU) plug with 8 pins, not a PCIe one",
    "pcie": "PCIe plugs, not EPS (CPU) ones",
    "none": "no plug, its slot feeds it",
    None: "the plug that its maker names",
}


def plugs(names: Mapping[str, PowerPlug | None]) -> str:
    """Which power plug cards take, by what they are called. Both kinds have 8 pins and are wired
    the other way round, so a card of which it is not known gets no guess."""
    if not names:
        return f"Each card takes {_PLUGS[None]}"
    return "; ".join(f"{name}: {_PLUGS[plug]}" for name, plug in names.items())


def _plugs_of(facts: Facts) -> dict[str, PowerPlug | None]:
    """Of the cards that a person named; else of every GPU of the machine, known or not."""
    if facts.named:
        return {gpu.product: gpu.power_plug for gpu in facts.named}
    found: dict[str, PowerPlug | None] = {}
    for device in facts.pci or ():
        if device.is_gpu:
            try:
                gpu = catalog.find_gpu(device.pci_id)
            except CatalogError:
                found[f"GPU {device.pci_id}"] = None
            else:
                found[gpu.product] = gpu.power_plug
    return found


def _together(gpus: Iterable[Gpu]) -> dict[str, str]:
    """What is said of all cards of a machine: their names as commands take them, and the targets
    that are compiled for them, as Nix and as CMake list these."""
    named = list(dict.fromkeys(gpus))
    found = sorted({gpu.capability for gpu in named})
    return {
        "cards": " ".join(gpu.name for gpu in named),
        "capabilities": " ".join(f'"{item}"' for item in found),
        "numbers": " ".join(f'"{item.number}"' for item in found),
        "cmake": ";".join(str(item.number) for item in found),
    }


@cache
def windows(gpu: Gpu) -> dict[str, str]:
    """What the names in braces of ``doctor.toml`` stand for, for one card."""
    last = _last_branch(gpu)
    toolkits = [
        item
        for item in catalog.toolkits().values()
        if item.capability_min <= gpu.capability <= item.capability_max
    ]
    return {
        "gpu": gpu.product,
        "card": gpu.name,
        "capability": str(gpu.capability),
        "number": str(gpu.capability.number),
        "branch": last.branch if last else "?",
        "driver": last.latest if last else "?",
        "nixos_driver": (last.nixos_attribute if last else None) or "production",
        "debian_driver": last.debian_driver if last else "?",
        "debian_libcuda": last.debian_libcuda if last else "?",
        "toolkit": catalog.dotted(toolkits[-1].version) if toolkits else "?",
        "nix_toolkit": "{}_{}".format(*toolkits[-1].version) if toolkits else "?",
        "gcc": str(toolkits[-1].gcc_max) if toolkits else "?",
        "open": "true" if gpu.facts.open_kernel_module else "false",
        "flavour": "open" if gpu.facts.open_kernel_module else "proprietary",
        "plugs": plugs({}),
        **_together([gpu]),
    }


def fill(text: str, names: Mapping[str, str]) -> str:
    """A text with its names in braces filled in; other braces, as of Nix, stay."""
    return re.sub(r"\{([a-z_]+)\}", lambda match: names.get(match[1], match[0]), text)


def _age(gpu: Gpu) -> tuple[bool, Capability, str]:
    return not gpu.legacy, gpu.capability, gpu.name


def finding(
    facts: Facts,
    rule: Rule,
    evidence: Iterable[Evidence],
    left_out: int = 0,
    said: Names | None = None,
    severity: Severity | None = None,
) -> Finding:
    """A finding with its cause and fix for this machine: the oldest legacy card that the evidence
    is about; where it names none, the oldest of those that it may be about; else an example.

    Args:
        said: what the lines of a log name, see :func:`named_by`.
    """
    said = said or {}
    evidence = tuple(evidence)
    known = tuple(item.gpu for item in evidence if item.gpu is not None)
    known = known or facts.named or tuple(card.gpu for card in cards(facts))
    able = [gpu for gpu in known if fits(gpu, rule.id, said)]
    chosen = min(able, key=_age, default=None)
    example = catalog.find_gpu(rule.card)
    if not fits(example, rule.id, said):
        others = [gpu for gpu in catalog.gpus() if fits(gpu, rule.id, said)]
        example = min(others, key=_age, default=example)
    names = dict(windows(chosen or example))
    if "gcc" in said:
        names["gcc"] = min(said["gcc"], key=int)
    system = facts.system
    fix = rule.fix_for(
        system.kind.value if system else "other",
        bool(system and system.container),
        bool(chosen and chosen.facts.architecture == "Kepler"),
    )
    about_machine = {"plugs": plugs(_plugs_of(facts))}
    if known and chosen is not None:
        all_known = facts.named or tuple(card.gpu for card in cards(facts)) or known
        about_machine |= _together(all_known)
    spoken = tuple(fill(text, about_machine) for text in (rule.cause, *fix))
    filled = tuple(fill(text, names) for text in spoken)
    of_line = tuple(
        fill(text, {key: names[key] for key in said if key in names}) for text in spoken
    )
    return Finding(
        rule=rule,
        severity=severity or rule.severity,
        confidence=rule.confidence,
        evidence=evidence,
        cause=filled[0],
        fix=filled[1:],
        left_out=left_out,
        example=names["gpu"] if filled != of_line and chosen is None else None,
    )


def judge(facts: Facts) -> list[Finding]:
    """Every finding that the facts themselves show, in the order of the catalog's areas."""
    found = []
    for rule_id, look in FACT_RULES.items():
        evidence = tuple(dict.fromkeys(look(facts)))
        if evidence:
            rule = find_rule(rule_id)
            said: dict[str, set[str]] = {}
            for key, value in (pair for item in evidence for pair in item.said):
                said.setdefault(key, set()).add(value)
            found.append(finding(facts, rule, evidence, 0, said, rule.severity_machine))
    return found


def judge_log(facts: Facts, hits: Iterable[Hit], source: str) -> list[Finding]:
    """Every finding that a log shows. The facts only say for which machine the fix is."""
    return [
        finding(
            facts,
            hit.rule,
            (Evidence(line.text, f"{source}, line {line.number}") for line in hit.lines),
            hit.count - len(hit.lines),
            named_by(hit),
        )
        for hit in hits
    ]
