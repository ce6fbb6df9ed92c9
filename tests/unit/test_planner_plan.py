"""Plans: what fits, the largest that does, and what must hold for any model, card and setting."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError
from legacy_cuda.catalog.estimates import Kind, arithmetic, overhead
from legacy_cuda.catalog.models import (
    ModelShape,
    find_format,
    find_mix,
    find_model,
    formats,
    mixes,
    models,
)
from legacy_cuda.planner import plan
from legacy_cuda.planner.model import Model
from legacy_cuda.planner.notes import notes_of
from legacy_cuda.planner.page import html
from legacy_cuda.planner.placement import Settings, places_of
from legacy_cuda.planner.shapes import model_of
from legacy_cuda.planner.speed import kind_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL = [model for model in models() if model.parameters < 9e9]
LEGACY = [gpu for gpu in catalog.gpus() if gpu.legacy]


def model(name: str, mix: str = "Q4_K_M") -> Model:
    return model_of(find_model(name), find_mix(mix))


SEVENTY = model("llama-3.3-70b")


def where(*names: str, **options: Any) -> tuple[plan.Device, ...]:
    cards = [catalog.find_gpu(name) for name in names]
    return plan.devices(cards, overhead((12, 4)), **options)


# --- the catalog ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models", "formats", "estimates"])
def test_a_file_keeps_to_its_schema(name: str) -> None:
    place = catalog.DATA.parent / "schema" / f"{name}.schema.json"
    schema = json.loads(place.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    data = tomllib.loads((catalog.DATA / f"{name}.toml").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(data)
    for row in next(iter(data.values())):  # a key that nobody described is found
        wrong = {**data, next(iter(data)): [{**row, "surprise": 1}]}
        assert not Draft202012Validator(schema).is_valid(wrong)


@pytest.mark.parametrize("known", models(), ids=lambda item: item.name)
def test_a_shape_has_as_many_parameters_as_were_published(known: object) -> None:
    assert model_of(known, find_mix("F16")).parameters == known.parameters  # type: ignore


def test_names_of_models_are_unique() -> None:
    names = [name for known in models() for name in (known.name, *known.aliases)]
    assert len(names) == len(set(names))
    assert find_model("DeepSeek-R1:32B").name == "deepseek-r1-32b"
    with pytest.raises(CatalogError) as caught:
        find_model("lama-3.1-8b")
    assert "llama-3.1-8b" in caught.value.near


def test_formats() -> None:
    assert formats()["Q4_K"].size(512) == 288
    with pytest.raises(ValueError, match="do not fill"):
        formats()["Q4_K"].size(300)
    with pytest.raises(CatalogError):
        find_format("q4_k")
    assert len({form.number for form in formats().values()}) == len(formats())


@pytest.mark.parametrize(
    "known",
    [item for item in models() if not item.experts and item.embedding % 256 == 0][::4],
    ids=lambda item: item.name,
)
def test_mixes_are_listed_best_first(known: ModelShape) -> None:
    """Where rows fill the blocks of every format."""
    sizes = [
        model_of(known, mix).bytes for mix in mixes().values() if mix.name not in ("F32", "MXFP4")
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("gpu", LEGACY, ids=lambda item: item.name)
def test_every_card_has_an_estimate(gpu: catalog.Gpu) -> None:
    kinds: tuple[Kind, ...] = ("few bits", "quantised", "16-bit")
    for kind in kinds:
        how = arithmetic(gpu.capability, kind)
        assert how is not None
        assert how.decode[0] < how.decode[1] <= 1 and how.prefill[0] < how.prefill[1]
    for stack in catalog.stacks():
        assert overhead(stack.cuda).likely_mib < overhead(stack.cuda).most_mib


# --- devices -------------------------------------------------------------------------------------


def test_dies_ecc_and_screens() -> None:
    first, second = where("k80", display=(300,))
    assert (first.total_mib, first.display_mib, second.display_mib) == (11441, 300, 0)
    assert [device.name for device in (first, second)] == ["k80 die 1", "k80 die 2"]
    (off, _) = where("k80", ecc=False)
    assert off.total_mib == 12206
    (card,) = where("gtx1060-6gb", ecc=True)
    assert card.total_mib == catalog.find_gpu("gtx1060-6gb").usable_mib_ecc_off


@pytest.mark.parametrize("gpu", LEGACY, ids=lambda item: item.name)
def test_what_is_not_known_of_a_card_is_counted_low(gpu: catalog.Gpu) -> None:
    for ecc in (True, False):
        for device in plan.devices([gpu], overhead((12, 4)), ecc):
            assert 0.85 * gpu.memory_mib < device.total_mib <= gpu.memory_mib
            on = ecc and bool(gpu.ecc)
            known = gpu.usable_mib_ecc_on if on else gpu.usable_mib_ecc_off
            assert device.total_known == (known is not None)


# --- plans ---------------------------------------------------------------------------------------


def test_what_does_not_fit_comes_with_what_does() -> None:
    """A 13B in fp32 on a K80: half as large again as both dies; fp16 does not fit either."""
    cards = plan.devices([catalog.find_gpu("k80")], overhead((11, 8)))
    made = plan.make(model("llama-2-13b", "F32"), Settings(), cards)
    assert made.result.verdict == "not" and made.context_most == 0
    assert made.best is not None and made.best.model.quantisation == "Q8_0"
    assert made.options and all(option.result.fits for option in made.options)
    named = [option.what for option in made.options]
    assert named[0] == "quantised as Q8_0" and "of 41 layers" in named[-1]


def test_a_quantised_cache_needs_flash_attention() -> None:
    small = find_format("q8_0")
    k80 = plan.devices([catalog.find_gpu("k80")], overhead((11, 8)))
    off = Settings(keys=small, values=small, flash=False)
    made = plan.make(model("llama-2-7b"), off, k80)
    assert made.result.verdict == "not" and "flash attention" in made.result.problem
    assert any(option.result.placement.flash for option in made.options)
    # where nothing was asked for it is switched on
    for flash in (True, None):
        on = plan.try_out(model("llama-2-7b"), replace(off, flash=flash), k80)
        assert on.verdict == "fits" and on.placement.flash


def test_what_a_screen_leaves_nothing_of_does_not_fit() -> None:
    for cards in (where("p4", display=(8000,)), where("p4", "p4", display=(8000, 8000))):
        assert plan.make(model("qwen3-8b"), Settings(), cards).result.verdict == "not"


def test_the_slow_end_of_a_card_is_named_where_it_is_used() -> None:
    def noted(context: int) -> bool:
        asked = Settings(context=context)
        made = plan.make(model("llama-3.2-3b"), asked, where("gtx970"))
        assert made.result.fits
        return any("slower than the rest" in note for note in notes_of(made, "llama-server"))

    assert not noted(2048)
    assert noted(plan.largest_context(model("llama-3.2-3b"), Settings(), where("gtx970")))


def test_layers_move_to_where_there_is_room() -> None:
    """By free memory alone the output's GPU overflows; another split fits."""
    cards = where("p40", "gtx1060-3gb")
    tried = model("gemma-2-9b", "F16")
    alone = plan.try_out(tried, Settings(), cards)
    found = plan.balanced(tried, Settings(), cards)
    assert alone.verdict == "not" and found.fits and found.settings.split is not None


