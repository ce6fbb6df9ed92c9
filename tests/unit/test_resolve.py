"""Resolving: the cases people have, and what must hold for any set of GPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda import catalog
from legacy_cuda.resolve import (
    Refusal,
    Stack,
    alternatives,
    drivers_for,
    resolve,
    runs_cuda,
    runs_stack,
    stacks_for,
)

TORCH = catalog.find_engine("torch")
CARDS = st.lists(st.sampled_from(catalog.gpus()), min_size=1, max_size=5)


def answer(*names: str, engine: str = "torch") -> Stack | Refusal:
    return resolve([catalog.find_gpu(name) for name in names], catalog.find_engine(engine))


@pytest.mark.parametrize(
    ("names", "stack", "branch"),
    [
        (["k80"], "kepler", "470"),
        (["m40"], "maxwell", "580"),
        (["p40"], "pascal", "580"),
        (["v100"], "volta", "580"),
        (["p4000", "gtx1060-6gb"], "pascal", "580"),
        (["p100", "p40"], "pascal", "580"),
        (["m40", "p40"], "maxwell", "580"),
        (["k80", "p40"], "kepler", "470"),
        (["v100", "h100"], "volta", "580"),
        (["p40", "v100"], "pascal", "580"),
        (["p40", "rtx3090"], "pascal", "580"),
    ],
)
def test_machines_that_work(names: list[str], stack: str, branch: str) -> None:
    found = answer(*names)
    assert isinstance(found, Stack)
    assert (found.facts.name, found.driver.branch.branch) == (stack, branch)
    assert found.driver.flavour == "proprietary"


@pytest.mark.parametrize(
    ("names", "rule", "split"),
    [
        (["k80", "rtx5090"], "driver-branch", (("k80",), ("rtx5090",))),
        (["k80", "h100"], "driver-branch", (("k80",), ("h100",))),
        (["k80", "rtx3090"], "coverage", (("k80",), ("rtx3090",))),
        (["p40", "rtx5090"], "kernel-module-flavour", (("p40",), ("rtx5090",))),
        (["v100", "b200"], "kernel-module-flavour", (("v100",), ("b200",))),
        (["k40"], "engine-refused", ()),
        (["rtx3090"], "not-legacy", ()),
    ],
)
def test_machines_that_do_not(names: list[str], rule: str, split: object) -> None:
    found = answer(*names)
    assert isinstance(found, Refusal)
    assert (found.rule, found.split) == (rule, split)
    assert found.because
    assert found.instead


def test_a_split_is_offered_in_words() -> None:
    found = answer("k80", "rtx5090")
    assert isinstance(found, Refusal)
    assert "2 machines" in found.instead[0]


def test_a_card_that_spoils_it_is_named() -> None:
    found = answer("k40", "k80")
    assert isinstance(found, Refusal)
    assert any("k80 alone works" in text for text in found.instead)


def test_470_runs_cuda_11_and_not_12() -> None:
    (driver,) = drivers_for([catalog.find_gpu("k80").capability])
    assert runs_cuda(driver, (11, 7))
    assert not runs_cuda(driver, (12, 6))


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("sglang", ["p40"]),
        ("tensorrt-llm", ["v100"]),
        ("vllm", ["k80"]),
        ("vllm", ["p40", "k80"]),
        ("vllm", ["m40"]),
    ],
)
def test_engines_that_cannot_are_refused_with_a_way_out(engine: str, names: list[str]) -> None:
    found = answer(*names, engine=engine)
    assert isinstance(found, Refusal)
    assert found.rule == "engine-refused"
    assert found.instead


@pytest.mark.parametrize(
    ("card", "first"),
    [("m40", "llama.cpp: "), ("p40", "vLLM: "), ("v100", "vLLM on v100 (not packaged here yet)")],
)
def test_an_engine_that_the_card_is_refused_is_no_way_out(card: str, first: str) -> None:
    found = answer(card, engine="tensorrt-llm")
    assert isinstance(found, Refusal)
    assert found.instead[0].startswith(first)
    assert any("vLLM" in text for text in found.instead) is (card != "m40")


@pytest.mark.parametrize("engine", catalog.engines(), ids=lambda engine: engine.name)
def test_no_way_out_is_refused_itself(engine: catalog.Engine) -> None:
    for gpu in catalog.gpus():
        rule = engine.rule(gpu.capability)
        for text in alternatives(rule, gpu):
            title = text.partition(": ")[0].partition(" on ")[0]
            for other in catalog.engines():
                if title == other.title:
                    assert other.rule(gpu.capability).verdict != "refused", (gpu.name, text)
            words = text.split()
            if gpu.legacy and "legacy-cuda" in words and "resolve" in words:
                assert isinstance(answer(words[-3], engine=words[-1]), Stack), text


def test_in_a_mix_each_way_out_names_its_card() -> None:
    found = answer("p40", "v100", engine="tensorrt-llm")
    assert isinstance(found, Refusal)
    assert [{"p40", "v100"} & set(text.split()) for text in found.instead if "vLLM" in text] == [
        {"p40"},
        {"v100"},
    ]


def test_vllm_is_for_pascal() -> None:
    for names in (["p40"], ["p4", "p40", "p40"], ["p100"], ["p100", "gtx1060-6gb"]):
        found = answer(*names, engine="vllm")
        assert isinstance(found, Stack)
        assert (found.facts.name, found.driver.branch.branch) == ("vllm-cuda-12", "580")
    for names in (["v100"], ["p40", "v100"]):
        refused = answer(*names, engine="vllm")
        assert isinstance(refused, Refusal)
        assert refused.rule == "engine-not-packaged"
        assert any("0.19.1" in text for text in refused.because)


def test_the_order_of_gpus_changes_nothing() -> None:
    assert answer("p40", "m40", "p40") == answer("p40", "p40", "m40")


def test_no_gpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        resolve([], TORCH)


@given(CARDS)
def test_what_is_offered_violates_no_window(gpus: list[catalog.Gpu]) -> None:
    found = resolve(gpus, TORCH)
    if isinstance(found, Refusal):
        assert found.because
        assert found.instead
        return
    branch = found.driver.branch
    (module,) = (item for item in branch.modules if item.flavour == found.driver.flavour)
    assert any(gpu.legacy for gpu in gpus)
    for gpu in gpus:
        assert module.serves(gpu.capability)
        assert gpu.capability in found.facts.covers
        assert gpu.facts.open_kernel_module or found.driver.flavour == "proprietary"
        if gpu.legacy:
            assert TORCH.rule(gpu.capability).verdict == "offered"
            assert found.toolkit.capability_min <= gpu.capability <= found.toolkit.capability_max
    least = catalog.toolkits()[found.facts.cuda].driver_min
    assert branch.latest_version >= catalog.version_tuple(least)
    assert runs_stack(found.driver, found.facts, [gpu.capability for gpu in gpus])
    for gpu in gpus:
        needed = found.facts.jit_branch(gpu.capability)
        assert needed is None or int(branch.branch) >= int(needed)


@given(CARDS, st.sampled_from(catalog.gpus()))
def test_adding_a_gpu_never_widens_a_window(gpus: list[catalog.Gpu], more: catalog.Gpu) -> None:
    few = {gpu.capability for gpu in gpus}
    many = few | {more.capability}
    drivers_before, drivers_after = drivers_for(few), drivers_for(many)
    assert set(drivers_after) <= set(drivers_before)
    after = {stack.name for stack in stacks_for(TORCH, many, drivers_after)}
    assert after <= {stack.name for stack in stacks_for(TORCH, few, drivers_before)}


@given(CARDS)
def test_every_machine_of_a_split_has_a_driver(gpus: list[catalog.Gpu]) -> None:
    found = resolve(gpus, TORCH)
    if isinstance(found, Stack) or not found.split:
        return
    assert sorted(name for machine in found.split for name in machine) == sorted(
        gpu.name for gpu in gpus
    )
    for machine in found.split:
        assert drivers_for({catalog.find_gpu(name).capability for name in machine})


@given(CARDS, st.integers(1, 3))
def test_more_of_the_same_cards_change_nothing(gpus: list[catalog.Gpu], times: int) -> None:
    once, often = resolve(gpus, TORCH), resolve(gpus * times, TORCH)
    assert type(once) is type(often)
    if isinstance(once, Stack) and isinstance(often, Stack):
        assert (once.facts, once.driver) == (often.facts, often.driver)


@pytest.mark.parametrize("gpu", [gpu for gpu in catalog.gpus() if gpu.legacy], ids=lambda g: g.name)
def test_every_legacy_card_gets_its_stack_or_a_reason(gpu: catalog.Gpu) -> None:
    found = resolve([gpu], TORCH)
    if gpu.capability == (3, 5):
        assert isinstance(found, Refusal)
    else:
        assert isinstance(found, Stack)
        assert gpu.capability in found.facts.home
        assert found.facts.architecture == gpu.facts.architecture
