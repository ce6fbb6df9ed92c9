"""The GPUs as a table: for the terminal, and as a page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from legacy_cuda import sizes
from legacy_cuda.monitor.engines import Reading, each_on_gpus
from legacy_cuda.monitor.metrics import State, card, failure_of
from legacy_cuda.nvml import Device, Snapshot

HEADING = (
    "GPU",
    "card",
    "name",
    "memory",
    "use",
    "temperature",
    "power",
    "SM clock",
    "lowered for",
)
ENGINES = (
    *("engine", "address", "state", "models", "on GPUs", "running", "waiting", "tokens generated"),
)
_REFRESH = 5  # seconds
_STYLE = """
body { font: 16px/1.5 sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: CanvasText; background: Canvas; color-scheme: light dark }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8888 }
.bad { color: #c22; font-weight: bold }
"""


def row(device: Device) -> tuple[str, ...]:
    """A GPU's cells, under HEADING; "?" for what it does not tell."""

    def shown(value: object, form: str = "{}") -> str:
        return "?" if value is None else form.format(value)

    def mib(size: int | None) -> str:
        return "?" if size is None else sizes.mib(size)

    limit = shown(device.power_limit_w, "{:.0f}")
    return (
        str(device.index),
        card(device),
        device.name or "?",
        f"{mib(device.memory_used_bytes)} / {mib(device.memory_total_bytes)} MiB",
        shown(device.utilization_percent, "{} %"),
        shown(device.temperature_c, "{} C"),
        f"{shown(device.power_w, '{:.0f}')} / {limit} W",
        shown(device.clock_sm_mhz, "{} MHz"),
        " ".join(device.throttle_reasons or ()),
    )


def versions(snapshot: Snapshot) -> str:
    """The driver's version and that of the CUDA it implements."""
    return f"driver {snapshot.driver_version or '?'}, CUDA {snapshot.cuda_version or '?'}"


def engine_row(reading: Reading, taken: int | None) -> tuple[str, ...]:
    """An engine's cells, under ENGINES; "?" for what is not told. ``taken``: bytes on GPUs."""

    def count(name: str) -> str:
        return f"{reading.counts[name]:g}" if name in reading.counts else "?"

    return (
        reading.engine.kind,
        reading.engine.url,
        "serves" if reading.up else "does not answer",
        ", ".join(reading.models) or "none" if reading.models is not None else "?",
        "?" if taken is None else f"{sizes.mib(taken)} MiB",
        *(count(name) for name in ("requests_running", "requests_waiting", "generated_tokens")),
    )


def _engines(readings: Sequence[Reading], devices: Sequence[Device]) -> list[str]:
    if not readings:
        return []
    lines = ["".join(f"<th>{escape(name)}" for name in ENGINES)]
    for reading, taken in zip(readings, each_on_gpus(readings, devices), strict=True):
        bad = not reading.up or (reading.models != {} and taken == 0)
        mark = ' class="bad"' if bad else ""
        lines.append("".join(f"<td{mark}>{escape(cell)}" for cell in engine_row(reading, taken)))
    return [f"<h2>Engines</h2><table>{''.join(f'<tr>{line}' for line in lines)}</table>"]


def page(state: State, readings: Sequence[Reading] = ()) -> bytes:
    """The tables as HTML, which a browser asks for again and again. An engine that serves with
    nothing on a GPU is marked."""
    snapshot = state.snapshot
    lines = ["".join(f"<th>{escape(name)}" for name in HEADING)]
    for device in state.devices:
        lines.append("".join(f"<td>{escape(cell)}" for cell in row(device)))
        if why := failure_of(device, snapshot):
            lines.append(f'<td><td class="bad" colspan="{len(HEADING) - 1}">{escape(str(why))}')
    if snapshot.error:
        head = f'<p class="bad">The NVIDIA driver does not answer: {escape(str(snapshot.error))}'
    else:
        head = f"<p>{escape(versions(snapshot))}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f'<meta http-equiv="refresh" content="{_REFRESH}">',
            f"<title>GPUs</title><style>{_STYLE}</style><h1>GPUs</h1>",
            head,
            f"<table>{''.join(f'<tr>{line}' for line in lines)}</table>",
            *_engines(readings, state.devices),
            '<p>For Prometheus: <a href="/metrics">/metrics</a></html>\n',
        ]
    ).encode()
