"""The HTML page of a plan: one file, no scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from typing import Any

from legacy_cuda import __version__, page, sizes

_MIB = 1 << 20
_PARTS = (
    ("weights", "weights", "#3f7fbf"),
    ("cache", "KV cache", "#3c9d6b"),
    ("state", "recurrent state", "#2b7a78"),
    ("compute", "compute buffer", "#e0a243"),
    ("pool", "pool (estimate)", "#a06bb8"),
    ("overhead", "CUDA (estimate)", "#b5544a"),
    ("display", "screen", "#8a93a0"),
)
_WORDS = {
    "fits": ("", "It fits"),
    "tight": ("limits", "It fits, but only just"),
    "not": ("bad", "It does not fit"),
}


def html(plan: dict[str, Any]) -> str:
    """The page of a plan's JSON document."""
    cards = ", ".join(item["product"] for item in plan["devices"] if " die 2" not in item["name"])
    title = f"{plan['model']} {plan['quantisation']} on {cards}"
    kind, words = _WORDS[plan["verdict"]]
    settings = plan["settings"]
    flash = "flash attention" if settings["flash_attention"] else "no flash attention"
    cuda = f"CUDA {plan['cuda']}" if plan["cuda"] else "a CUDA of its own"
    parts = [
        *page.head(f"{title}: legacy-cuda plan"),
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{settings["context"]} tokens x {settings["parallel"]} '
        f"conversation{'s' * (settings['parallel'] > 1)}, KV cache "
        f"{escape(' and '.join(dict.fromkeys(settings['kv'])))}, {flash}, "
        f"{escape(plan['engine'])} with {escape(cuda)}</p>",
        f'<div class="verdict {kind}"><b>{words}</b>'
        f"{'<br>' + escape(plan['problem']) if plan['problem'] else ''}</div>",
        "<h2>Memory</h2>",
        _picture(plan["devices"]),
        _table_of_parts(plan),
        *_speed(plan["speed"]),
        "<h2>Quantisations</h2>",
        _quantisations(plan),
        *_options(plan["options"]),
        _notes(plan),
        f"<footer>By legacy-cuda {escape(__version__)}. Weights and KV cache are counted as "
        "llama.cpp counts them; the rest is said to be an estimate where it is one. Nothing was "
        "run.</footer></main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _picture(devices: list[dict[str, Any]]) -> str:
    """A bar for each GPU, all on one scale, with a line where its memory ends."""
    left, wide, row = 170, 820, 46
    totals = [item["total_mib"] * _MIB for item in devices]
    used = [sum(item["bytes"][key] for key, *_ in _PARTS) for item in devices]
    scale = wide / max(*totals, *used, 1)
    height = row * len(devices) + 8
    out = [
        f'<div class="scroll"><svg viewBox="0 0 {left + wide + 10} {height}" '
        f'style="width: 100%; min-width: 600px; max-width: {left + wide + 10}px" role="img" '
        'aria-label="memory of each GPU">'
    ]
    for line, item in enumerate(devices):
        y = row * line + 4
        out.append(
            f'<text x="0" y="{y + 15}" font-weight="700">{escape(item["name"])}</text>'
            f'<text x="0" y="{y + 31}" class="soft">{item["layers"]} layers</text>'
        )
        x = float(left)
        for key, name, colour in _PARTS:
            size = item["bytes"][key]
            if not size:
                continue
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{size * scale:.1f}" height="24" '
                f'fill="{colour}"><title>{name}: {sizes.mib(size)} MiB</title></rect>'
            )
            x += size * scale
        end = left + item["total_mib"] * _MIB * scale
        out.append(
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="24" fill="none" '
            f'stroke="#8a93a0"/><line x1="{end:.1f}" x2="{end:.1f}" y1="{y - 3}" y2="{y + 29}" '
            f'stroke="currentColor" stroke-width="2"/>'
            f'<text x="{max(left + 60.0, end):.1f}" y="{y + 39}" text-anchor="end" class="soft">'
            f"{item['total_mib']} MiB</text>"
        )
    out.append("</svg></div>")
    shown = [part for part in _PARTS if any(item["bytes"][part[0]] for item in devices)]
    key = "".join(
        f'<span class="key" style="background:{colour}"></span>{name}' for _, name, colour in shown
    )
    return f"{''.join(out)}<p>{key}</p>"


def _table_of_parts(plan: dict[str, Any]) -> str:
    names = [part for part in _PARTS if any(item["bytes"][part[0]] for item in plan["devices"])]
    rows = [
        (
            item["name"],
            *(sizes.mib(item["bytes"][key]) for key, *_ in names),
            sizes.mib(item["bytes"]["spare"]),
        )
        for item in plan["devices"]
    ]
    head = ("MiB", *(name for _, name, _ in names), "free")
    host = plan["host"]["bytes"]
    return page.table(head, rows, numbers=1) + (
        f'<p class="legend">On the host: weights {sizes.mib(host["weights"])} MiB, KV cache '
        f"{sizes.mib(host['cache'])} MiB, compute buffer {sizes.mib(host['compute'])} MiB.</p>"
    )


def _speed(speed: dict[str, Any] | None) -> list[str]:
    if speed is None:
        return []
    rows = [
        (name, f"{speed[key][0]:.1f}", f"{speed[key][1]:.1f}")
        for name, key in (
            ("generating, empty context", "decode_tokens_s"),
            ("generating, full context", "decode_full_context_tokens_s"),
            ("reading a prompt", "prefill_tokens_s"),
        )
    ]
    basis = "".join(f"<li>{escape(item)}</li>" for item in speed["basis"])
    return [
        "<h2>Speed, estimated</h2>",
        page.table(("tokens a second, one conversation", "least", "most"), rows, numbers=1),
        f'<ul class="legend">{basis}</ul>',
    ]


def _quantisations(plan: dict[str, Any]) -> str:
    rows = [
        (
            item["quantisation"] + (" (best that fits)" if item["quantisation"] == best else ""),
            sizes.mib(item["model_bytes"]),
            _WORDS[item["verdict"]][1].removeprefix("It "),
            sizes.mib(min(item["spare_bytes"])),
        )
        for best in [plan["best_quantisation"]]
        for item in plan["quantisations"]
    ]
    most = plan["context_most"]
    text = f"At most {most} tokens for each conversation." if most else "No context fits."
    return (
        page.table(("quantisation", "MiB", "", "MiB left on the fullest GPU"), rows, numbers=1)
        + f"<p>{text}</p>"
    )


def _options(options: list[dict[str, Any]]) -> list[str]:
    if not options:
        return []
    rows = "".join(f"<li>{escape(item['what'])}: {escape(item['cost'])}</li>" for item in options)
    return ["<h2>What fits instead</h2>", f"<ul>{rows}</ul>"]


def _notes(plan: dict[str, Any]) -> str:
    if not plan["notes"]:
        return ""
    rows = "".join(f"<li>{escape(note)}</li>" for note in plan["notes"])
    return f"<h2>Good to know</h2><ul>{rows}</ul>"
