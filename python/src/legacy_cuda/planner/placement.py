"""Where llama.cpp puts the parts of a model, and how many bytes that is, GPU by GPU.

Counted from the sources of the pinned llama.cpp, and compared with what it says itself
(``docs/plan.md``). Sizes are bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from legacy_cuda.capability import Capability
from legacy_cuda.catalog.models import Format, formats
from legacy_cuda.planner.architectures import EXACT, Batch, graph_of
from legacy_cuda.planner.graph import Backends, buffers
from legacy_cuda.planner.model import Model, Tensor

ALIGNMENT = 128  # of tensors in a GPU's memory (ggml-cuda.cu)
ROW_PADDING = 512  # values that rows of quantised tensors are padded to there
HOST_ALIGNMENT = 32  # of tensors in the host's memory
CELLS = 256  # a cache has a multiple of so many cells
COPIES = 4  # batches in flight where layers are split over several GPUs (GGML_SCHED_MAX_COPIES)
PIECE = 2 << 20  # the pool for fleeting data grows by pieces of this size
VECTORS = 8  # columns that the kernels for vectors take (MMVQ_MAX_BATCH_SIZE, MMVF_MAX_BATCH_SIZE)
FEW = 64  # from so many columns on cuBLAS is used where there are tensor cores (mmq.cuh)

# Sizes of a head that flash attention has kernels for, keys and values alike; others are possible
# only where several heads of queries share one of keys, in groups of so many.
_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
_SHARED_HEADS = {(192, 128): 8, (512, 512): 2, (576, 512): 2, (320, 256): 32}
# below it this build has none where it is to choose (docs/llama-cpp.md)
_FLASH_FROM = Capability(5, 0)

_INPUT = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
_OUTPUT = ("output", "cls", "dense_2", "dense_3")


@dataclass(frozen=True)
class Settings:
    """How a model is to run.

    Args:
        context: tokens that each of ``parallel`` conversations can hold.
        parallel: conversations at a time, each with a cache of its own unless ``unified``.
        keys: format of the cache's keys.
        values: of its values.
        flash: whether flash attention is used; None: where every layer's GPU can.
        layers: layers on GPUs, the output counted as one, as for ``--n-gpu-layers``; None: all.
        split: share of the layers of each GPU; None: by free memory, as llama.cpp does.
        batch: tokens of a prompt that are computed at a time (``--ubatch-size``).
        all_logits: logits are kept for every token of a batch, not for one of each conversation:
            Ollama does so.
    """

    context: int = 4096
    parallel: int = 1
    keys: Format = formats()["F16"]
    values: Format = formats()["F16"]
    flash: bool | None = None
    layers: int | None = None
    split: tuple[float, ...] | None = None
    batch: int = 512
    unified: bool = False
    all_logits: bool = False

    @property
    def cells(self) -> int:
        """Cells of each stream of the cache."""
        total = self.total
        return total if self.unified else total // self.parallel

    @property
    def total(self) -> int:
        """Cells of the whole cache: what ``--ctx-size`` comes to."""
        if self.unified:
            return _padded(self.context * self.parallel, CELLS)
        return _padded(self.context, CELLS) * self.parallel


@dataclass(frozen=True)
class Load:
    """What lies on one GPU, or on the host. ``pool`` is an estimate."""

    layers: int
    weights: int
    cache: int
    state: int
    compute: int
    pool: int = 0

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.state + self.compute + self.pool


@dataclass(frozen=True)
class Placement:
    """``places`` is the backend of each layer and of the output; the host is the number after the
    last GPU. ``exact``: the compute buffers were counted, not estimated."""

    places: tuple[int, ...]
    gpus: tuple[Load, ...]
    host: Load
    flash: bool
    exact: bool


def _padded(size: int, to: int) -> int:
    return size + -size % to


def _single(value: float) -> float:
    """A number as a float of C."""
    found: float = struct.unpack("f", struct.pack("f", value))[0]
    return found


def places_of(model: Model, settings: Settings, free: Sequence[int]) -> tuple[int, ...]:
    """The backend of each layer, and of the output.

    ``free`` are bytes free on each GPU, which the layers are split by unless told otherwise.
    """
    count, gpus = model.shape.layers, len(free)
    wanted = count + 1 if settings.layers is None else min(settings.layers, count + 1)
    if not gpus or not wanted:
        return (gpus,) * (count + 1)
    shares = settings.split or (free if any(free) else (1,) * gpus)
    sums, total = [], 0.0
    for share in shares:
        total = _single(total + _single(share))
        sums.append(total)
    ends = [_single(end / total) for end in sums]
    first = count + 1 - wanted
    places = []
    for layer in range(count + 1):
        if layer < first:
            places.append(gpus)
            continue
        at = _single((layer - first) / wanted)
        places.append(next(number for number, end in enumerate(ends) if at < end))
    return tuple(places)


def _size_on_gpu(form: Format, dimensions: Sequence[int]) -> int:
    """Bytes that a tensor takes in a GPU's memory."""
    values = 1
    for size in dimensions:
        values *= size
    found = form.size(values)
    if form.quantised and dimensions[0] % ROW_PADDING:
        found += form.size(ROW_PADDING - dimensions[0] % ROW_PADDING)
    return _padded(found, ALIGNMENT)


