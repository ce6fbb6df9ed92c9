"""From what was measured to a verdict. Pure: no GPU, clock or file.

A verdict is ``failed`` (wrong results, or the GPU gave up), ``degraded`` (right results, but slower
than the card should be, or with errors that were corrected), ``incomplete`` (something could not be
tested, most likely because other programs have the memory), ``healthy``, or ``right``: the results
are right and the rates were not compared, because the catalog has no figures for the card or older
code was replayed on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from legacy_cuda import sizes
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import Gpu

State = Literal["failed", "degraded", "incomplete", "right", "healthy"]
Kind = Literal[
    "wrong-results",
    "bad-memory",
    "driver-error",
    "hang",
    "not-tested",
    "throttled",
    "slow-memory",
    "slow-arithmetic",
    "link-degraded",
    "ecc-errors",
    "less-memory",
]

# Shares of the catalog's figures below which something is wrong. They are judgement, not measured
# on old cards: GDDR5 with ECC is expected to give 0.65 to 0.85 of its nominal bandwidth in a copy,
# and a card at its base clock runs at 0.65 to 0.85 of its highest (K80 562 of 824 MHz, P40 1303 of
# 1531).
BANDWIDTH_LEAST = 0.60
CLOCK_LEAST = 0.65
ARITHMETIC_LEAST = 0.60  # of the figure at the clock that was measured
ARITHMETIC_LEAST_KEPLER = 0.50  # 128 of 192 without two instructions at once, and some less
MEMORY_LEAST = 0.85  # 15/16 is left with ECC in GDDR5, and the driver keeps some
TESTED_LEAST = 0.80  # of the memory, or of what --memory asks for
LINK_LEAST = 0.70  # of the link's raw rate, less its encoding
LINK_FLOOR = 5.0  # 10^9 bytes/s: 3.0 with 8 lanes or 2.0 with 16 give a little more

ECC_CORRECTED_MOST = 100
"""Corrected errors since the driver was loaded that are no reason to doubt a card. Our choice: a
few over months are what ECC is for."""

LOW_POWER_W = 75
"""Cards of so many watts cannot keep their highest clock under load: P4, M4. Our choice."""

HOT_LEAST = 0.5
"""Seconds with a clock lowered for heat that are told. Our choice."""

LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}
"""10^9 bytes/s of one lane of PCI Express, by generation, encoding taken off (PCI-SIG)."""

DP4A_PER_FLOP = 4
"""A dot product of four bytes counts 8 where a multiply-add counts 2, at the same rate: 47 TOPS and
12 TFLOPS in the P40's datasheet, 22 and 5.5 in the P4's."""

# The steps whose failure is the memory's.
_MEMORY = ("memory", "L2 cache", "bandwidth")
_USUAL = (
    "; the usual causes are heat and the power limit; with a power limit that was lowered, or on a "
    "card of 50 to 75 W, this is expected"
)
_RATES = {"fp32": "fp32 rate", "fp64": "fp64 rate", "fp16": "fp16 rate", "dp4a": "dp4a rate"}


@dataclass(frozen=True)
class Live:
    """What the driver's management library said; None: not known.

    ``hot_s`` is for how many seconds of the run the clock was lowered for heat. Link generations
    and widths are those now and the most that card and slot can do. ECC errors are counted since
    the driver was loaded. ``temperature`` is in degrees C, after the run.
    """

    hot_s: float | None = None
    link_generation: int | None = None
    link_generation_most: int | None = None
    link_width: int | None = None
    link_width_most: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    temperature: int | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or not as fast as it should be."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Comparison:
    """A rate beside the catalog's. ``unit`` is GB/s, TFLOP/s or TOP/s."""

    name: str
    measured: float
    nominal: float | None
    unit: str

    @property
    def share(self) -> float | None:
        return self.measured / self.nominal if self.nominal else None


@dataclass(frozen=True)
class Verdict:
    state: State
    findings: tuple[Finding, ...]
    rates: tuple[Comparison, ...]


def judge(
    device: dict[str, Any],
    steps: list[dict[str, Any]],
    card: Gpu | None,
    replayed: bool = False,
    live: Live | None = None,
) -> Verdict:
    """The verdict on one GPU.

    Args:
        device: what the driver says of it (:class:`~legacy_cuda.verify.driver.Device`, as a dict).
        steps: what :func:`~legacy_cuda.verify.run.gpu` returned.
        card: the catalog's row; None for a card that is not in it.
        replayed: whether an older capability's code ran: its rates are nobody's.
        live: what was read beside the measurements.
    """
    facts = {step["name"]: step["facts"] for step in steps if step["outcome"] == "passed"}
    wrong = [finding for step in steps for finding in _of_step(step)]
    untested = [finding for step in steps for finding in _untested(device, step)]
    nominal = {} if replayed else nominal_rates(device, card)
    rates = compare(facts, nominal)
    slow: list[Finding] = []
    if not replayed:
        slow += _clock(device, facts, card, live)
        slow += _slow(device, facts, card, rates)
        slow += _link(facts, live)
        slow += _less_memory(device, card)
    slow += _ecc(live)
    state: State = "healthy" if any(item.nominal for item in rates) else "right"
    if wrong:
        state = "failed"
    elif slow:
        state = "degraded"
    elif untested:
        state = "incomplete"
    return Verdict(state, (*wrong, *slow, *untested), rates)


