"""Which format each tensor of a quantised model has: the rules of llama-quantize, without an
importance matrix, for the mixes of the catalog."""

from __future__ import annotations

from legacy_cuda.catalog.models import Format, Mix, formats
from legacy_cuda.planner.model import Shape

# what takes the place of a format whose blocks do not divide a row
_FALLBACK = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_FIVE_WITH_EIGHT_EXPERTS = {"Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_XS"}


def _more_bits(layer: int, layers: int) -> bool:
    """The layers that the mixes called M spend more on: both ends, and each third between."""
    return (
        layer < layers // 8
        or layer >= 7 * layers // 8
        or (layer - layers // 8) % 3 == 2
    )  # fmt: skip


def _values(mix: str, layer: int, shape: Shape) -> str | None:
    """For ``attn_v`` and fused ``attn_qkv``; None: as the mix."""
    layers = shape.layers
    shared = shape.heads[0] // max(1, shape.heads_kv[0]) >= 4
    found = None
    if mix == "Q2_K":
        found = "Q4_K" if shared else "Q3_K"
    elif mix == "Q3_K_M":
        found = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "IQ4_XS" and shared:
        found = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, layers):
        found = "Q6_K"
    elif mix == "Q4_K_S" and layer < 4:
        found = "Q5_K"
    seventy = layers == 80 and shape.heads[0] != shape.heads_kv[0]
    if seventy and (found or {"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K"}.get(mix)) in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return "Q8_0" if shape.experts == 8 else found


def _down(mix: str, layer: int, layers: int) -> str | None:
    if mix == "Q2_K":
        return "Q3_K"
    if mix == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, layers) else None
    if mix in ("Q4_K_S", "IQ4_XS"):
        return "Q5_K" if layer < layers // 8 else None
    return None


def _attention_output(mix: str, shape: Shape) -> str | None:
    if shape.experts == 8:
        return "Q5_K" if mix in _FIVE_WITH_EIGHT_EXPERTS else None
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(mix)


def _wanted(mix: Mix, role: str, layer: int, dimensions: tuple[int, ...], shape: Shape) -> str:
    name, usual = mix.name, mix.format.name
    if role == "output":
        if name == "MXFP4" or dimensions[0] % mix.format.values:
            return "Q8_0"
        return usual if usual == "Q8_0" else "Q6_K"
    if name == "MXFP4":
        return "MXFP4" if len(dimensions) > 2 else "Q8_0"
    found = None
    if role in ("attn_v", "attn_qkv"):
        found = _values(name, layer, shape)
    elif role == "attn_k" and shape.experts == 8:
        found = "Q8_0"
    elif role.startswith("ffn_down"):
        found = _down(name, layer, shape.layers)
    elif role == "attn_output":
        found = _attention_output(name, shape)
    return found or usual


def format_of(mix: Mix, name: str, dimensions: tuple[int, ...], shape: Shape, tied: bool) -> Format:
    """The format of a tensor of that name in a model that is quantised so.

    Args:
        mix: the quantisation.
        name: as in GGUF files.
        dimensions: the row's first.
        shape: the model's.
        tied: the model has no output matrix of its own.
    """
    known = formats()
    if (
        len(dimensions) < 2
        or not name.endswith(".weight")
        or "_norm." in name
        or "ffn_gate_inp" in name
    ):
        return known["F32"]
    if mix.format.values == 1:
        return mix.format
    block, _, rest = name.partition(".")
    layer, role = 0, block
    if block == "blk":
        number, _, rest = rest.partition(".")
        layer, role = int(number), rest.rpartition(".")[0]
    if role == "token_embd" and tied:
        role = "output"
    wanted = known[_wanted(mix, role, layer, dimensions, shape)]
    if dimensions[0] % wanted.values:
        wanted = known[_FALLBACK.get(wanted.name, "F16")]
    return wanted if dimensions[0] % wanted.values == 0 else known["F16"]
