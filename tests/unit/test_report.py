"""The HTML report: one file, nothing fetched, nothing run, and no more said than was seen."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import pytest

from legacy_cuda import report

VOID = {"meta", "br", "rect"}


class Page(HTMLParser):
    """Tags, attributes and text; every tag that is opened has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        # HTML lets cells and rows end where the next begins; the report closes all of them
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def library(path: str, **numbers: int) -> dict[str, Any]:
    return {
        "path": path,
        "distribution": "torch 2.7.1",
        "role": "core",
        "state": "serves",
        "containers": numbers.get("containers", 2),
        "sass": numbers.get("sass", 2),
        "jit": numbers.get("jit", 0),
        "driver": None,
    }


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {
        "schema": "legacy-cuda/environment/2",
        "tool": "0.1.0",
        "created": "2026-11-21T00:00:00+00:00",
        "name": "p40",
        "path": "/home/u/environments/p40",
        "gpus": ["p40", "p40"],
        "engine": "torch",
        "stack": "pascal",
        "lock": {"name": "torch-2.7.1", "digest": "0" * 64},
        "python": "3.11",
        "driver": {"branch": "580", "latest": "580.173.02", "module": "proprietary"},
        "reasons": [{"subject": "driver", "choice": "580", "because": "the newest of 5"}],
        "notes": ["a passive card"],
        "altered": [],
        "packages": {"torch": "2.7.1"},
        "audit": [
            {
                "capability": "6.1",
                "outcome": "runs",
                "summary": "runs",
                "driver": None,
                "lost": [],
                "missing": [],
                "libraries": [library("torch/lib/libtorch_cuda.so")],
            }
        ],
        "libraries": [
            {
                "path": "torch/lib/libtorch_cuda.so",
                "size": 1000,
                "distribution": "torch 2.7.1",
                "groups": [
                    {"count": 2, "linkage": "loadable", "code": ["sm_61", "compute_70@8.5"]}
                ],
            }
        ],
        "patched": [],
        "compiled": [],
        "check": {"version": "2.7.1+cu126", "cuda": "12.6", "arch_flags": ["sm_61"]},
        "arch_flags": {"said": ["sm_61"], "held": ["sm_61"], "agree": True},
        "gpu_run": "not run",
        "seconds": 1.0,
    }


def test_a_good_environment(manifest: dict[str, Any]) -> None:
    page = Page(report.html(manifest))
    for text in ("2 x Tesla P40", "Capability 6.1: runs", "on a GPU: not run", "arch flags and"):
        assert text in page.text
    for text in ("the newest of 5", "a passive card", "torch-2.7.1", "libtorch_cuda.so"):
        assert text in page.text
    assert "does not run" not in page.text and "Altered" not in page.text


def test_whose_cuda_it_is(manifest: dict[str, Any]) -> None:
    assert "torch 2.7.1+cu126, CUDA 12.6" in Page(report.html(manifest)).text
    manifest["engine"] = "vllm"
    manifest["check"] |= {"version": "0.14.0+cu124.sm61", "torch": "2.7.1+cu126"}
    said = Page(report.html(manifest)).text
    assert "vllm 0.14.0+cu124.sm61, torch 2.7.1+cu126, CUDA 12.6" in said