def test_the_largest_context_is_the_largest() -> None:
    cards = where("p4")
    tried = model("llama-3.1-8b")
    most = plan.largest_context(tried, Settings(), cards)
    assert 4096 < most < 131072 and most % 256 == 0
    assert plan.balanced(tried, Settings(context=most), cards).fits
    assert not plan.balanced(tried, Settings(context=most + 256), cards).fits
    assert plan.largest_context(model("llama-2-7b"), Settings(), where("p40")) == 4096


def test_a_mixture_of_experts_reads_a_part_of_itself() -> None:
    cards = where("p40")
    dense = plan.make(model("qwen3-32b"), Settings(), cards).speed
    sparse = plan.make(model("qwen3-30b-a3b"), Settings(), cards).speed
    assert dense and sparse and sparse.decode[0] > 4 * dense.decode[1]


def test_the_measured_p40_lies_inside_its_range() -> None:
    """56.8 tokens/s and 912 for prompts on a 7B Q4_0: what the shares were taken from."""
    found = plan.make(model("llama-2-7b", "Q4_0"), Settings(), where("p40")).speed
    assert found is not None and found.measured
    assert found.decode[0] < 56.8 < found.decode[1]
    assert found.prefill[0] < 912 < found.prefill[1]


def test_a_prompt_is_read_without_the_output_matrix() -> None:
    """It has a fifth of the values of this one, and meets the last token alone."""
    known = find_model("llama-3.2-1b")
    share = known.vocabulary * known.embedding / known.parameters
    assert 0.2 < share < 0.25
    cards = where("p40")
    of_prompt = plan.make(model("llama-3.2-1b", "Q8_0"), Settings(), cards).speed
    of_large = plan.make(model("llama-2-7b", "Q8_0"), Settings(), cards).speed
    assert of_prompt and of_large
    values = known.parameters * (1 - share)
    large = find_model("llama-2-7b")
    of_layers = large.parameters - 2 * large.vocabulary * large.embedding
    ratio = of_prompt.prefill[0] / of_large.prefill[0]
    assert ratio == pytest.approx(of_layers / values, rel=0.01)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(SMALL),
    st.sampled_from([mix for mix in mixes() if mix != "F32"]),
    st.lists(st.sampled_from(LEGACY), min_size=1, max_size=3),
    st.integers(1, 9000),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["F16", "Q8_0", "Q4_0"]),
)
def test_what_must_hold(
    known: ModelShape,
    mix: str,
    cards: list[catalog.Gpu],
    context: int,
    parallel: int,
    unified: bool,
    form: str,
) -> None:
    made = model_of(known, find_mix(mix))
    cache = formats()[form]
    asked = Settings(
        context=context, parallel=parallel, unified=unified, keys=cache, values=cache, flash=True
    )
    devices = plan.devices(cards, overhead((12, 4)))
    found = plan.try_out(made, asked, devices)
    gpus = len(devices)
    loads = found.placement.gpus
    # every layer is somewhere, and everything is counted once, but for what is padded
    assert sum(load.layers for load in loads) == made.shape.layers
    on_gpus = sum(load.weights for load in loads)
    table = made.by_name["token_embd.weight"].bytes
    tied = "output.weight" not in made.by_name
    assert made.bytes - (0 if tied else table) <= on_gpus < 1.02 * made.bytes + 4096 * gpus
    assert min(load.compute for load in loads) >= 0 and found.placement.exact
    # a cell more never takes less
    more = plan.try_out(made, replace(asked, context=context + 256), devices)
    total, larger = (sum(load.cache for load in item.placement.gpus) for item in (found, more))
    assert larger >= total
    # a quantised cache never takes more
    full = plan.try_out(
        made, replace(asked, keys=formats()["F16"], values=formats()["F16"]), devices
    )
    assert total <= sum(load.cache for load in full.placement.gpus)
    assert kind_of(made) in ("few bits", "quantised", "16-bit")


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=8), st.integers(1, 81))
def test_layers_are_split_in_order(shares: list[float], layers: int) -> None:
    asked = Settings(layers=layers, split=tuple(shares))
    places = places_of(SEVENTY, asked, [1 << 34] * len(shares))
    counts = tuple(float(places.count(number)) for number in range(len(shares)))
    again = places_of(SEVENTY, replace(asked, split=counts), [1 << 34] * len(shares))
    assert again == places  # a split may be given as the counts of layers that it came to
    first = 81 - layers
    assert set(places[:first]) <= {len(shares)}
    assert list(places[first:]) == sorted(places[first:])


def test_the_page_has_no_script_and_trusts_no_name() -> None:
    from legacy_cuda.cli.plan import document

    made = plan.make(replace(model("llama-2-7b"), name="<script>x"), Settings(), where("p4", "p40"))
    page = html(document(made, "llama-server", (12, 4)))
    assert "<script" not in page and "&lt;script&gt;x" in page
    assert "http" not in page and page.count("<svg") == 1
