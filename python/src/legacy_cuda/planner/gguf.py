"""Reading GGUF files: the header, its values, and the table of tensors. Never the weights.

Files are hostile until read. Everything is bounded by the size of the file and by the limits below,
and only :class:`ModelError` (or OSError) leaves this module. A file is read, not mapped into
memory: a mapped file that another program cuts short ends the process that looks at it.

The form of the files is that of ggml's specification of GGUF, versions 2 and 3.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from legacy_cuda.catalog.models import format_numbers
from legacy_cuda.planner.model import ModelError, Tensor

MAGIC = b"GGUF"
VALUES_MOST = 1 << 16  # keys of a header; published models have about 50
TENSORS_MOST = 1 << 17  # published models have some thousands
TEXT_MOST = 1 << 24  # bytes of one text; chat templates have some 10,000
NAME_MOST = 1 << 10  # bytes of a key or of a tensor's name
ARRAY_MOST = 1 << 24  # elements; vocabularies have up to 300,000
KEPT_MOST = 1 << 12  # numbers of an array that is kept: one for each layer
SPLITS_MOST = 1 << 10
DIMENSIONS_MOST = 4

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_TEXT, _ARRAY = 8, 9

Value = int | float | bool | str | list[int | float | bool] | None


@dataclass(frozen=True)
class Header:
    """What a file says of its model.

    An array of numbers is kept if it is short, any other is None; ``lengths`` has the number of
    elements of every array. ``files`` counts the parts of a split model, ``bytes`` their sizes.
    """

    values: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    bytes: int
    files: int = 1


class _Reader:
    """Reads on from where it is, never past the end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ModelError(f"the file ends at byte {self.size}, inside its header")
        data = self.file.read(count)
        if len(data) != count:
            raise ModelError("the file became shorter while it was read")
        self.at += count
        return data

    def skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise ModelError(f"the file ends at byte {self.size}, inside its header")
        self.file.seek(count, 1)
        self.at += count

    def number(self, form: str) -> int:
        found: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return found

    def count(self, form: str, most: int, what: str) -> int:
        found = self.number(form)
        if found > most:
            raise ModelError(f"{found} {what}; more than {most} are not believed")
        return found

    def text(self, most: int, what: str) -> str:
        return self.take(self.count("<Q", most, f"bytes of {what}")).decode("utf-8", "replace")


def _array(reader: _Reader) -> tuple[Value, int]:
    """An array's numbers, if they are few, and how many elements it has."""
    kind = reader.number("<I")
    length = reader.count("<Q", ARRAY_MOST, "elements of an array")
    if kind == _TEXT:
        for _ in range(length):
            reader.skip(reader.count("<Q", TEXT_MOST, "bytes of a text"))
        return None, length
    form = _NUMBERS.get(kind)
    if form is None:
        raise ModelError(f"an array of values of kind {kind}, which is not known")
    width = struct.calcsize(form)
    if length > KEPT_MOST:
        reader.skip(width * length)
        return None, length
    data = reader.take(width * length)
    return [item[0] for item in struct.iter_unpack(form, data)], length


def _value(reader: _Reader) -> tuple[Value, int | None]:
    kind = reader.number("<I")
    if kind == _TEXT:
        return reader.text(TEXT_MOST, "a text"), None
    if kind == _ARRAY:
        return _array(reader)
    form = _NUMBERS.get(kind)
    if form is None:
        raise ModelError(f"a value of kind {kind}, which is not known")
    return reader.number(form), None


def _tensor(reader: _Reader) -> tuple[Tensor, int]:
    """A tensor and where its data begins, from the start of all data."""
    name = reader.text(NAME_MOST, "a tensor's name")
    count = reader.count("<I", DIMENSIONS_MOST, f"dimensions of tensor {name!r}")
    dimensions = struct.unpack(f"<{count}Q", reader.take(8 * count))
    form = format_numbers().get(reader.number("<I"))
    offset = reader.number("<Q")
    if form is None:
        raise ModelError(f"tensor {name!r} is of a format that is not known here")
    values = 1
    for size in dimensions:
        if not size:
            raise ModelError(f"tensor {name!r} has a dimension of 0")
        values *= size
        if values >= 1 << 62:
            raise ModelError(f"tensor {name!r} has more values than any machine holds")
    if (dimensions[0] if dimensions else 1) % form.values:
        raise ModelError(f"rows of tensor {name!r} do not fill blocks of {form.name}")
    return Tensor(name, form, dimensions), offset