def _homes(model: Model, tensor: Tensor, places: tuple[int, ...], host: int) -> set[int]:
    """The backends that hold a tensor: two where one use of it is elsewhere."""
    shape, block, role = model.shape, tensor.block, tensor.role
    if block is not None:
        return {places[block]} if block < shape.layers - shape.nextn else set()
    if role == "token_embd":
        tied = "output.weight" not in model.by_name
        return {host, places[-1]} if tied else {host}
    if role in _INPUT:
        return {host}
    if role.startswith("rope_f"):
        return set(places[:-1])
    if role.startswith(_OUTPUT):
        return {places[-1]}
    return {places[0]}


def weights(model: Model, places: tuple[int, ...], gpus: int) -> list[int]:
    """Bytes of weights on each GPU, and on the host."""
    found = [0] * (gpus + 1)
    for tensor in model.tensors:
        for home in _homes(model, tensor, places, gpus):
            on_gpu = home < gpus
            found[home] += (
                _size_on_gpu(tensor.format, tensor.dimensions) if on_gpu else tensor.bytes
            )
    return found


def window_cells(model: Model, settings: Settings) -> int:
    """Cells that layers with a sliding window have: the window and a batch."""
    sequences = settings.parallel if settings.unified else 1
    batch = min(settings.batch, settings.total)
    wanted = min(settings.cells, model.shape.sliding_window * sequences + batch)
    return _padded(wanted, CELLS)


def cache(
    model: Model, settings: Settings, turned: bool, places: tuple[int, ...], gpus: int
) -> list[int]:
    """Bytes of the KV cache on each GPU, and on the host."""
    shape, found = model.shape, [0] * (gpus + 1)
    streams = 1 if settings.unified else settings.parallel
    widest = max((shape.values(layer) for layer in range(shape.layers)), default=0)
    for layer in range(shape.layers):
        if not shape.attention[layer]:
            continue
        cells = window_cells(model, settings) if shape.windowed[layer] else settings.cells
        values = widest if turned else shape.values(layer)
        parts = [(settings.keys, shape.keys(layer))]
        if not shape.latent:
            parts.append((settings.values, values))
        for form, width in parts:
            dimensions = (width, cells, streams)
            if places[layer] < gpus:
                found[places[layer]] += _size_on_gpu(form, dimensions)
            else:
                size = form.size(width * cells * streams)
                found[gpus] += _padded(size, HOST_ALIGNMENT)
    return found


def state(model: Model, settings: Settings, places: tuple[int, ...], gpus: int) -> list[int]:
    """Bytes of the states of recurrent layers on each GPU, and on the host."""
    shape, found = model.shape, [0] * (gpus + 1)
    single = formats()["F32"]
    for layer in range(shape.layers):
        if shape.recurrent[layer]:
            for row in shape.state_rows:
                size = single.size(row * settings.parallel)
                found[places[layer]] += _padded(size, ALIGNMENT)
    return found


def can_flash(model: Model, layer: int) -> bool:
    """Whether GPUs have kernels for a layer's flash attention."""
    shape = model.shape
    window = shape.windowed[layer]
    sizes = (
        shape.key_size_window if window else shape.key_size,
        shape.value_size_window if window else shape.value_size,
    )
    if sizes[0] == sizes[1] and sizes[0] in _HEADS:
        return True
    group = _SHARED_HEADS.get(sizes)
    return group is not None and shape.heads[layer] // max(1, shape.heads_kv[layer]) >= group


def attention_of(
    model: Model,
    settings: Settings,
    places: tuple[int, ...],
    capabilities: Sequence[Capability],
) -> tuple[bool, bool]:
    """Whether flash attention is used, everywhere or nowhere, and whether the cache's values are
    transposed: without it they are, unless that is found out after the cache was made. A quantised
    cache of values has it switched on where nothing was asked for, on a K80 too."""
    flash = settings.flash
    if flash is None and settings.values.quantised:
        flash = True
    if flash is not None:
        return flash, not flash
    if any(capability < _FLASH_FROM for capability in capabilities):
        return False, True
    shape = model.shape
    every = all(
        can_flash(model, layer)
        for layer in range(shape.layers)
        if shape.attention[layer] and places[layer] < len(capabilities)
    )
    return every, False


