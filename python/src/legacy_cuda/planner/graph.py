"""A small stand-in for ggml: tensors of a computation, and where its scheduler would put them.

llama.cpp reserves one buffer a device for everything that a batch computes between weights and
logits. How large it becomes follows from the order of the operations, from which of them write over
an operand, from the copies between devices, and from the allocator, which gives each result the
smallest free block that is large enough. All of that is done here on sizes alone.

Backends are numbers: the GPUs from 0, the host last. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from legacy_cuda.catalog.models import Format, formats

# operations whose result may take the place of an operand (ggml_op_can_inplace)
IN_PLACE = frozenset(
    ("add", "add_id", "clamp", "div", "mul", "rms_norm", "rope", "scale", "soft_max", "unary")
)
# operations that only look at a tensor
VIEWS = frozenset({"permute", "reshape", "transpose", "view"})

# rows of a batch from which a GPU multiplies with weights that lie in the host's memory
# (op_offload_min_batch_size in ggml-cuda.cu)
MOVED_FROM = 32

Dimensions = tuple[int, int, int, int]


@dataclass(eq=False, slots=True)
class Node:
    """A tensor. ``place`` is the backend it is bound to, by its own memory or by a weight's.

    ``external``: it lies in memory that is there already, as weights and the KV cache do.
    ``strides`` are bytes from one element of each dimension to the next; ``offset`` is that of a
    view in ``base``, the tensor whose memory it looks at. ``extra`` are bytes that a backend wants
    after the result for fleeting data.
    """

    operation: str
    format: Format
    dimensions: Dimensions
    strides: Dimensions
    sources: list[Node] = field(default_factory=list)
    base: Node | None = None
    offset: int = 0
    place: int | None = None
    external: bool = False
    is_input: bool = False
    keep: bool = False
    extra: int = 0

    @property
    def bytes(self) -> int:
        """Bytes without padding: those up to its last element."""
        last = self.format.size(self.dimensions[0]) if self.format.values > 1 else 0
        first = 1 if last else 0
        if not last:
            last = self.format.bytes
        steps = zip(self.dimensions[first:], self.strides[first:], strict=True)
        return last + sum((count - 1) * step for count, step in steps)


def strides_of(form: Format, dimensions: Dimensions) -> Dimensions:
    """Strides of a tensor without gaps."""
    row = form.bytes * dimensions[0] // form.values
    return form.bytes, row, row * dimensions[1], row * dimensions[1] * dimensions[2]


def four(dimensions: Iterable[int]) -> Dimensions:
    """Dimensions, filled up with 1 to four."""
    given = (*dimensions, 1, 1, 1, 1)
    return given[0], given[1], given[2], given[3]


class Graph:
    """A computation in the order in which llama.cpp has it: see :meth:`expand`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.leafs: list[Node] = []
        #: what a GPU keeps until a node is computed, because it computes them as one
        self.kept: dict[Node, list[Node]] = {}
        self._seen: set[Node] = set()
        self.f32, self.f16, self.i32, self.i64 = (
            formats()[name] for name in ("F32", "F16", "I32", "I64")
        )

    # making tensors ------------------------------------------------------------------------------

    def input(self, dimensions: Iterable[int], form: Format | None = None) -> Node:
        """What comes from outside with each batch, on the host."""
        shape = four(dimensions)
        kind = form or self.f32
        return Node("none", kind, shape, strides_of(kind, shape), is_input=True)

    def stored(self, form: Format, dimensions: Iterable[int], place: int) -> Node:
        """A weight, or a part of the KV cache, in a backend's memory."""
        shape = four(dimensions)
        return Node("none", form, shape, strides_of(form, shape), place=place, external=True)

    def make(
        self,
        operation: str,
        dimensions: Iterable[int],
        sources: Sequence[Node],
        form: Format | None = None,
    ) -> Node:
        """The result of an operation, without gaps."""
        shape = four(dimensions)
        kind = form or self.f32
        return Node(operation, kind, shape, strides_of(kind, shape), list(sources))

    def like(self, operation: str, *sources: Node) -> Node:
        """A result of the first operand's dimensions: in place where that may be."""
        return self.make(operation, sources[0].dimensions, sources, sources[0].format)

    def look(
        self,
        operation: str,
        source: Node,
        dimensions: Iterable[int],
        strides: Dimensions | None = None,
        offset: int = 0,
    ) -> Node:
        """A view of a tensor; views of views look at the same memory."""
        shape = four(dimensions)
        base = source.base or source
        return Node(
            operation,
            source.format,
            shape,
            strides or strides_of(source.format, shape),
            [source],
            base,
            source.offset + offset,
        )

    def reshape(self, source: Node, *dimensions: int) -> Node:
        return self.look("reshape", source, dimensions)

    def permute(self, source: Node) -> Node:
        """The second and third dimension change places."""
        a, b, c, d = source.dimensions
        p, q, r, s = source.strides
        return self.look("permute", source, (a, c, b, d), (p, r, q, s))

    def transpose(self, source: Node) -> Node:
        """The first and second dimension change places."""
        a, b, c, d = source.dimensions
        p, q, r, s = source.strides
        return self.look("transpose", source, (b, a, c, d), (q, p, r, s))

    def product(self, weight: Node, source: Node) -> Node:
        """A matrix product: rows of the first with rows of the second."""
        return self.make(
            "mul_mat",
            (weight.dimensions[1], *source.dimensions[1:]),
            [weight, source],
        )

    # the order -----------------------------------------------------------------------------------

    def expand(self, last: Node) -> None:
        """Add a tensor and, before it, what it needs: operands first, from left to right."""
        stack: list[tuple[Node, int]] = [(last, 0)]
        if last in self._seen:
            return
        self._seen.add(last)
        while stack:
            node, at = stack.pop()
            while at < len(node.sources) and node.sources[at] in self._seen:
                at += 1
            if at < len(node.sources):
                stack.append((node, at + 1))
                self._seen.add(node.sources[at])
                stack.append((node.sources[at], 0))
            elif node.operation == "none":
                self.leafs.append(node)
            else:
                self.nodes.append(node)