def test_nothing_is_run_or_fetched(manifest: dict[str, Any]) -> None:
    page = Page(report.html(manifest))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    for tag, attributes in page.tags:
        assert not {"src", "href", "style@import"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in report.html(manifest) and "@import" not in report.html(manifest)


def test_what_is_wrong_is_said(manifest: dict[str, Any]) -> None:
    bad = copy.deepcopy(manifest)
    bad["audit"][0].update(outcome="does-not-run", summary="does not run: libx.so")
    bad["check"] = {"error": "ImportError: libcudart"}
    bad["arch_flags"] = {"said": [], "held": [], "agree": False}
    bad["gpu_run"] = "failed on Tesla P40: no kernel image"
    bad["altered"] = ["torch/a.py", "torch/b.py"]
    page = Page(report.html(bad))
    for text in (
        "Capability 6.1: does not run",
        "ImportError: libcudart",
        "arch flags and audit disagree",
        "failed on Tesla P40: no kernel image",
        "Altered since it was made",
        "torch/a.py, torch/b.py",
    ):
        assert text in page.text
    assert any("bad" in (attributes.get("class") or "").split() for _, attributes in page.tags)


def test_what_comes_from_outside_is_escaped(manifest: dict[str, Any]) -> None:
    evil = '<script>alert("x")</script>'
    bad = copy.deepcopy(manifest)
    bad["path"] = f"/home/{evil}"
    bad["name"] = evil
    bad["check"] = {"error": evil}
    bad["gpu_run"] = f"ran on {evil}"
    bad["altered"] = [evil]
    bad["audit"][0]["libraries"][0]["path"] = f'torch/{evil}"><b>'
    bad["audit"][0]["libraries"][0]["distribution"] = evil
    bad["libraries"][0]["path"] = f"torch/{evil}"
    page = Page(report.html(bad))
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text


def test_the_picture_marks_the_capability_and_draws_shares(manifest: dict[str, Any]) -> None:
    manifest["libraries"][0]["groups"] = [
        {"count": 3, "linkage": "loadable", "code": ["sm_61"]},
        {"count": 1, "linkage": "loadable", "code": ["sm_80"]},
        {"count": 5, "linkage": "link-time", "code": ["sm_50"]},
    ]
    text = report.html(manifest)
    assert "libtorch_cuda.so on 6.1: 3 of 4 containers with SASS, 0 through JIT (partial)" in text
    assert "libtorch_cuda.so on 5.0: 0 of 4 containers with SASS, 0 through JIT (none)" in text
    assert text.count('fill-opacity="0.16"') == 1


def test_words_are_not_said_twice(manifest: dict[str, Any]) -> None:
    manifest["audit"][0].update(
        outcome="runs-with-limits", summary="runs without x; part of it through the driver's JIT"
    )
    text = Page(report.html(manifest)).text
    assert "Capability 6.1: runs (audited)without x; part of it" in text
    manifest["audit"][0].update(outcome="does-not-run", summary="does not run: libx.so is bad")
    assert (
        "Capability 6.1: does not run (audited)libx.so is bad" in Page(report.html(manifest)).text
    )


def test_how_to_activate_headings_and_the_meaning_of_columns(manifest: dict[str, Any]) -> None:
    manifest["path"] = "/home/u/my environments/p40"
    page = Page(report.html(manifest))
    assert ". '/home/u/my environments/p40/activate'" in page.text
    assert page.text.index("/activate") < page.text.index("Coverage")
    assert page.text.index("Good to know") < page.text.index("a passive card")
    for word in ("core library", "dispatching", "partial", "stray", "SASS:", "JIT:", "state"):
        assert word in page.text
    manifest["notes"] = []
    assert "Good to know" not in report.html(manifest)


def test_libraries_of_one_name_are_told_apart_and_the_own_column_is_first(
    manifest: dict[str, Any],
) -> None:
    other = copy.deepcopy(manifest["libraries"][0])
    other.update(path="other/libtorch_cuda.so", distribution="other 1.0")
    manifest["libraries"].append(other)
    text = report.html(manifest)
    assert ">libtorch_cuda.so [torch 2.7.1]</text>" in text
    assert ">libtorch_cuda.so [other 1.0]</text>" in text
    assert text.index(">6.1</text>") < text.index(">3.5</text>") < text.index(">5.0</text>")


def test_an_environment_without_device_code(manifest: dict[str, Any]) -> None:
    manifest["libraries"] = []
    manifest["audit"][0].update(outcome="no-device-code", libraries=[])
    Page(report.html(manifest))


def test_the_same_twice(manifest: dict[str, Any]) -> None:
    assert report.html(manifest) == report.html(copy.deepcopy(manifest))
