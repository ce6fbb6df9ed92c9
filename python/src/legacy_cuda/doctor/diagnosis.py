"""Findings in order: causes first, under each what follows from it; and what is fine. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from legacy_cuda.catalog.doctor import Rule, rules_of
from legacy_cuda.doctor import live, logs
from legacy_cuda.doctor.cards import cards, present, strangers, where
from legacy_cuda.doctor.facts import Facts, Failure
from legacy_cuda.doctor.rules import Finding, contradicted, judge, judge_log, settled

_WEIGHT = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Cause:
    """A finding that nothing else explains, and the findings that it explains."""

    finding: Finding
    follows: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong, gravest first; what is fine, in words; what could not be found out; what is
    there and was not judged; at what the GPUs are now."""

    causes: tuple[Cause, ...]
    fine: tuple[str, ...]
    failures: tuple[Failure, ...]
    not_judged: tuple[str, ...] = ()
    now: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every finding, causes before what follows from them."""
        return tuple(item for cause in self.causes for item in (cause.finding, *cause.follows))

    @property
    def verdict(self) -> str:
        """``errors``, ``warnings`` or ``fine``."""
        severities = {finding.severity for finding in self.findings}
        if "error" in severities:
            return "errors"
        return "warnings" if "warning" in severities else "fine"


def diagnose(facts: Facts) -> Diagnosis:
    """A machine's findings, from its facts and from what its logs say."""
    found = judge(facts)
    if facts.kernel is not None and facts.kernel.log is not None:
        log = facts.kernel.log
        found += [
            replace(item, severity="warning") if settled(facts, item.rule) else item
            for item in _of_lines(facts, log.value, log.source, rules_of("kernel"))
        ]
    for journal in facts.journals or ():
        found += _of_lines(facts, journal.lines, journal.source, rules_of("program"))
    return Diagnosis(
        group(found),
        tuple(_fine(facts, found)),
        facts.failures,
        tuple(_not_judged(facts)),
        tuple(live.summary(facts)),
    )


def _of_lines(
    facts: Facts, lines: Iterable[str], source: str, wanted: Sequence[Rule]
) -> list[Finding]:
    """What lines of this machine's own logs show, if the machine does not speak against it."""
    said = logs.scan(("".join(f"{line}\n" for line in lines),), wanted)
    hits = [hit for hit in said.hits if not contradicted(facts, hit)]
    return [
        replace(item, evidence=tuple(replace(seen, source=source) for seen in item.evidence))
        for item in judge_log(facts, hits, source)
    ]


def diagnose_log(facts: Facts, scan: logs.Scan, source: str) -> Diagnosis:
    """A log's findings. The facts only say for which machine the fixes are."""
    return Diagnosis(group(judge_log(facts, scan.hits, source)), (), ())


def group(findings: Iterable[Finding]) -> tuple[Cause, ...]:
    """One finding a rule; each under the cause that explains it, causes by severity.

    Where several findings explain one, the first that its rule names; causes are followed up to one
    that nothing explains.
    """
    merged: dict[str, Finding] = {}
    for item in findings:
        known = merged.get(item.rule.id)
        if known is None:
            merged[item.rule.id] = item
        else:
            merged[item.rule.id] = replace(
                known,
                severity=min(known.severity, item.severity, key=_WEIGHT.__getitem__),
                evidence=tuple(dict.fromkeys(known.evidence + item.evidence)),
                left_out=known.left_out + item.left_out,
            )
    under: dict[str, list[Finding]] = {}
    roots: list[Finding] = []
    for item in merged.values():
        root = _root(item.rule.id, merged)
        if root == item.rule.id:
            roots.append(item)
        else:
            under.setdefault(root, []).append(item)
    roots.sort(key=lambda item: _WEIGHT[item.severity])
    return tuple(Cause(item, tuple(under.get(item.rule.id, ()))) for item in roots)


def _root(rule_id: str, merged: dict[str, Finding]) -> str:
    """The catalog's ``follows`` lead in no circle; a test holds it to that."""
    above = next((item for item in merged[rule_id].rule.follows if item in merged), None)
    return rule_id if above is None else _root(above, merged)


