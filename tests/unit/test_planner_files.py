"""Reading model files: what they say, and that nothing but ModelError comes of bad ones."""

from __future__ import annotations

import io
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import model_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legacy_cuda.catalog.models import find_mix
from legacy_cuda.planner import gguf, metadata, safetensors
from legacy_cuda.planner.model import ModelError


def header_of(data: bytes) -> gguf.Header:
    return gguf.read_file(io.BytesIO(data), len(data))


def test_a_model_is_read() -> None:
    header = header_of(model_files.llama())
    assert header.values["general.architecture"] == "llama"
    assert header.values["llama.something"] is True
    assert header.lengths["tokenizer.ggml.tokens"] == 3
    assert header.values["tokenizer.ggml.tokens"] is None
    model = metadata.model_of(header, "x")
    shape = model.shape
    assert (shape.layers, shape.embedding, shape.vocabulary) == (2, 64, 256)
    assert (shape.heads, shape.heads_kv, shape.key_size) == ((4, 4), (2, 2), 16)
    assert shape.attention == (True, True) and shape.recurrent == (False, False)
    assert model.quantisation == "F16"
    assert model.bytes == sum(size for *_, size in model_files.llama_tensors())


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "no GGUF"),
        (b"PK\3\4" + bytes(60), "no GGUF"),
        (model_files.gguf({}, [], version=1), "version 1"),
        (model_files.gguf({}, [], version=4), "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "values"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60) + bytes(9), "bytes of a key"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.text("k")
            + struct.pack("<IIQ", 9, 4, 1 << 60),
            "elements",
        ),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.text("k")
            + struct.pack("<IIQ", 9, 9, 1) + bytes(16),
            "kind 9",
        ),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + model_files.text("k") + b"\x63\0\0\0", "kind 99"),
        (model_files.llama(general__alignment=48), "alignment"),
        (model_files.gguf({}, [("t", 1, (8,), 16), ("t", 1, (8,), 16)]), "two tensors"),
        (model_files.gguf({}, [("t", 99, (8,), 16)]), "not known"),
        (model_files.gguf({}, [("t", 12, (8,), 16)]), "do not fill"),
        (model_files.gguf({}, [("t", 1, (0,), 0)]), "dimension of 0"),
        (model_files.gguf({}, [("t", 1, (1 << 40, 1 << 40), 0)]), "more values"),
        (model_files.gguf({}, [("t", 1, (1 << 20,), 64)]), "not finished"),
        (model_files.gguf({}, [("t", 1, (32,), 32), ("u", 1, (8,), 16)]), "'u' begins at byte 32"),
        (model_files.gguf({}, [("t", 1, (8,), 64), ("u", 1, (8,), 16)]), "'u' begins at byte 64"),
    ],
)  # fmt: skip
def test_bad_files(data: bytes, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        header_of(data)


def test_every_cut_is_found() -> None:
    data = model_files.llama()
    for size in [*range(0, 1500), *range(1500, len(data), 997), len(data) - 32]:
        with pytest.raises(ModelError):
            header_of(data[:size])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"general__architecture": None}, "architecture"),
        ({"general__architecture": "x\n"}, "architecture"),
        ({"llama__block_count": None}, "missing"),
        ({"llama__block_count": 0}, "without layers"),
        ({"llama__block_count": 1 << 20}, "1048576"),
        ({"llama__embedding_length": "wide"}, "wide"),
        ({"llama__attention__head_count_kv": [2]}, "has 1 numbers"),
        ({"llama__attention__head_count_kv": [2, 1 << 30]}, "1073741824"),
        ({"llama__expert_used_count": 1 << 20}, "1048576"),
    ],
)
def test_numbers_out_of_reason(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        metadata.model_of(header_of(model_files.llama(**change)), "x")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_only_model_errors_leave(data: Any) -> None:
    whole = bytearray(model_files.llama()[:2200])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 8))
        whole[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, (1 << 64) - 1)))
    full = bytes(whole) + bytes(200_000)
    with suppress(ModelError):
        metadata.model_of(header_of(full), "x")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_noise(data: bytes) -> None:
    for begin in (b"", b"GGUF\3\0\0\0"):
        with suppress(ModelError):
            header_of(begin + data)
    with suppress(ModelError):
        safetensors.header_values(data, len(data))


