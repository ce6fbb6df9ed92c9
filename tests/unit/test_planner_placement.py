"""The planner beside what llama.cpp itself logged: tests/unit/placements.json.

Recorded with the pinned llama.cpp, on its CPU back end and with stand-ins for GPUs; how is in
tests/llama/placements.py. No GPU was there.
"""

from __future__ import annotations

import re
from dataclasses import replace

import placements
import pytest

from legacy_cuda import catalog
from legacy_cuda.catalog.estimates import overhead
from legacy_cuda.catalog.models import find_format, find_mix, find_model
from legacy_cuda.planner import plan
from legacy_cuda.planner.model import Model
from legacy_cuda.planner.placement import PIECE, Settings
from legacy_cuda.planner.shapes import model_of

CASES = placements.recorded()
REPLAYED = placements.recorded(placements.REPLAYED)


def test_there_are_cases_of_each_kind() -> None:
    assert len({case.model for case in CASES}) >= 12 + 6
    assert len(CASES) >= 150
    assert {len(case.capabilities) for case in CASES} == {0, 1, 2}
    assert {str(item) for case in CASES for item in case.capabilities} >= {"3.7", "6.0", "6.1"}


@pytest.mark.parametrize(
    "model", list(dict.fromkeys(case.model for case in CASES)), ids=lambda name: name
)
def test_weights_cache_and_buffers_are_what_llama_cpp_says(model: str) -> None:
    """A stand-in computes nothing and so keeps nothing for what a GPU computes as one: with experts
    some of its compute buffers differ. The replayed library's are those that are planned."""
    for case in (case for case in CASES if case.model == model):
        experts = bool(placements.planned_model(case).shape.experts)
        for kind, backend, said, mine in placements.foretold(case):
            text = f"{kind} of {backend}: {mine:.3f} MiB planned, {said} logged; {case}"
            if experts and kind == "compute" and re.fullmatch(r"CUDA\d", backend):
                assert 0.8 * said < mine < 1.6 * said, text
            else:
                assert mine == pytest.approx(said, abs=placements.HALF_DIGIT), text


@pytest.mark.parametrize(
    "model", list(dict.fromkeys(case.model for case in REPLAYED)), ids=lambda name: name
)
def test_a_real_library_for_gpus_says_the_same(model: str) -> None:
    """llama.cpp's own library for CUDA, compiled for 3.7 and replayed on an H200."""
    for case in (case for case in REPLAYED if case.model == model):
        for kind, backend, said, mine in placements.foretold(case):
            assert mine == pytest.approx(said, abs=placements.HALF_DIGIT), (
                f"{kind} of {backend}: {mine:.3f} MiB planned, {said} logged; {case}"
            )


def test_a_quantised_cache_of_values_switches_flash_attention_on() -> None:
    """On a K80 too, where it is off by itself; llama-server would refuse `off` there."""
    where = plan.devices([catalog.find_gpu("k80")], overhead((11, 8)))[:1]
    small = find_format("q8_0")
    for settings, flash in ((Settings(), False), (Settings(keys=small, values=small), True)):
        assert plan.try_out(_model("qwen3-8b", "Q4_K_M"), settings, where).placement.flash is flash


def test_weights_of_the_host_are_what_is_mapped() -> None:
    """On the CPU alone every tensor is mapped, once; but for those of models of which some are
    copied in another order for its instructions, whose mapping may be shorter."""
    whole = [case for case in CASES if not case.devices and "CPU_REPACK" not in case.mib["model"]]
    assert len(whole) >= 8
    for case in whole:
        mapped = case.mib["model"]["CPU_Mapped"]
        mine = placements.planned(case).host.weights / placements.MIB
        assert mine == pytest.approx(mapped, abs=0.02), case


# --- the pool, as the pinned ggml-cuda chooses its kernels --------------------------------------


def _pool(name: str, mix: str, gpu: str, parallel: int) -> int:
    """Bytes of it on the GPU that has the output."""
    where = plan.devices([catalog.find_gpu(gpu)], overhead((12, 4)))
    settings = Settings(context=3840, parallel=parallel)
    model = _model(name, "F16" if mix == "BF16" else mix)
    if mix == "BF16":  # a file may have it; no mix does
        wide = find_format("bf16")
        tensors = [
            replace(one, format=wide) if one.format.name == "F16" else one for one in model.tensors
        ]
        model = replace(model, tensors=tuple(tensors))
    return plan.try_out(model, settings, where).placement.gpus[-1].pool


def test_many_conversations_have_the_output_matrix_converted() -> None:
    """The kernels for vectors end at eight columns."""
    whole = 128256 * 4096 * 4
    for gpu, mix in (("p40", "F16"), ("m40", "Q4_K_M"), ("k80", "Q4_K_M")):
        few = _pool("llama-3.1-8b", mix, gpu, 8)
        assert few == _pool("llama-3.1-8b", mix, gpu, 1) < whole / 2
        for parallel in (9, 16):
            assert 0 <= _pool("llama-3.1-8b", mix, gpu, parallel) - whole < PIECE, (gpu, parallel)
    # with dp4a, and on a V100 below 64 columns, a quantised one is read as it is
    for gpu in ("p40", "v100"):
        one, many = (_pool("llama-3.1-8b", "Q4_K_M", gpu, parallel) for parallel in (1, 16))
        assert one == many
    # in half precision where that is fast, with as many columns, and the result in halves too
    half = _pool("llama-3.1-8b", "Q4_K_M", "p100", 16)
    assert 0 <= half - (128256 * 4096 * 2 + 4096 * 16 * 2 + 128256 * 16 * 2) < PIECE