def _batch(model: Model, settings: Settings, flash: bool, turned: bool) -> Batch:
    tokens = min(settings.batch, settings.total)
    tokens = _padded(tokens, settings.parallel)
    return Batch(
        tokens=tokens,
        sequences=settings.parallel,
        outputs=tokens if settings.all_logits else min(tokens, settings.parallel),
        cells=settings.cells,
        cells_window=window_cells(model, settings),
        flash=flash,
        turned=turned,
        keys=settings.keys,
        values=settings.values,
        unified=settings.unified,
    )


def _is_usual(names: set[str]) -> bool:
    """Whether a layer has the parts that the graph of ``llama`` asks for."""
    alternatives = (
        ("attn_norm",),
        ("attn_q",),
        ("attn_k",),
        ("attn_v",),
        ("attn_output",),
        ("ffn_norm", "post_attention_norm"),
        ("ffn_up", "ffn_up_exps"),
        ("ffn_down", "ffn_down_exps"),
    )
    return all(any(f"{name}.weight" in names for name in some) for some in alternatives)


def _regular(model: Model) -> Model:
    """A model of any architecture as one that the graph of ``llama`` serves: layers of another
    kind are taken for the one before them that is usual.

    Raises:
        LookupError: no layer is.
    """
    shape = model.shape
    if shape.architecture in EXACT:
        return model
    layers: list[dict[str, Tensor]] = [{} for _ in range(shape.layers)]
    others = []
    for tensor in model.tensors:
        if tensor.block is None:
            others.append(tensor)
        elif tensor.block < shape.layers:
            layers[tensor.block][tensor.name.split(".", 2)[2]] = tensor
    usual = [layer for layer, parts in enumerate(layers) if _is_usual(set(parts))]
    if not usual:
        raise LookupError("no usual layer")
    like, at = [], usual[0]
    for layer in range(shape.layers):
        at = layer if layer in usual else at
        like.append(at)
    tensors = [
        replace(tensor, name=f"blk.{layer}.{name}")
        for layer, source in enumerate(like)
        for name, tensor in layers[source].items()
    ]
    return replace(
        model,
        tensors=(*others, *tensors),
        shape=replace(
            shape,
            heads=tuple(shape.heads[source] for source in like),
            heads_kv=tuple(shape.heads_kv[source] for source in like),
        ),
    )


def compute(
    model: Model,
    settings: Settings,
    attention: tuple[bool, bool],
    places: tuple[int, ...],
    gpus: int,
) -> tuple[list[int], bool]:
    """Bytes of the compute buffers of each GPU and of the host, and whether they were counted.

    An architecture that was not written down is estimated: as ``llama`` where its layers allow it,
    else from the widest results of a batch.
    """
    batch = _batch(model, settings, *attention)
    full = settings.layers is None or settings.layers > model.shape.layers
    copies = COPIES if gpus > 1 and full else 1
    backends = Backends(
        (ALIGNMENT,) * gpus + (HOST_ALIGNMENT,), (ROW_PADDING,) * gpus + (0,), copies
    )
    try:
        graph = graph_of(_regular(model), batch, places, gpus, bind_norms=bool(gpus) and full)
    except (ArithmeticError, LookupError, ValueError):
        return _guess(model, batch, gpus, copies), False
    return buffers(graph, backends), model.shape.architecture in EXACT


