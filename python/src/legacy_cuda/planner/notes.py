"""What a person should know of a plan: where it is not sure, and what to set."""

from __future__ import annotations

from legacy_cuda.capability import Capability
from legacy_cuda.planner.plan import Plan


def notes_of(plan: Plan, engine: str) -> list[str]:
    """Sentences, the most important first."""
    result = plan.result
    settings, shape, where = result.settings, result.model.shape, result.devices
    notes = list(result.model.notes)
    if not result.placement.exact:
        notes.append(
            f"the order of operations of {shape.architecture} is not known here: its compute "
            "buffers are an estimate"
        )
    if settings.split is not None and result.fits and len(where) > 1:
        share = ",".join(f"{value:g}" for value in settings.split)
        notes.append(f"layers are split as --tensor-split {share}")
    if len(where) > 1:
        names = ", ".join(device.name for device in where)
        notes.append(
            f"GPUs are numbered as named: {names}. CUDA_DEVICE_ORDER=PCI_BUS_ID makes programs "
            "number them by slot; CUDA_VISIBLE_DEVICES sets the order"
        )
    if any(device.gpu.dies > 1 for device in where):
        notes.append("each die of a card is a GPU of its own; a model is split over both by layers")
    unknown = sorted({device.gpu.name for device in where if not device.total_known})
    if unknown:
        notes.append(
            f"how much memory {', '.join(unknown)} leaves to programs was not read from a log; the "
            "smallest share of cards with such memory is counted with"
        )
    for device, spare in zip(where, result.spare, strict=True):
        slow = device.gpu.slow_mib
        if 0 <= spare < slow << 20:
            notes.append(
                f"the last {slow} MiB of a {device.gpu.product} are much slower than the rest, and "
                "are in use here: with less it is faster than estimated"
            )
    if shape.context and settings.context > shape.context:
        notes.append(f"the model was made for {shape.context} tokens")
    lowest = min((device.gpu.capability for device in where), default=Capability(9, 0))
    if lowest < Capability(5, 0) and not result.placement.flash:
        notes.append(
            "flash attention is off below 5.0, where it was reported slower; a quantised KV cache "
            "switches it on"
        )
    if engine == "ollama":
        notes.append(
            "Ollama splits layers by rules of its own that differ by version: give --split as "
            "it does (ollama ps, its log)"
        )
    if result.verdict == "tight":
        most = max(device.overhead.most_mib for device in where)
        notes.append(
            f"it fits if CUDA takes what it likely does, not if it takes {most} MiB on each GPU"
        )
    return notes