def test_weights_that_cublas_reads_as_they_are() -> None:
    """F32 needs nothing on any card; BF16 becomes F32 where there is no bfloat16, and F16 stays
    where halves are fast: ggml_cuda_mul_mat_cublas."""
    largest = 14336 * 4096  # of a layer
    for gpu in ("p100", "v100", "p40"):
        assert _pool("llama-3.1-8b", "F32", gpu, 1) == 0, gpu
        assert 0 <= _pool("llama-3.1-8b", "BF16", gpu, 1) - 4 * largest < PIECE, gpu
    batch = 512
    assert 0 <= _pool("llama-3.1-8b", "F16", "v100", 1) - 2 * 14336 * batch < PIECE
    both = 2 * (14336 + 4096) * batch  # the batch and its result
    assert 0 <= _pool("llama-3.1-8b", "F16", "p100", 1) - both < PIECE


def test_experts_are_sorted_where_nothing_multiplies_them_in_bytes() -> None:
    """On a V100 with 64 columns and more, and below 6.0: ggml_cuda_mul_mat_id."""
    gpus = {gpu: _pool("mixtral-8x7b", "Q4_K_M", gpu, 1) for gpu in ("p40", "p100", "v100", "k80")}
    sorted_batch = 512 * 2 * (14336 + 4096) * 4  # two experts for each token, in and out
    expert = 14336 * 4096
    assert gpus["p40"] < sorted_batch
    for gpu, width in (("v100", 2), ("k80", 4)):
        assert sorted_batch + expert * width <= gpus[gpu] < sorted_batch + expert * (width + 1), gpu


def test_a_table_that_is_the_output_too_is_converted_as_one() -> None:
    shape = find_model("llama-3.2-1b")
    whole = shape.vocabulary * shape.embedding * 4
    assert _pool("llama-3.2-1b", "F16", "p40", 8) < whole / 2
    assert 0 <= _pool("llama-3.2-1b", "F16", "p40", 16) - whole < PIECE


# --- what people measured ------------------------------------------------------------------------


def _model(name: str, mix: str) -> Model:
    return model_of(find_model(name), find_mix(mix))


def _mib(result: plan.Result) -> list[float]:
    """MiB in use on each GPU as nvidia-smi counts: with CUDA's overhead."""
    return [
        load.bytes / placements.MIB + device.overhead.likely_mib
        for load, device in zip(result.placement.gpus, result.devices, strict=True)
    ]


def test_hermes3_on_a_p4000_and_a_gtx_1060() -> None:
    """3041 and 3253 MiB, spread evenly by Ollama; the overhead that is counted with came from it,
    so this says how well two cards agree, and that the rest is 96 % of what was seen."""
    cards = [catalog.find_gpu(name) for name in ("p4000", "gtx1060-6gb")]
    where = plan.devices(cards, overhead((12, 4)))
    settings = Settings(split=(1.0, 1.0), all_logits=True)
    found = plan.try_out(_model("hermes3:8b", "Q5_K_M"), settings, where)
    assert _mib(found) == pytest.approx([3041, 3253], rel=0.07)
    without = [load.bytes / placements.MIB for load in found.placement.gpus]
    assert without == pytest.approx([3041, 3253], rel=0.04)


def test_hermes3_on_the_p4000_alone() -> None:
    """5978 MiB, and this was not used to choose the overhead."""
    where = plan.devices([catalog.find_gpu("p4000")], overhead((12, 4)))
    found = plan.try_out(_model("hermes3:8b", "Q5_K_M"), Settings(all_logits=True), where)
    assert _mib(found) == pytest.approx([5978], rel=0.07)


def test_deepseek_r1_32b_on_a_p40() -> None:
    """19 GB: the file has as many, and with its cache it takes 19.4 GiB of the card."""
    model = _model("deepseek-r1:32b", "Q4_K_M")
    assert model.bytes / 1e9 == pytest.approx(19.8, abs=0.1)
    where = plan.devices([catalog.find_gpu("p40")], overhead((12, 4)))
    found = plan.try_out(model, Settings(), where)
    assert found.verdict == "fits"
    assert _mib(found)[0] / 1024 == pytest.approx(19, rel=0.05)


@pytest.mark.parametrize(
    ("mix", "seed_gb", "verdict"),
    [("F16", 14, "not"), ("Q8_0", 8, "not"), ("Q6_K", 6, "tight"), ("Q4_K_M", 4, "fits")],
)
def test_a_7b_on_a_p4(mix: str, seed_gb: float, verdict: str) -> None:
    """A table that counts files as video memory: true for weights within a tenth or so, but with
    4096 tokens Q8_0 does not fit, and Q6_K does only just."""
    model = _model("llama-2-7b", mix)
    assert model.bytes / 1e9 == pytest.approx(seed_gb, rel=0.12)
    where = plan.devices([catalog.find_gpu("p4")], overhead((12, 4)))
    assert plan.try_out(model, Settings(), where).verdict == verdict
