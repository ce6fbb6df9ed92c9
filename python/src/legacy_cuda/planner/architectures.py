"""What llama.cpp computes for a batch, as a :class:`~legacy_cuda.planner.graph.Graph`.

One description serves every architecture that is a chain of attention and feed-forward layers:
which parts a layer has is read from its tensors. ``EXACT`` are the architectures whose order of
operations was written down from llama.cpp's sources and compared with what it reserves; any other
is taken for one of the kind of ``llama``, and its compute buffers are an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from legacy_cuda.catalog.models import Format, formats
from legacy_cuda.planner.graph import Graph, Node
from legacy_cuda.planner.model import Model

EXACT = frozenset({"llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "gpt-oss", "phi3"})
_SCALED_INPUT = frozenset({"gemma2", "gemma3"})
_SCALED_QUERIES = frozenset({"gemma2", "gemma3", "phi3"})
# attention scores are capped by tanh, and logits too
_CAPPED = frozenset({"gemma2"})
# the rows that are asked for are picked after the last layer instead of inside it
_LATE_ROWS = frozenset({"gpt-oss"})
_KEYS_FIRST = frozenset({"gemma2", "gemma3", "gpt-oss"})


@dataclass(frozen=True)
class Batch:
    """What is reserved for: tokens of a batch, sequences, rows of logits, cells of the cache.

    ``turned``: values lie transposed in the cache, as they do where it was known before the cache
    was made that there is no flash attention.
    """

    tokens: int
    sequences: int
    outputs: int
    cells: int
    cells_window: int
    flash: bool
    turned: bool
    keys: Format
    values: Format
    unified: bool


# experts of a token whose weighted sum a GPU computes at once (ggml-cuda.cu,
# MOE_WEIGHTED_REDUCTION_MAX_EXPERTS)
_REDUCED = 15


def _between(last: Node, first: Node) -> list[Node]:
    """What lies between two tensors, the last included, in the order of computation."""
    found: list[Node] = []

    def visit(node: Node) -> None:
        if node is first or node.external or node in found:
            return
        for source in node.sources:
            visit(source)
        found.append(node)

    visit(last)
    return found


class _Builder:
    """Builds the graph of one batch; ``places`` are the backends of the layers and the output."""

    def __init__(self, model: Model, batch: Batch, places: Sequence[int], bind_norms: bool):
        self.model, self.shape, self.batch = model, model.shape, batch
        self.places, self.bind_norms = places, bind_norms
        self.graph = Graph()
        self.kind = self.shape.architecture
        tokens, graph = batch.tokens, self.graph
        self.streams = 1 if batch.unified else batch.sequences
        self.positions = graph.input((tokens,), graph.i32)
        self.rows = graph.input((batch.outputs,), graph.i32)
        self.masks: dict[bool, Node] = {}
        self.cells: dict[tuple[bool, str], Node] = {}
        self.rotations: dict[tuple[bool, str], Node | None] = {}
        self.stretched: dict[int, Node] = {}
        self.factors = model.by_name.get("rope_freqs.weight") or model.by_name.get(
            "rope_factors_long.weight"
        )

    # inputs of attention, made where they are first needed ---------------------------------------

    def mask(self, window: bool) -> Node:
        if window not in self.masks:
            cells = self.batch.cells_window if window else self.batch.cells
            form = self.graph.f16 if self.batch.flash else self.graph.f32
            size = (cells, self.batch.tokens // self.streams, 1, self.streams)
            self.masks[window] = self.graph.input(size, form)
        return self.masks[window]

    def places_of(self, window: bool, what: str) -> Node:
        """Which cells the batch's keys or values go to."""
        key = (window, what)
        if key not in self.cells:
            count = self.batch.tokens
            if what == "values" and self.batch.turned:
                count *= max(self.shape.values(item) for item in range(self.shape.layers))
            self.cells[key] = self.graph.input((count,), self.graph.i64)
        return self.cells[key]

    def rotation(self, window: bool, what: str) -> Node | None:
        """A quantised cache is of rotated keys and values: by a matrix from the host."""
        key = (window, what)
        if key not in self.rotations:
            form = self.batch.keys if what == "keys" else self.batch.values
            size = self.shape.key_size if what == "keys" else self.shape.value_size
            found = None
            if form.quantised and size and size % 64 == 0:
                width = 64
                if what == "keys":
                    while size % (2 * width) == 0:
                        width *= 2
                found = self.graph.input((width, width))
            self.rotations[key] = found
        return self.rotations[key]

    # parts ---------------------------------------------------------------------------------------

    def weight(self, name: str, layer: int | None = None) -> Node:
        full = name if layer is None else f"blk.{layer}.{name}"
        tensor = self.model.by_name[full]
        place = self.places[self.shape.layers if layer is None else layer]
        return self.graph.stored(tensor.format, tensor.dimensions, place)

    def norm(self, source: Node, name: str, layer: int | None, bind: bool = True) -> Node:
        result = self.graph.like("rms_norm", source)
        if bind and self.bind_norms and layer is not None:
            result.place = self.places[layer]
        return self.graph.like("mul", result, self.weight(name, layer))

    def multiply(self, source: Node, name: str, layer: int) -> Node:
        result = self.graph.product(self.weight(f"{name}.weight", layer), source)
        if self.model.has(layer, f"{name}.bias"):
            result = self.graph.like("add", result, self.weight(f"{name}.bias", layer))
        return result

    def rope(self, source: Node, layer: int) -> Node:
        """Positions, stretched by a small tensor that every backend with layers has a copy of."""
        sources = [source, self.positions]
        if self.factors is not None:
            place = self.places[layer]
            if place not in self.stretched:
                self.stretched[place] = self.graph.stored(
                    self.factors.format, self.factors.dimensions, place
                )
            sources.append(self.stretched[place])
        return self.graph.like("rope", *sources)

    def rotated(self, source: Node, by: Node | None) -> Node:
        if by is None:
            return source
        width = by.dimensions[0]
        a, b, c, d = source.dimensions
        flat = self.graph.reshape(source, width, a * b * c * d // width)
        return self.graph.reshape(self.graph.product(by, flat), a, b, c, d)

    def heads(self, source: Node, layer: int) -> tuple[Node, Node, Node]:
        """Queries, keys and values, as heads."""
        shape, graph, tokens = self.shape, self.graph, self.batch.tokens
        heads, pairs = shape.heads[layer], shape.heads_kv[layer]
        key = shape.key_size_window if shape.windowed[layer] else shape.key_size
        value = shape.value_size_window if shape.windowed[layer] else shape.value_size
        if self.model.has(layer, "attn_qkv.weight"):
            whole = self.multiply(source, "attn_qkv", layer)
            row = whole.strides[1]
            found, offset = [], 0
            for count, size in ((heads, key), (pairs, key), (pairs, value)):
                strides = (4, 4 * size, row, row * tokens)
                found.append(graph.look("view", whole, (size, count, tokens), strides, offset))
                offset += 4 * size * count
            return found[0], found[1], found[2]
        query = graph.reshape(self.multiply(source, "attn_q", layer), key, heads, tokens)
        keys = graph.reshape(self.multiply(source, "attn_k", layer), key, pairs, tokens)
        values = graph.reshape(self.multiply(source, "attn_v", layer), value, pairs, tokens)
        return query, keys, values

    def store(self, cache: Node, rows: Node, where: Node) -> Node:
        """Write rows into the cache: the result is a view of it."""
        result = self.graph.look("set_rows", cache, cache.dimensions, cache.strides)
        result.sources = [rows, where, cache]
        return result

    def attention(self, query: Node, key: Node, value: Node, layer: int) -> Node:
        graph, shape, batch = self.graph, self.shape, self.batch
        window, place = shape.windowed[layer], self.places[layer]
        turn_keys = self.rotation(window, "keys")
        turn_values = self.rotation(window, "values")
        query, key = self.rotated(query, turn_keys), self.rotated(key, turn_keys)
        value = self.rotated(value, turn_values)
        first = (query, key, value) if self.kind in _KEYS_FIRST else (query, value, key)
        for item in first:
            graph.expand(item)
        cells = batch.cells_window if window else batch.cells
        size_k, count = key.dimensions[0], key.dimensions[1]
        size_v = value.dimensions[0]
        key_cache = graph.stored(batch.keys, (size_k * count, cells, self.streams), place)
        value_cache = graph.stored(batch.values, (size_v * count, cells, self.streams), place)
        self._keep(key_cache, key, self.places_of(window, "keys"), size_k * count, cells)
        where = self.places_of(window, "values")
        if batch.turned:
            self._keep_turned(value_cache, value, where)
        else:
            self._keep(value_cache, value, where, size_v * count, cells)
        tokens, heads = batch.tokens // self.streams, query.dimensions[1]
        query = graph.look(
            "view",
            query,
            (size_k, heads, tokens, self.streams),
            (*query.strides[:3], query.strides[2] * tokens),
        )
        query = graph.permute(query)
        row = batch.keys.bytes * size_k // batch.keys.values
        keys = graph.look(
            "view", key_cache, (size_k, count, cells, self.streams),
            (batch.keys.bytes, row, row * count, row * count * cells),
        )  # fmt: skip
        if batch.flash:
            result = self._flash(query, graph.permute(keys), value_cache, size_v, count, layer)
        else:
            result = self._slow(query, graph.permute(keys), value_cache, size_v, count, layer)
        graph.expand(result)
        result = self.rotated(result, turn_values)
        return self.multiply(result, "attn_output", layer)

    def _keep(self, cache: Node, rows: Node, where: Node, width: int, cells: int) -> None:
        graph, tokens = self.graph, self.batch.tokens
        flat = graph.look(
            "view", rows, (width, tokens),
            (4, rows.strides[2], rows.strides[2] * tokens, rows.strides[2] * tokens),
        )  # fmt: skip
        target = cache
        if self.streams > 1:
            target = graph.reshape(cache, width, cells * self.streams)
        graph.expand(self.store(target, flat, where))

    def _keep_turned(self, cache: Node, rows: Node, where: Node) -> None:
        """Without flash attention values are stored one by one, transposed."""
        graph = self.graph
        a, b, c, _ = rows.dimensions
        if rows.strides[2] != 4 * a * b:
            rows = graph.make("cont", (a * b, c), [rows])
        single = graph.reshape(graph.reshape(rows, a * b, c), 1, a * b * c)
        x, y, z, _ = cache.dimensions
        graph.expand(self.store(graph.reshape(cache, 1, x * y * z), single, where))

    def _values(self, cache: Node, size: int, count: int, layer: int) -> Node:
        """The cache's values as attention reads them, where they are not transposed."""
        batch = self.batch
        cells = batch.cells_window if self.shape.windowed[layer] else batch.cells
        row = batch.values.bytes * size // batch.values.values
        return self.graph.permute(
            self.graph.look(
                "view", cache, (size, count, cells, self.streams),
                (batch.values.bytes, row, row * count, row * count * cells),
            )
        )  # fmt: skip

    def _sinks(self, layer: int) -> list[Node]:
        if not self.model.has(layer, "attn_sinks.weight"):
            return []
        return [self.weight("attn_sinks.weight", layer)]

    def _flash(
        self, query: Node, keys: Node, cache: Node, size: int, count: int, layer: int
    ) -> Node:
        graph, window = self.graph, self.shape.windowed[layer]
        values = self._values(cache, size, count, layer)
        _, tokens, heads, streams = query.dimensions
        result = graph.make(
            "flash_attn",
            (size, heads, tokens, streams),
            [query, keys, values, self.mask(window), *self._sinks(layer)],
        )
        result.extra = _copies_of_cache(result.bytes, keys, values)
        return graph.reshape(result, size * heads, tokens * streams)

    def _slow(
        self, query: Node, keys: Node, cache: Node, size: int, count: int, layer: int
    ) -> Node:
        graph, batch = self.graph, self.batch
        window = self.shape.windowed[layer]
        cells = batch.cells_window if window else batch.cells
        if batch.turned:
            row = batch.values.bytes * cells // batch.values.values
            values = graph.look(
                "view", cache, (cells, count, size, self.streams),
                (batch.values.bytes, row * size, row, row * size * count),
            )  # fmt: skip
            values = graph.permute(values)
        else:
            values = graph.transpose(self._values(cache, size, count, layer))
            values = graph.make("cont", values.dimensions, [values], values.format)
        scores = graph.product(keys, query)
        if self.kind in _CAPPED:
            scores = graph.like("scale", graph.like("unary", graph.like("scale", scores)))
        scores = graph.like("soft_max", scores, self.mask(window), *self._sinks(layer))
        mixed = graph.permute(graph.product(values, scores))
        a, b, c, d = mixed.dimensions
        return graph.make("cont", (a * b, c * d), [mixed])

    # feed-forward --------------------------------------------------------------------------------

    def feed_forward(self, source: Node, layer: int) -> Node:
        if self.model.has(layer, "ffn_gate_inp.weight"):
            result = self.experts(source, layer)
            if self.model.has(layer, "ffn_up_shexp.weight"):
                shared = self._dense(source, layer, "_shexp")
                result = self.graph.like("add", result, shared)
            return result
        return self._dense(source, layer, "")

    def _dense(self, source: Node, layer: int, kind: str) -> Node:
        graph = self.graph
        up = self.multiply(source, f"ffn_up{kind}", layer)
        if self.model.has(layer, f"ffn_gate{kind}.weight"):
            gate = self.multiply(source, f"ffn_gate{kind}", layer)
            up = graph.make("glu", gate.dimensions, [gate, up])
        else:
            down = self.model.by_name[f"blk.{layer}.ffn_down{kind}.weight"]
            if up.dimensions[0] == 2 * down.dimensions[0]:
                up = graph.make("glu", (down.dimensions[0], up.dimensions[1]), [up])
            else:
                up = graph.like("unary", up)
        return self.multiply(up, f"ffn_down{kind}", layer)

    def experts(self, source: Node, layer: int) -> Node:
        graph, shape = self.graph, self.shape
        width, rows = source.dimensions[0], source.dimensions[1]
        used = shape.experts_used
        late = self.kind == "gpt-oss"
        scores = self.multiply(source, "ffn_gate_inp", layer)
        chances = scores if late else graph.like("soft_max", scores)
        sorted_ = graph.make("argsort", scores.dimensions, [chances], graph.i32)
        chosen = graph.look("view", sorted_, (used, rows), sorted_.strides)
        parts = graph.reshape(chances, 1, scores.dimensions[0], rows)
        weights = graph.make("get_rows", (1, used, rows), [parts, chosen])
        if late:
            weights = graph.like("soft_max", graph.reshape(weights, used, rows))
            weights = graph.reshape(weights, 1, used, rows)
        else:
            flat = graph.reshape(weights, used, rows)
            total = graph.like("clamp", graph.make("sum_rows", (1, rows), [flat]))
            weights = graph.reshape(graph.like("div", flat, total), 1, used, rows)
        graph.expand(weights)
        source = graph.reshape(source, width, 1, rows)
        if not late:  # chosen and weighted at once: all of it stays until the next tensor
            fused = [*_between(weights, scores), scores]
            graph.kept[source] = fused
        up = self._expert(source, "ffn_up_exps", chosen, layer)
        gate = self._expert(source, "ffn_gate_exps", chosen, layer)
        inner = graph.make("glu", gate.dimensions, [gate, up])
        each = self._expert(inner, "ffn_down_exps", chosen, layer)
        result = graph.like("mul", each, weights)
        graph.expand(result)
        parts_ = []
        for at in range(used):
            step = result.strides[2]
            parts_.append(
                graph.look("view", result, (width, rows), (4, step, step * rows, step * rows),
                           at * result.strides[1])
            )  # fmt: skip
            graph.expand(parts_[-1])
        total_ = parts_[0]
        for part in parts_[1:]:
            total_ = graph.make("add", total_.dimensions, [total_, part])
            graph.expand(total_)
        if used == 1:
            total_ = graph.make("cont", total_.dimensions, [total_])
        elif used <= _REDUCED:
            graph.kept[total_] = [each, weights]
        return total_

    def _expert(self, source: Node, name: str, chosen: Node, layer: int) -> Node:
        weight = self.weight(f"{name}.weight", layer)
        rows, used = weight.dimensions[1], chosen.dimensions[0]
        result = self.graph.make(
            "mul_mat_id", (rows, used, source.dimensions[2]), [weight, source, chosen]
        )
        if self.model.has(layer, f"{name}.bias"):
            bias = self.weight(f"{name}.bias", layer)
            result = self.graph.like("add_id", result, bias, chosen)
        return result

    # the whole -----------------------------------------------------------------------------------

    def pick(self, source: Node) -> Node:
        return self.graph.make(
            "get_rows", (source.dimensions[0], self.batch.outputs), [source, self.rows]
        )

    def layer(self, source: Node, layer: int) -> Node:
        graph, model = self.graph, self.model
        current = self.norm(source, "attn_norm.weight", layer)
        query, key, value = self.heads(current, layer)
        if model.has(layer, "attn_q_norm.weight"):
            query = self.norm(query, "attn_q_norm.weight", layer)
        query = self.rope(query, layer)
        if model.has(layer, "attn_k_norm.weight"):
            key = self.norm(key, "attn_k_norm.weight", layer)
        key = self.rope(key, layer)
        if self.kind in _SCALED_QUERIES:
            query = graph.like("scale", query)
        current = self.attention(query, key, value, layer)
        if layer == self.shape.layers - 1 - self.shape.nextn and self.kind not in _LATE_ROWS:
            current, source = self.pick(current), self.pick(source)
        after = "post_attention_norm.weight"
        own_norm = "ffn_norm.weight"
        if model.has(layer, after) and model.has(layer, own_norm):
            current = self.norm(current, after, layer)
        elif model.has(layer, after):
            own_norm = after
        current = graph.like("add", current, source)
        source = current
        current = self.norm(current, own_norm, layer)
        current = self.feed_forward(current, layer)
        if model.has(layer, "post_ffw_norm.weight"):
            current = self.norm(current, "post_ffw_norm.weight", layer, bind=False)
        if self.kind == "phi3":
            return graph.like("add", source, current)
        return graph.like("add", current, source)

    def build(self, host: int) -> Graph:
        graph, shape, batch = self.graph, self.shape, self.batch
        tokens = graph.input((batch.tokens,), graph.i32)
        table = self.model.by_name["token_embd.weight"]
        stored = graph.stored(table.format, table.dimensions, host)
        current = graph.make("get_rows", (shape.embedding, batch.tokens), [stored, tokens])
        graph.expand(current)
        graph.expand(graph.input((shape.embedding, batch.tokens)))  # instead of tokens
        if self.kind in _SCALED_INPUT:
            current = graph.like("scale", current)
        for layer in range(shape.layers - shape.nextn):
            current = self.layer(current, layer)
        if self.kind in _LATE_ROWS:
            current = self.pick(current)
        current = self.norm(current, "output_norm.weight", None)
        name = "output.weight" if "output.weight" in self.model.by_name else "token_embd.weight"
        current = graph.product(self.weight(name), current)
        if self.kind in _CAPPED:
            current = graph.like("scale", graph.like("unary", graph.like("scale", current)))
        graph.expand(current)
        return graph


def _copies_of_cache(size: int, keys: Node, values: Node) -> int:
    """Bytes after the result of flash attention for a quantised cache in f16."""
    end = size
    for cache in (keys, values):
        if cache.format.name != "F16":
            a, b, c, d = cache.dimensions
            end += -end % 128 + a * b * c * d * formats()["F16"].bytes
    return end - size


def graph_of(
    model: Model, batch: Batch, places: Sequence[int], host: int, bind_norms: bool
) -> Graph:
    """The computation of a batch.

    Args:
        model: its tensors name what its layers have.
        batch: what is reserved for.
        places: the backend of each layer, and of the output.
        host: the host's backend.
        bind_norms: everything is on GPUs, and the first operation of a layer is computed where
            its weights are.
    """
    return _Builder(model, batch, places, bind_norms).build(host)
