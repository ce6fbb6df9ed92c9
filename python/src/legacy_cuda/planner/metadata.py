"""From what a GGUF file says to a model; with llama.cpp's defaults where it is silent."""

from __future__ import annotations

from collections import Counter

from legacy_cuda.catalog.models import mixes
from legacy_cuda.planner.gguf import Header, Value
from legacy_cuda.planner.model import Model, ModelError, Shape

LAYERS_MOST = 1024
SIZE_MOST = 1 << 24
EXPERTS_MOST = 1 << 10

# A sliding window in a header is not one that llama.cpp uses, but for these: after how many layers
# one without a window comes (its load_swa_pattern in the graphs of these architectures).
WINDOW_EVERY = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}
# the window that is used where the header has none
WINDOW_DEFAULT = {"gemma2": 4096}


class _Keys:
    """Values of the model's architecture, checked."""

    def __init__(self, header: Header) -> None:
        self.header = header
        name = header.values.get("general.architecture")
        if not isinstance(name, str) or not name.isprintable() or len(name) > 64:
            raise ModelError("the file does not name its architecture")
        self.architecture = name

    def value(self, key: str) -> Value:
        return self.header.values.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int | None = None, most: int = SIZE_MOST) -> int:
        found = self.value(key)
        if found is None and default is not None:
            return default
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
            raise ModelError(f"{self.architecture}.{key} is {_brief(found)}")
        return found

    def each(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        """A number for each layer, from one for all or one for each."""
        found = self.value(key)
        if not isinstance(found, list):
            return (self.number(key, default),) * layers
        if len(found) < layers:
            raise ModelError(f"{self.architecture}.{key} has {len(found)} numbers, not {layers}")
        for item in found:
            if not isinstance(item, int) or not 0 <= item <= SIZE_MOST:
                raise ModelError(f"{self.architecture}.{key} has a {_brief(item)} in it")
        return tuple(int(item) for item in found[:layers])


def _brief(value: Value) -> str:
    return "missing" if value is None else repr(value)[:40]


def _windowed(keys: _Keys, layers: int, window: int) -> tuple[bool, ...]:
    every = WINDOW_EVERY.get(keys.architecture)
    if every is None or not window:
        return (False,) * layers
    given = keys.value("attention.sliding_window_pattern")
    if isinstance(given, list):
        if len(given) < layers:
            raise ModelError("the pattern of sliding windows is shorter than the model")
        return tuple(bool(item) for item in given[:layers])
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= LAYERS_MOST:
        every = given
    return tuple(layer % every < every - 1 for layer in range(layers))


def _quantisation(header: Header) -> str:
    """The mix that the file says it is of, else the format that most values are of."""
    stated = header.values.get("general.file_type")
    for mix in mixes().values():
        if isinstance(stated, int) and stated == mix.file_type:
            return mix.name
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.format.name] += tensor.values
    return sizes.most_common(1)[0][0] if sizes else ""


def _recurrent(names: set[str], layer: int) -> bool:
    at = f"blk.{layer}."
    return any(f"{at}{name}" in names for name in ("ssm_conv1d.weight", "ssm_in.weight"))


def _attention(names: set[str], layer: int, recurrent: bool) -> bool:
    at = f"blk.{layer}."
    kinds = ["attn_k.weight", "attn_kv_a_mqa.weight"] + ([] if recurrent else ["attn_qkv.weight"])
    return any(f"{at}{name}" in names for name in kinds)


def model_of(header: Header, name: str) -> Model:
    """The model that a header describes.

    Raises:
        ModelError: a number that a plan needs is missing or out of reason.
    """
    keys = _Keys(header)
    layers = keys.number("block_count", most=LAYERS_MOST)
    embedding = keys.number("embedding_length")
    if not layers or not embedding:
        raise ModelError("a model without layers or without an embedding")
    heads = keys.each("attention.head_count", layers, 0)
    heads_kv = (
        keys.each("attention.head_count_kv", layers, 0)
        if keys.value("attention.head_count_kv") is not None
        else heads
    )
    usual = embedding // heads[0] if heads[0] else 0
    key_size = keys.number("attention.key_length", usual)
    value_size = keys.number("attention.value_length", usual)
    window = keys.number("attention.sliding_window", WINDOW_DEFAULT.get(keys.architecture, 0))
    names = {tensor.name for tensor in header.tensors}
    recurrent = tuple(_recurrent(names, layer) for layer in range(layers))
    nextn = keys.number("nextn_predict_layers", 0, layers - 1)
    tokens = next((item for item in header.tensors if item.name == "token_embd.weight"), None)
    inner, state = keys.number("ssm.inner_size", 0), keys.number("ssm.state_size", 0)
    kernel, groups = keys.number("ssm.conv_kernel", 0), keys.number("ssm.group_count", 0)
    notes = []
    if any(recurrent) and not inner:
        notes.append("its recurrent state is of a kind that is not counted here")
    if window and keys.architecture not in WINDOW_EVERY:
        notes.append(
            f"the file names a sliding window of {window} tokens; every layer is counted with a "
            "cache of the whole context"
        )
    return Model(
        name=name,
        quantisation=_quantisation(header),
        shape=Shape(
            architecture=keys.architecture,
            layers=layers,
            embedding=embedding,
            heads=heads,
            heads_kv=heads_kv,
            key_size=key_size,
            value_size=value_size,
            feed_forward=keys.each("feed_forward_length", layers, 0),
            vocabulary=tokens.dimensions[-1] if tokens and tokens.dimensions else 0,
            context=keys.number("context_length", 0, 1 << 40),
            windowed=_windowed(keys, layers, window),
            attention=tuple(
                _attention(names, layer, recurrent[layer]) and layer < layers - nextn
                for layer in range(layers)
            ),
            recurrent=recurrent,
            sliding_window=window,
            key_size_window=keys.number("attention.key_length_swa", key_size),
            value_size_window=keys.number("attention.value_length_swa", value_size),
            experts=keys.number("expert_count", 0, EXPERTS_MOST),
            experts_used=keys.number("expert_used_count", 0, EXPERTS_MOST),
            latent=keys.value("attention.key_length_mla") is not None,
            nextn=nextn,
            state_rows=(max(0, kernel - 1) * (inner + 2 * groups * state), state * inner),
        ),
        tensors=header.tensors,
        bytes_on_disk=header.bytes,
        notes=tuple(notes),
    )