def _alignment(values: dict[str, Value]) -> int:
    found = values.get("general.alignment", 32)
    if not isinstance(found, int) or found < 1 or found > 1 << 20 or found & (found - 1):
        raise ModelError(f"an alignment of {found!r}")
    return found


def read_file(file: BinaryIO, size: int) -> Header:
    """What one file of ``size`` bytes says, and that its tensors lie inside it.

    Raises:
        ModelError: it is no GGUF file, or one that is damaged or cut off.
    """
    reader = _Reader(file, size)
    if size < 24 or reader.take(4) != MAGIC:
        raise ModelError("this is no GGUF file")
    version = reader.number("<I")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "a big-endian GGUF file" if swapped in (2, 3) else f"GGUF version {version}"
        raise ModelError(f"{kind}; versions 2 and 3, little-endian, are read here")
    tensor_count = reader.count("<Q", TENSORS_MOST, "tensors")
    value_count = reader.count("<Q", VALUES_MOST, "values")
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(value_count):
        key = reader.text(NAME_MOST, "a key")
        if key in values:
            raise ModelError(f"two values of {key!r}")
        values[key], length = _value(reader)
        if length is not None:
            lengths[key] = length
    alignment = _alignment(values)
    found = [_tensor(reader) for _ in range(tensor_count)]
    start = reader.at + -reader.at % alignment
    names = set()
    expected = 0  # ggml reads files whose tensors lie one behind the other, and no others
    for tensor, offset in found:
        if tensor.name in names:
            raise ModelError(f"two tensors called {tensor.name!r}")
        names.add(tensor.name)
        if offset % alignment:
            raise ModelError(f"tensor {tensor.name!r} is not aligned")
        if offset != expected:
            raise ModelError(
                f"tensor {tensor.name!r} begins at byte {offset} of the data, but the one before "
                f"it ends at {expected}"
            )
        expected += tensor.bytes + -tensor.bytes % alignment
        if start + offset + tensor.bytes > size:
            raise ModelError(
                f"tensor {tensor.name!r} ends at byte {start + offset + tensor.bytes}, but the "
                f"file has {size}: its download was not finished"
            )
    return Header(values, lengths, tuple(tensor for tensor, _ in found), size)


def _read(path: Path) -> Header:
    with path.open("rb") as file:
        return read_file(file, file.seek(0, 2) + file.seek(0))


def _number(values: dict[str, Value], key: str) -> int:
    found = values.get(key, 0)
    return found if isinstance(found, int) and found >= 0 else 0


def parts(path: Path) -> list[Path]:
    """The files of a split model by their names, from that of any; else the one."""
    found = _SPLIT.search(path.name)
    if found is None or not 1 < int(found[2]) <= SPLITS_MOST:
        return [path]
    stem, count = path.name[: found.start()], int(found[2])
    return [path.with_name(f"{stem}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]


def read(path: Path, opened: Callable[[Path], Header] = _read) -> Header:
    """What a model says, from its file, or from all files of a split one, named by any of them.

    Raises:
        ModelError: a file is damaged, missing or of another model.
        OSError: a file cannot be read.
    """
    first = opened(path)
    count = _number(first.values, "split.count")
    if count <= 1:
        return first
    files = parts(path)
    if len(files) != count:
        raise ModelError(
            f"one of {count} files, whose name does not end with -00001-of-{count:05}.gguf"
        )
    headers = []
    for number, part in enumerate(files):
        header = first if part == path else opened(part)
        if _number(header.values, "split.no") != number:
            raise ModelError(f"{part.name} says that it is part {header.values.get('split.no')}")
        if _number(header.values, "split.count") != count:
            raise ModelError(f"{part.name} is of another model")
        headers.append(header)
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ModelError("a tensor is in two of the files")
    expected = _number(headers[0].values, "split.tensors.count")
    if expected and expected != len(tensors):
        raise ModelError(f"the files hold {len(tensors)} tensors of {expected}")
    return Header(
        headers[0].values,
        headers[0].lengths,
        tensors,
        sum(header.bytes for header in headers),
        count,
    )
