"""A model, GPUs and settings to a plan: what fits, what is the largest that does, and what else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from legacy_cuda.catalog import Gpu, gpus
from legacy_cuda.catalog.estimates import Overhead
from legacy_cuda.catalog.models import Mix, formats, mixes
from legacy_cuda.planner.mixes import format_of
from legacy_cuda.planner.model import Model
from legacy_cuda.planner.placement import CELLS, Placement, Settings, place
from legacy_cuda.planner.speed import Speed, speed_of

MIB = 1 << 20
CONTEXT_MOST = 1 << 20  # what a search for the largest context goes up to


@dataclass(frozen=True)
class Device:
    """One GPU as programs see it: a die. Sizes in MiB.

    ``total_mib`` is what can be used before any program runs; ``total_known`` False where no log
    says it and a share of the memory as sold is counted with. ``display_mib`` is taken by a screen.
    """

    gpu: Gpu
    die: int
    total_mib: int
    total_known: bool
    display_mib: int
    overhead: Overhead

    @property
    def name(self) -> str:
        return f"{self.gpu.name} die {self.die + 1}" if self.gpu.dies > 1 else self.gpu.name

    @property
    def free(self) -> int:
        """Bytes that are free once a program has opened the GPU."""
        return max(0, self.total_mib - self.display_mib - self.overhead.likely_mib) * MIB

    @property
    def room(self) -> int:
        """Bytes for a model that are there in any case."""
        return max(0, self.total_mib - self.display_mib - self.overhead.most_mib) * MIB


@dataclass(frozen=True)
class Result:
    """A model on devices with settings. ``verdict``: fits, tight (only if the overhead is what it
    likely is), or not."""

    model: Model
    settings: Settings
    devices: tuple[Device, ...]
    placement: Placement
    problem: str = ""

    @property
    def spare(self) -> tuple[int, ...]:
        """Bytes that stay free on each device; negative: that are missing."""
        pairs = zip(self.devices, self.placement.gpus, strict=True)
        return tuple(device.free - load.bytes for device, load in pairs)

    @property
    def verdict(self) -> str:
        if self.problem:
            return "not"
        pairs = list(zip(self.devices, self.placement.gpus, strict=True))
        if all(load.bytes <= device.room for device, load in pairs):
            return "fits"
        return "tight" if min(self.spare) >= 0 else "not"

    @property
    def fits(self) -> bool:
        return self.verdict != "not"


@dataclass(frozen=True)
class Option:
    """Something else that fits: what it is, and what it costs."""

    what: str
    cost: str
    result: Result


@dataclass(frozen=True)
class Plan:
    """``result`` is what was asked for. ``context_most`` is the largest context per conversation
    that fits, 0 if none does, ``best`` the best quantisation that fits; ``options`` what else
    does."""

    result: Result
    speed: Speed | None
    context_most: int
    best: Result | None
    mixes: tuple[Result, ...]
    options: tuple[Option, ...]


def devices(
    cards: Sequence[Gpu],
    overhead: Overhead,
    ecc: bool | None = None,
    display: Sequence[int] = (),
) -> tuple[Device, ...]:
    """The GPUs of cards, die by die.

    Args:
        cards: in the order in which programs number them.
        overhead: of the CUDA that the stack brings.
        ecc: whether it is switched on; None: as sold, on where a card has it.
        display: MiB that screens take, for each card in turn.
    """
    found = []
    for number, card in enumerate(cards):
        on = bool(card.ecc) if ecc is None else ecc and bool(card.ecc)
        known = card.usable_mib_ecc_on if on else card.usable_mib_ecc_off
        total = known or int(card.memory_mib * _usual_share(card, on))
        shown = display[number] if number < len(display) else 0
        for die in range(card.dies):
            used = shown if die == 0 else 0
            found.append(Device(card, die, total, known is not None, used, overhead))
    return tuple(found)


def _usual_share(card: Gpu, on: bool) -> float:
    """The smallest share of memory that is left on a card of the same kind of memory, of those
    whose logs are in the catalog."""
    shares = [
        usable / other.memory_mib
        for other in gpus()
        if other.memory_type == card.memory_type
        and (usable := other.usable_mib_ecc_on if on else other.usable_mib_ecc_off)
    ]
    if shares:
        return min(shares)
    return 0.92 if on else 0.97  # no log of such a card: below every share in the catalog


def try_out(model: Model, settings: Settings, where: tuple[Device, ...]) -> Result:
    """Place a model."""
    capabilities = [device.gpu.capability for device in where]
    found = place(model, settings, [device.free for device in where], capabilities)
    problem = ""
    if settings.values.quantised and not found.flash:
        problem = (
            "a quantised cache of values needs flash attention, which is off here; "
            "switch it on, or keep values in f16"
        )
    return Result(model, settings, where, found, problem)


def balanced(model: Model, settings: Settings, where: tuple[Device, ...]) -> Result:
    """Place a model; if it does not fit as llama.cpp would split it by itself, move layers to
    where there is room.

    The output, its logits and copies for several batches weigh more on some GPUs than on others,
    so a split by free memory alone can fail where another one fits.
    """
    result = try_out(model, settings, where)
    if result.fits or result.problem or len(where) < 2 or settings.split is not None:
        return result
    count = model.shape.layers + 1
    if settings.layers is not None:
        count = min(count, settings.layers)
    shares = [result.placement.places.count(number) for number in range(len(where))]
    seen = set()
    for _ in range(4 * count):
        spare = result.spare
        if tuple(shares) in seen or result.fits:
            break
        seen.add(tuple(shares))
        order = sorted(range(len(where)), key=lambda number: spare[number])
        worst, best = order[0], order[-1]
        if shares[worst] <= 0 or spare[best] <= 0:
            break
        shares[worst] -= 1
        shares[best] += 1
        changed = replace(settings, split=tuple(float(share) for share in shares))
        result = try_out(model, changed, where)
    return result if result.fits else try_out(model, settings, where)


def largest_context(
    model: Model, settings: Settings, where: tuple[Device, ...], most: int = CONTEXT_MOST
) -> int:
    """The largest context per conversation that fits, a multiple of 256 cells; 0: none does.

    It is not larger than what the model was made for, where that is known.
    """
    limit = min(most, model.shape.context or most)

    def fits(context: int) -> bool:
        return balanced(model, replace(settings, context=context), where).fits

    low, high = 0, max(1, limit // CELLS)
    if fits(high * CELLS):
        return high * CELLS
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * CELLS):
            low = middle
        else:
            high = middle
    return low * CELLS


def requantised(model: Model, mix: Mix) -> Model:
    """The same model in another mix, as llama-quantize would make it."""
    tied = "output.weight" not in model.by_name
    tensors = tuple(
        replace(
            tensor,
            format=format_of(mix, tensor.name, tensor.dimensions, model.shape, tied),
        )
        for tensor in model.tensors
    )
    return replace(model, quantisation=mix.name, tensors=tensors, bytes_on_disk=0)


def _mixes(model: Model) -> Iterator[Mix]:
    """The mixes to choose from: of a model that was made in MXFP4 no other has anything to add."""
    native = model.shape.architecture == "gpt-oss"
    for mix in mixes().values():
        if not mix.named_only and (mix.name == "MXFP4") == native:
            yield mix


def best_mix(model: Model, settings: Settings, where: tuple[Device, ...]) -> Model | None:
    """The model in the best mix that fits; None: none does."""
    for mix in _mixes(model):
        found = requantised(model, mix)
        if balanced(found, settings, where).fits:
            return found
    return None


def most_layers(model: Model, settings: Settings, where: tuple[Device, ...]) -> int:
    """The most layers, the output counted as one, that fit on the GPUs; the rest is the host's."""
    low, high = 0, model.shape.layers + 1
    while low < high:
        middle = (low + high + 1) // 2
        if balanced(model, replace(settings, layers=middle), where).fits:
            low = middle
        else:
            high = middle - 1
    return low