def nominal_rates(device: dict[str, Any], card: Gpu | None) -> dict[str, float]:
    """What the card should reach: GB/s for ``memory``, else 10^12 operations/s; as far as known.

    The bandwidth is the catalog's. The rate of fp32 is that of the chip's multiprocessors at their
    highest clock, as the driver tells them; the catalog's where it does not know the capability's
    multiply-adds per clock. fp64 follows by the ratio that the driver tells: chips of one
    capability differ.
    """
    found: dict[str, float] = {}
    if card is None:
        return found
    if card.bandwidth_gb_s is not None:
        found["memory"] = card.bandwidth_gb_s
    fp32 = card.fp32_tflops
    each = card.facts.fp32_per_multiprocessor
    if each is not None and device["multiprocessors"] and device["clock"]:
        fp32 = 2 * each * device["multiprocessors"] * device["clock"] / 1e6
    if fp32 is not None:
        found["fp32"] = fp32
        if device["fp32_to_fp64"] > 0:
            found["fp64"] = fp32 / device["fp32_to_fp64"]
        ratio = card.facts.fp16_fp32_ratio
        if ratio is not None and ratio != "none":
            halves, singles = ratio.split(":")
            found["fp16"] = fp32 * int(halves) / int(singles)
        if card.facts.dp4a:
            found["dp4a"] = fp32 * DP4A_PER_FLOP
    return found


def compare(facts: dict[str, dict[str, Any]], nominal: dict[str, float]) -> tuple[Comparison, ...]:
    """Every rate that was measured, beside the nominal one."""
    rows = []
    if "bandwidth" in facts:
        for kind in ("copy", "triad"):
            measured = facts["bandwidth"][f"{kind}_gb_s"]
            rows.append(Comparison(f"memory, {kind}", measured, nominal.get("memory"), "GB/s"))
    for name, step in _RATES.items():
        if step in facts:
            unit = "TOP/s" if name == "dp4a" else "TFLOP/s"
            measured = facts[step]["tera_per_s"]
            rows.append(Comparison(name, measured, nominal.get(name), unit))
    if "link" in facts:
        for name, key in (("to the GPU", "to_gpu_gb_s"), ("from the GPU", "from_gpu_gb_s")):
            rows.append(Comparison(f"link, {name}", facts["link"][key], None, "GB/s"))
    return tuple(rows)


def _of_step(step: dict[str, Any]) -> list[Finding]:
    name, why = step["name"], step.get("why", "")
    if step["outcome"] == "failed":
        if name in _MEMORY and "bits" in step["facts"]:
            facts = step["facts"]
            text = f"{facts['errors']} words of memory came back wrong, in bits {facts['bits']}"
            if facts.get("bytes"):
                text += f" (of {sizes.mib(facts['bytes'])} MiB tested)"
            return [Finding("bad-memory", text)]
        return [Finding("wrong-results", f"{name}: {why}")]
    if step["outcome"] == "error":
        return [Finding("driver-error", f"{name}: {why}")]
    if step["outcome"] == "hung":
        return [Finding("hang", f"{name}: {why}")]
    return []


def _untested(device: dict[str, Any], step: dict[str, Any]) -> list[Finding]:
    name = step["name"]
    if name == "memory" and step["outcome"] == "passed":
        tested, limit = step["facts"]["bytes"], step["facts"]["limit"]
        if not tested:
            return [Finding("not-tested", "memory: other programs have all of it")]
        asked = min(device["memory"], limit or device["memory"])
        if tested < TESTED_LEAST * asked:
            text = f"memory: only {sizes.mib(tested)} of {sizes.mib(asked)} MiB could be tested"
            return [Finding("not-tested", text)]
    if step["outcome"] == "not run" and "OUT_OF_MEMORY" in step["why"]:
        return [Finding("not-tested", f"{name}: other programs have the GPU's memory")]
    return []