def changes(before: Diagnosis, after: Diagnosis) -> tuple[str, ...]:
    """What is new, gone or otherwise between two looks at a machine, a line each."""
    old, new = ({item.rule.id: item for item in one.findings} for one in (before, after))
    lines = []
    for rule_id, item in new.items():
        texts = [seen.text for seen in item.evidence]
        known = [seen.text for seen in old[rule_id].evidence] if rule_id in old else []
        if rule_id not in old:
            lines.append(f"new: {item.severity} {rule_id}: {item.rule.title}: {texts[0]}")
        elif texts != known:
            shown = next((text for text in texts if text not in known), texts[0])
            lines.append(f"changed: {item.severity} {rule_id}: {item.rule.title}: {shown}")
    lines += [
        f"gone: {item.severity} {rule_id}: {item.rule.title}"
        for rule_id, item in old.items()
        if rule_id not in new
    ]
    for word, one, other in (("now fine", after, before), ("no longer fine", before, after)):
        lines += [f"{word}: {text}" for text in one.fine if text not in other.fine]
    lines += [
        f"not seen: {item.probe}: {item.what}"
        for item in after.failures
        if item not in before.failures
    ]
    return tuple(lines)


def _fine(facts: Facts, found: list[Finding]) -> Iterable[str]:
    """What was looked at and is as it should be."""
    bad = {item.rule.id for item in found}
    known = cards(facts)
    if facts.pci is None or (not known and any(item.probe == "pci" for item in facts.failures)):
        return
    if not known:
        elsewhere = facts.system is not None and facts.system.platform is not None
        asked = facts.nvml is not None and facts.nvml.value.devices
        if not any(device.is_gpu for device in facts.pci) and not elsewhere and not asked:
            yield "no NVIDIA GPU among the PCI devices: nothing to examine"
        return
    said = [seen.text for item in found if item.severity == "error" for seen in item.evidence]
    for card in known:
        slot = card.device.address.rpartition(".")[0]  # NVRM names no function
        if not any(slot in text for text in said):
            yield where(card)
    driver = facts.driver
    bound = all(item.device.driver and item.device.driver.value == "nvidia" for item in known)
    wrong = {"D1", "D2", "D3", "D6", "D7", "E15", "H2", "S1", "S3", "S5"}
    if driver and driver.version and bound and not bad & wrong:
        flavour = f", {driver.flavour.value} module" if driver.flavour else ""
        yield f"driver {driver.version.value}{flavour}: serves the cards"
    if driver and driver.version and facts.libraries and not bad & {"D5", "D10", "D16"}:
        own = [item for item in facts.libraries.found if item.version == driver.version.value]
        if own:
            yield f"libcuda {own[0].version} in {own[0].path.rpartition('/')[0]}"
    if facts.nodes and "nvidia-uvm" in facts.nodes.names.value:
        yield "device nodes, nvidia-uvm among them"
    links = [card.device.link.value for card in known if card.device.link]
    if links and "H8" not in bad:
        yield "PCIe lanes: " + ", ".join(f"{link.width} of {link.width_max}" for link in links)
    if known and "H1" not in bad and all(card.device.regions for card in known):
        yield "the cards' memory is mapped"
    judged = {seen.source for item in found for seen in item.evidence}
    for code in facts.code or () if any(card.gpu.legacy for card in known) else ():
        if code.source not in judged:
            yield f"{code.package} {code.version} in {code.site}: has code for the cards"
    if facts.cpu and facts.cpu.avx.value:
        yield "the CPU has AVX2" if facts.cpu.avx2.value else "the CPU has AVX"


def _not_judged(facts: Facts) -> Iterable[str]:
    """What is there and was left alone, so that nobody takes silence for praise."""
    for device in strangers(facts):
        driver = device.driver.value if device.driver else "none"
        yield (
            f"GPU {device.pci_id} at {device.address} is not in the catalog: which driver it needs "
            f"is not known here (bound to it: {driver})"
        )
    seen = {device.address for device in present(facts)}
    for device in facts.pci or ():
        if device.is_gpu and device.address not in seen and device.driver:
            yield (
                f"GPU {device.pci_id} at {device.address} is kept for a virtual machine "
                f"({device.driver.value})"
            )
    platform = facts.system.platform if facts.system else None
    if platform is not None and platform.value == "WSL2":
        yield f"WSL2 ({platform.source}): the GPU's driver is that of Windows, not seen from here"
    elif platform is not None:
        yield (
            f"{platform.value} ({platform.source}): its GPU is part of the chip, and its driver "
            "comes with JetPack; neither is looked at"
        )