def make(model: Model, settings: Settings, where: tuple[Device, ...]) -> Plan:
    """The whole plan: what was asked for, and around it."""
    result = balanced(model, settings, where)
    most = largest_context(model, settings, where)
    tried = tuple(balanced(requantised(model, mix), settings, where) for mix in _mixes(model))
    best = next((item for item in tried if item.fits), None)
    speed = speed_of(model, result.settings, result.placement, [item.gpu for item in where])
    return Plan(result, speed, most, best, tried, tuple(_options(result, most, best)))


def _options(asked: Result, most: int, best: Result | None) -> Iterator[Option]:
    """What else fits, the nearest first, if what was asked for does not."""
    if asked.fits:
        return
    model, settings, where = asked.model, asked.settings, asked.devices
    small = formats()["Q8_0"]
    if not asked.problem and most >= CELLS:
        result = balanced(model, replace(settings, context=most), where)
        yield Option(f"a context of {most} tokens", "shorter conversations", result)
    if asked.problem or settings.keys != small or settings.values != small:
        changed = replace(settings, keys=small, values=small, flash=True)
        result = balanced(model, changed, where)
        if result.fits:
            yield Option("a KV cache of q8_0", "half the cache, with flash attention", result)
    if best is not None and best.model.bytes < model.bytes:
        yield Option(
            f"quantised as {best.model.quantisation}",
            f"{best.model.bytes / model.bytes:.0%} of the bytes; some quality",
            best,
        )
    if settings.parallel > 1:
        result = balanced(model, replace(settings, parallel=1), where)
        if result.fits:
            yield Option("one conversation at a time", "others wait", result)
    layers = most_layers(model, replace(settings, split=None), where)
    if layers:
        result = balanced(model, replace(settings, layers=layers), where)
        yield Option(
            f"{layers} of {model.shape.layers + 1} layers on the GPUs",
            "the host computes the rest from its own memory, several times slower",
            result,
        )