class _Pool:
    """Free blocks of one backend's buffer, as ggml's allocator keeps them."""

    ENDLESS = 1 << 62

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free: list[list[int]] = [[0, self.ENDLESS]]  # offset, size; by offset
        self.size = 0

    def padded(self, size: int) -> int:
        return size + -size % self.alignment

    def take(self, size: int) -> int:
        size = self.padded(size)
        best = len(self.free) - 1
        for at, (_, room) in enumerate(self.free[:-1]):
            if room >= size and (best == len(self.free) - 1 or room <= self.free[best][1]):
                best = at
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if not block[1]:
            del self.free[best]
        self.size = max(self.size, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        size = self.padded(size)
        for at, block in enumerate(self.free):
            if block[0] + block[1] == offset:
                block[1] += size
                if at + 1 < len(self.free) and block[0] + block[1] == self.free[at + 1][0]:
                    block[1] += self.free[at + 1][1]
                    del self.free[at + 1]
                return
            if offset + size == block[0]:
                block[0], block[1] = offset, block[1] + size
                return
            if block[0] > offset:
                self.free.insert(at, [offset, size])
                return


@dataclass(slots=True)
class _State:
    """What the allocator knows of a tensor."""

    users: int = 0
    views: int = 0
    taken: bool = False
    pool: int = 0
    offset: int = 0


class _Allocator:
    """ggml's graph allocator over one pool for each backend."""

    def __init__(self, alignments: Sequence[int], row_padding: Sequence[int]) -> None:
        self.pools = [_Pool(alignment) for alignment in alignments]
        self.row_padding = row_padding
        self.states: dict[Node, _State] = {}

    def state(self, node: Node) -> _State:
        found = self.states.get(node)
        if found is None:
            found = self.states[node] = _State()
        return found

    def size(self, node: Node, pool: int) -> int:
        padding = self.row_padding[pool]
        size = node.bytes + (node.extra if padding else 0)
        if padding and node.format.quantised and node.dimensions[0] % padding:
            size += node.format.size(padding - node.dimensions[0] % padding)
        return size

    def place(self, node: Node, pool: int) -> None:
        state = self.state(node)
        if state.taken or node.external or node.base is not None:
            return
        state.taken = True
        if node.operation in IN_PLACE and self._over_operand(node, state):
            return
        state.pool = pool
        state.offset = self.pools[pool].take(self.size(node, pool))

    def _over_operand(self, node: Node, state: _State) -> bool:
        """Give a result the memory of an operand that nothing else needs; never that of a view."""
        for source in node.sources:
            mine = self.state(source)
            if source.keep or not mine.taken or mine.users != 1 or mine.views:
                continue
            if (source.format, source.dimensions, source.strides) != (
                node.format,
                node.dimensions,
                node.strides,
            ):
                continue
            state.pool, state.offset, mine.taken = mine.pool, mine.offset, False
            pool = self.pools[state.pool]
            before, after = (pool.padded(self.size(item, state.pool)) for item in (source, node))
            if before > after:
                pool.give(state.offset + after, before - after)
            return True
        return False

    def release(self, node: Node) -> None:
        if node.keep:
            return
        state = self.state(node)
        self.pools[state.pool].give(state.offset, self.size(node, state.pool))
        state.taken = False

    def run(self, steps: Sequence[tuple[Node, int]], leafs: Sequence[tuple[Node, int]]) -> None:
        for leaf, pool in leafs:
            self.place(leaf, pool)
        for node, pool in steps:
            if node.base is not None and node.operation != "none":
                self.state(node.base).views += 1
            if node.is_input:
                self.place(node, pool)
            for source in node.sources:
                self.state(source).users += 1
                if source.is_input:
                    self.place(source, pool)
        for node, pool in steps:
            for source in node.sources:
                self.place(source, pool)
            self.place(node, pool)
            for source in node.sources:
                state = self.state(source)
                state.users -= 1
                if state.users or state.views:
                    continue
                if source.base is not None:
                    owner = self.state(source.base)
                    owner.views -= 1
                    if not owner.views and not owner.users and owner.taken:
                        self.release(source.base)
                elif state.taken:
                    self.release(source)


@dataclass(frozen=True)
class Backends:
    """GPUs, then the host: alignment of tensors, values that quantised rows are padded to (0 for
    none), and how many batches are in flight at a time (copies of what passes between them)."""

    alignments: tuple[int, ...]
    row_padding: tuple[int, ...]
    copies: int = 1

    @property
    def host(self) -> int:
        return len(self.alignments) - 1


def _expand_places(nodes: Sequence[Node], places: dict[Node, int], skip: int | None) -> None:
    """Give operations without a place that of the one before; ``skip`` never spreads."""
    current: int | None = None
    for node in nodes:
        if node.operation in VIEWS:
            continue
        found = places.get(node)
        if found is not None:
            current = None if found == skip else found
        elif current is not None:
            places[node] = current


def _worth_moving(node: Node) -> bool:
    """Whether the first GPU computes this although its weights are the host's: a large batch."""
    if node.operation == "get_rows":
        return False
    if node.operation == "mul_mat":
        rows = node.dimensions[1]
    elif node.operation in ("mul_mat_id", "rope"):
        rows = node.dimensions[2]
    else:
        rows = node.dimensions[1] * node.dimensions[2] * node.dimensions[3]
    return rows >= MOVED_FROM


def _assign(graph: Graph, host: int) -> dict[Node, int]:
    """The backend of every tensor: by its weights, else by its neighbours."""
    places: dict[Node, int] = {}
    for leaf in graph.leafs:
        if leaf.is_input:
            places[leaf] = host
        elif leaf.place is not None:
            places[leaf] = leaf.place
    for node in graph.nodes:
        bound = node.place
        if bound is None and node.base is not None:
            bound = node.base.place
        if bound is None and node.operation not in ("rope", "flash_attn"):
            bound = next((item.place for item in node.sources if item.external), None)
            if bound == host and _worth_moving(node):
                bound = 0
        if bound is not None:
            places[node] = bound
    for skip in (host, None):
        _expand_places(graph.nodes, places, skip)
        _expand_places(graph.nodes[::-1], places, skip)
    for node in graph.nodes:
        if node not in places and node.base is not None and node.base in places:
            places[node] = places[node.base]
        for source in node.sources:
            if source not in places:
                owner = source.base
                places[source] = places[owner] if owner in places else places.get(node, host)
        places.setdefault(node, host)
    return places


def buffers(graph: Graph, backends: Backends) -> list[int]:
    """Bytes of each backend's compute buffer, the host's last."""
    host = backends.host
    places = _assign(graph, host)
    copies: dict[tuple[Node, int], list[Node]] = {}
    splits: list[tuple[list[Node], list[Node], int]] = []  # inputs, nodes, backend
    current: int | None = None
    for node in graph.nodes:
        if node.operation in VIEWS:
            if splits:
                splits[-1][1].append(node)
            else:
                splits.append(([], [node], places[node]))
            continue
        if places[node] != current:
            if current is None and splits:
                splits[0] = (splits[0][0], splits[0][1], places[node])
            else:
                splits.append(([], [], places[node]))
            current = places[node]
        if splits[-1][0] and any(
            item.external and places[item] != current for item in node.sources
        ):  # the memory of weights that were copied here is used again
            splits.append(([], [], places[node]))
        inputs, nodes, backend = splits[-1]
        for at, source in enumerate(node.sources):
            if places[source] == backend:
                continue
            made = copies.get((source, backend))
            if made is None:
                made = [
                    Node("none", source.format, source.dimensions, source.strides)
                    for _ in range(backends.copies)
                ]
                for item in made:
                    item.is_input = item.keep = backends.copies > 1
                copies[source, backend] = made
                inputs.append(source)
            node.sources[at] = made[0]
        nodes.append(node)
    steps: list[tuple[Node, int]] = []
    leafs: list[tuple[Node, int]] = []
    if backends.copies > 1:
        leafs += _copied_inputs(graph, places, copies, backends.copies)
        for inputs, _, backend in splits:
            for item in inputs:
                leafs += [(one, backend) for one in copies[item, backend]]
    for inputs, nodes, backend in splits:
        for item in inputs:
            source = item.base or item
            seen = Node("none", item.format, item.dimensions, item.strides, [item], source)
            steps.append((seen, places[item]))
            steps.append((copies[item, backend][0], backend))
        for node in nodes:
            steps.append((node, places[node]))
            kept = graph.kept.get(node)
            if kept and backend != host:
                first = kept[0]
                held = Node("none", first.format, first.dimensions, first.strides, kept, first)
                steps.append((held, places[node]))
    leafs += [(leaf, places.get(leaf, host)) for leaf in graph.leafs]
    allocator = _Allocator(backends.alignments, backends.row_padding)
    allocator.run(steps, leafs)
    return [pool.size for pool in allocator.pools]


def _copied_inputs(
    graph: Graph,
    places: dict[Node, int],
    copies: dict[tuple[Node, int], list[Node]],
    count: int,
) -> list[tuple[Node, int]]:
    """With several batches in flight each input is there several times."""
    found = []
    for leaf in graph.leafs:
        if not leaf.is_input:
            continue
        place = places[leaf]
        made = copies.get((leaf, place))
        if made is None:
            twins = [
                Node("none", leaf.format, leaf.dimensions, leaf.strides) for _ in range(count - 1)
            ]
            made = copies[leaf, place] = [leaf, *twins]
            for item in made:
                item.is_input = item.keep = True
        found += [(item, place) for item in made]
    return found