def _guess(model: Model, batch: Batch, gpus: int, copies: int) -> list[int]:
    """From the widest rows of a batch: three of them at a time, the mask and the logits."""
    widths = [
        tensor.dimensions[-1]
        for tensor in model.tensors
        if tensor.block is not None and len(tensor.dimensions) == 2
    ]
    rows = 4 * batch.tokens * (3 * max(widths, default=0) + 2 * model.shape.embedding)
    mask = (2 if batch.flash else 4) * batch.cells * batch.tokens
    logits = 4 * model.shape.vocabulary * batch.outputs
    return [rows + mask * copies + logits] * gpus + [mask + rows // 3]


def _computed_in(form: Format, capability: Capability, rows: int) -> str:
    """The format in which cuBLAS multiplies weights with ``rows`` columns: F16, BF16 or F32
    (ggml_cuda_mul_mat_cublas)."""
    half = capability >= Capability(6, 0) and capability != Capability(6, 1)
    if form.name == "BF16":
        return "F32" if rows > (8 if capability >= Capability(7, 0) else 128) else "BF16"
    return "F16" if half and (form.quantised or form.name == "F16") else "F32"


def _by_cublas(tensor: Tensor, rows: int, capability: Capability, sorted_as: int) -> int:
    """Bytes for a product by cuBLAS: weights and batch in the format that it computes in, and the
    result, which a P100 gets in halves. Of experts one at a time."""
    computed = _computed_in(tensor.format, capability, rows)
    width = 4 if computed == "F32" else 2
    columns, results = tensor.dimensions[0], tensor.dimensions[1]
    need = 0 if tensor.format.name == computed else columns * results * width
    if sorted_as != width:  # the batch is in another format
        need += columns * rows * width
    if computed == "F16" and capability != Capability(7, 0):
        need += results * rows * width
    return need


def _of_experts(tensor: Tensor, rows: int, used: int, experts: int, capability: Capability) -> int:
    """Bytes for a product with experts that is not computed in bytes: the batch is sorted by
    expert, and each expert multiplies its share, here twice the mean (ggml_cuda_mul_mat_id)."""
    half = _computed_in(tensor.format, capability, rows) == "F16"
    own = tensor.format.quantised or (tensor.format.name == "F16" and not half)
    width = 4 if own or tensor.format.name == "F32" else 2
    columns, results = tensor.dimensions[0], tensor.dimensions[1]
    moved = rows * used * (columns * width + results * 4)
    share = min(rows, max(1, 2 * rows * used // max(1, experts)))
    if tensor.format.quantised and capability >= Capability(6, 1) and share < FEW:
        return moved + columns * share * 36 // 32
    return moved + _by_cublas(tensor, share, capability, width)


def pool(
    model: Model,
    settings: Settings,
    places: tuple[int, ...],
    gpu: int,
    capability: Capability,
    host: int,
) -> int:
    """An estimate of the memory for fleeting data of matrix products on one GPU.

    Where dp4a is used, and for experts from 6.0 on, the batch is quantised to 8 bits (on a V100
    below 64 columns); else weights, batch and result are there in the format that cuBLAS computes
    in. The output matrix meets as many columns as there are logits; up to eight, kernels for
    vectors read it as it is.
    """
    tokens = min(settings.batch, settings.total)
    outputs = tokens if settings.all_logits else min(tokens, settings.parallel)
    output = "output" if "output.weight" in model.by_name else "token_embd"
    most = 0
    for tensor in model.tensors:
        if len(tensor.dimensions) < 2 or not tensor.name.endswith(".weight"):
            continue
        if gpu not in _homes(model, tensor, places, host):
            continue
        if tensor.role == "token_embd" and output != "token_embd":
            continue
        rows = outputs if tensor.role == output else tokens
        if tensor.role == output and rows <= VECTORS:
            continue
        experts = len(tensor.dimensions) > 2
        used = max(1, model.shape.experts_used) if experts else 1
        with_bytes = tensor.format.quantised and (
            capability == Capability(6, 1)
            or (experts and capability == Capability(6, 0))
            or (capability >= Capability(7, 0) and rows < FEW)
        )
        if with_bytes:
            need = tensor.dimensions[0] * rows * used * 36 // 32
        elif experts:
            need = _of_experts(tensor, rows, used, tensor.dimensions[2], capability)
        else:
            need = _by_cublas(tensor, rows, capability, 4)
        most = max(most, need)
    return _padded(most, PIECE)


def place(
    model: Model,
    settings: Settings,
    free: Sequence[int],
    capabilities: Sequence[Capability],
) -> Placement:
    """Where everything goes.

    Args:
        model: what is loaded.
        settings: how it is to run.
        free: bytes free on each GPU before it is loaded.
        capabilities: of each GPU.
    """
    gpus = len(free)
    places = places_of(model, settings, free)
    attention = attention_of(model, settings, places, capabilities)
    of_weights = weights(model, places, gpus)
    of_cache = cache(model, settings, attention[1], places, gpus)
    of_state = state(model, settings, places, gpus)
    of_compute, exact = compute(model, settings, attention, places, gpus)
    loads = [
        Load(
            layers=sum(1 for item in places[:-1] if item == number),
            weights=of_weights[number],
            cache=of_cache[number],
            state=of_state[number],
            compute=of_compute[number],
            pool=pool(model, settings, places, number, capabilities[number], gpus)
            if number < gpus and number in places
            else 0,
        )
        for number in range(gpus + 1)
    ]
    return Placement(places, tuple(loads[:gpus]), loads[gpus], attention[0], exact)