def _clock(
    device: dict[str, Any], facts: dict[str, dict[str, Any]], card: Gpu | None, live: Live | None
) -> list[Finding]:
    hot = live.hot_s if live and live.hot_s and live.hot_s >= HOT_LEAST else None
    at = f" ({live.temperature} °C after it)" if live and live.temperature is not None else ""
    sustained = facts.get("fp32 rate", {}).get("sustained_clock_mhz", 0.0)
    highest = device["clock"]
    slowed = bool(sustained and highest and sustained < CLOCK_LEAST * highest)
    if card is not None and card.tdp_w is not None and card.tdp_w <= LOW_POWER_W:
        slowed = False
    if not slowed and hot is None:
        return []
    text = "the driver lowered the clock"
    if sustained:
        text = f"the clock is at {sustained:.0f} of {highest:.0f} MHz under load"
    text += at
    because = _USUAL if hot is None else f": for heat, {hot:.1f} s of the run"
    return [Finding("throttled", text + because)]


def _slow(
    device: dict[str, Any],
    facts: dict[str, dict[str, Any]],
    card: Gpu | None,
    rates: tuple[Comparison, ...],
) -> list[Finding]:
    found = []
    kepler = card is not None and card.facts.architecture == "Kepler"
    least = ARITHMETIC_LEAST_KEPLER if kepler else ARITHMETIC_LEAST
    memory = [rate for rate in rates if rate.name.startswith("memory") and rate.share is not None]
    best = max(memory, key=lambda rate: rate.measured, default=None)
    if best is not None and best.share is not None and best.share < BANDWIDTH_LEAST:
        text = f"{best.measured:.0f} of {best.nominal:.0f} GB/s in a {best.name.split()[-1]}"
        found.append(Finding("slow-memory", text))
    for rate in rates:
        step = facts.get(_RATES.get(rate.name, ""), {})
        clock = step.get("clock_mhz", 0.0)
        if rate.share is None or not clock or not device["clock"]:
            continue
        slowed = min(1.0, clock / device["clock"])
        if rate.share < least * slowed:
            text = (
                f"{rate.name}: {rate.measured:.2f} of {rate.nominal:.2f} {rate.unit} with the "
                f"clock at {clock:.0f} of {device['clock']:.0f} MHz; other programs on the GPU?"
            )
            found.append(Finding("slow-arithmetic", text))
    return found


def _link(facts: dict[str, dict[str, Any]], live: Live | None) -> list[Finding]:
    measured = facts.get("link")
    worst = min(measured["to_gpu_gb_s"], measured["from_gpu_gb_s"]) if measured else None
    if live is not None and live.link_width and live.link_generation:
        now = f"PCIe {live.link_generation}.0 x{live.link_width}"
        width = live.link_width_most
        # At rest the generation falls, and the width stays: of the generation only the rate tells.
        generation = live.link_generation_most or live.link_generation
        most = f"PCIe {generation}.0 x{width or live.link_width}"
        if width and live.link_width < width:
            return [Finding("link-degraded", f"the link runs at {now}, card and slot do {most}")]
        raw = LANE.get(generation, 0.0) * live.link_width
        if worst is not None and worst < LINK_LEAST * raw:
            text = f"{worst:.1f} GB/s where card and slot do {most}, which carries {raw:.1f}"
            return [Finding("link-degraded", text)]
        return []
    if worst is not None and worst < LINK_FLOOR:
        text = f"{worst:.1f} GB/s to or from the GPU: fewer lanes or an older slot than PCIe 3.0 x8"
        return [Finding("link-degraded", text)]
    return []


def _less_memory(device: dict[str, Any], card: Gpu | None) -> list[Finding]:
    if card is None or device["memory"] >= MEMORY_LEAST * (card.memory_mib << 20):
        return []
    text = f"{sizes.mib(device['memory'])} MiB, where a {card.product} has {card.memory_mib} MiB"
    return [Finding("less-memory", text)]


def _ecc(live: Live | None) -> list[Finding]:
    if live is None:
        return []
    corrected, uncorrected = live.ecc_corrected or 0, live.ecc_uncorrected or 0
    if not uncorrected and corrected <= ECC_CORRECTED_MOST:
        return []
    counts = ((uncorrected, "uncorrected"), (corrected, "corrected"))
    words = [f"{count} {kind}" for count, kind in counts if count]
    text = f"{' and '.join(words)} errors of memory since the driver was loaded"
    return [Finding("ecc-errors", text)]


def label(device: dict[str, Any], steps: list[dict[str, Any]], replay: Capability | None) -> str:
    """What may be said of the results: ``verified on Tesla P40``, ``replayed at 6.1 on ...``."""
    name = device["name"]
    ran = [step for step in steps if step["name"] != "start"]
    if not any(step["outcome"] in ("passed", "failed") for step in ran):
        return "not run"
    if any(step["outcome"] in ("failed", "error", "hung") for step in steps):
        return f"failed on {name}" if replay is None else f"failed at {replay} on {name}"
    part = ", in part" if any(_untested(device, step) for step in steps) else ""
    return (f"verified on {name}" if replay is None else f"replayed at {replay} on {name}") + part