def _split(folder: Path, **change: Any) -> Path:
    """A model in two files."""
    tensors = model_files.llama_tensors()
    for number, part in enumerate((tensors[:4], tensors[4:])):
        values = {"split.no": number, "split.count": 2, "split.tensors.count": len(tensors)}
        values = {**(model_files.LLAMA if number == 0 else {}), **values}
        values.update(change if number else {})
        name = f"m-{number + 1:05}-of-00002.gguf"
        (folder / name).write_bytes(model_files.gguf(values, part))
    return folder / "m-00002-of-00002.gguf"


def test_a_split_model(tmp_path: Path) -> None:
    header = gguf.read(_split(tmp_path))
    assert header.files == 2 and len(header.tensors) == len(model_files.llama_tensors())
    assert metadata.model_of(header, "m").shape.layers == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"split.no": 0}, "says that it is part"),
        ({"split.count": 3}, "one of 3 files"),
    ],
)
def test_a_split_model_that_does_not_belong(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    with pytest.raises(ModelError, match=what):
        gguf.read(_split(tmp_path, **change))


def test_a_part_is_missing(tmp_path: Path) -> None:
    path = _split(tmp_path)
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(OSError, match="00001"):
        gguf.read(path)


def test_layers_of_other_kinds() -> None:
    """A hybrid: its second layer has a state and no cache."""
    tensors = [row for row in model_files.llama_tensors() if not row[0].startswith("blk.1.attn_")]
    tensors.append(("blk.1.ssm_conv1d.weight", 0, (4, 96), 4 * 96 * 4))
    changes = {
        "llama.ssm.inner_size": 64, "llama.ssm.state_size": 16, "llama.ssm.conv_kernel": 4,
        "llama.ssm.group_count": 1,
    }  # fmt: skip
    data = model_files.gguf({**model_files.LLAMA, **changes}, tensors)
    shape = metadata.model_of(header_of(data), "x").shape
    assert shape.attention == (True, False) and shape.recurrent == (False, True)
    assert shape.state_rows == (3 * (64 + 2 * 16), 16 * 64)


CONFIG: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
WEIGHTS = {
    f"t{number}": ("BF16", dimensions) for number, (_, _, dimensions, _) in
    enumerate(model_files.llama_tensors())
}  # fmt: skip


def _folder(place: Path, config: Any, weights: bytes) -> Path:
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").write_bytes(weights)
    return place


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    folder = _folder(tmp_path, CONFIG, model_files.safetensors(WEIGHTS))
    model = safetensors.read(folder, find_mix("Q8_0"))
    assert model.quantisation == "Q8_0" and model.shape.heads_kv == (2, 2)
    assert model.parameters == sum(
        tensor.values for tensor in metadata.model_of(header_of(model_files.llama()), "x").tensors
    )
    assert not any("are not counted" in note for note in model.notes)


@pytest.mark.parametrize(
    ("config", "weights", "what"),
    [
        ({**CONFIG, "model_type": "rwkv"}, model_files.safetensors(WEIGHTS), "rwkv"),
        ({**CONFIG, "hidden_size": -1}, model_files.safetensors(WEIGHTS), "hidden_size"),
        ({**CONFIG, "num_attention_heads": 0}, model_files.safetensors(WEIGHTS), "without"),
        ({**CONFIG, "num_key_value_heads": 0}, model_files.safetensors(WEIGHTS), "without"),
        ([], model_files.safetensors(WEIGHTS), "no JSON object"),
        (CONFIG, model_files.safetensors(WEIGHTS, cut=8), "not finished"),
        (CONFIG, b"\xff" * 40, "larger than the file"),
        (CONFIG, struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (CONFIG, struct.pack("<Q", 9) + b'{"a": {}}', "not described"),
    ],
)
def test_bad_folders(tmp_path: Path, config: Any, weights: bytes, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        safetensors.read(_folder(tmp_path, config, weights), find_mix("F16"))
