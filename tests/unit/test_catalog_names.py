"""Finding a card by what people type, and what is said where it cannot be found."""

from __future__ import annotations

import pytest

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError, find_engine, find_gpu
from legacy_cuda.cli.output import read_gpus
from legacy_cuda.errors import UserError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("p40", "p40"),
        ("P40", "p40"),
        ("Tesla P40", "p40"),
        ("tesla-p40", "p40"),
        ("NVIDIA Tesla P40", "p40"),
        ("10de:1b38", "p40"),
        ("10DE:102D", "k80"),
        ("1080 Ti", "gtx1080ti"),
        ("GeForce GTX 1060 6GB", "gtx1060-6gb"),
    ],
)
def test_names_people_use(text: str, name: str) -> None:
    assert find_gpu(text).name == name


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("gtx1060", {"gtx1060-3gb", "gtx1060-5gb", "gtx1060-6gb"}),
        ("titan x", {"titan-x-maxwell", "titan-x-pascal"}),
        ("p400", {"p4000", "p40"}),
        ("pp40", {"p40"}),
        ("sm_37", {"k80"}),
        ("3.7", {"k80"}),
        ("1b38", {"p40"}),
    ],
)
def test_what_may_have_been_meant_is_named(text: str, near: set[str]) -> None:
    with pytest.raises(CatalogError) as error:
        find_gpu(text)
    assert near <= set(error.value.near)


def test_nonsense_has_no_near_match() -> None:
    for text in ("", "zzzzzzzz", "10de:ffff"):
        with pytest.raises(CatalogError) as error:
            find_gpu(text)
        assert text == "" or error.value.near == ()


def test_every_name_and_alias_finds_its_card() -> None:
    for gpu in catalog.gpus():
        for text in (gpu.name, gpu.product, *gpu.aliases):
            assert find_gpu(text) == gpu


def test_counts_and_commas() -> None:
    assert [gpu.name for gpu in read_gpus(["2xk80,p40"])] == ["k80", "k80", "p40"]


def test_a_name_in_several_words_is_told_to_be_quoted() -> None:
    with pytest.raises(UserError) as error:
        read_gpus(["gtx", "1080", "ti"])
    assert "gtx1080ti" in error.value.next_step


def test_engines() -> None:
    assert find_engine("PyTorch").name == "torch"
    with pytest.raises(CatalogError) as error:
        find_engine("vlm")
    assert "vllm" in error.value.near
