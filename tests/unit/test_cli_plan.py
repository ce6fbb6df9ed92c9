"""``legacy-cuda plan`` as a person meets it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import model_files
import pytest
import tiny


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.clean_variables(tmp_path_factory.mktemp("home"))


def run(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return tiny.run(variables, "plan", *arguments)


def test_what_fits(variables: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    arguments = ["hermes3:8b", "--gpu", "p4000,gtx1060-6gb", "--context", "8192"]
    done = run(variables, *arguments, "--json", "--html", str(page))
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["schema"]) == (0, "", "legacy-cuda/plan/1")
    assert found["verdict"] == "fits" and found["best_quantisation"] == found["quantisation"]
    assert [item["gpu"] for item in found["devices"]] == ["p4000", "gtx1060-6gb"]
    assert sum(item["layers"] for item in found["devices"]) == 32
    assert found["context_most"] >= 8192
    speed = found["speed"]["decode_tokens_s"]
    assert 0 < speed[0] < speed[1]
    text = page.read_text()
    assert "Quadro P4000" in text and "<script" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]
    shown = run(variables, *arguments)
    assert shown.returncode == 0 and "fits" in shown.stdout and "\x1b" not in shown.stdout
    assert "KV cache" in shown.stdout and "estimate" in shown.stdout


def test_what_does_not_fit(variables: dict[str, str]) -> None:
    done = run(variables, "llama-2-13b", "--quantisation", "F32", "--gpu", "k80", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["verdict"] == "not" and found["cuda"] == "11.8"
    assert len(found["devices"]) == 2 and min(found["settings"]["spare_bytes"]) < 0
    assert found["best_quantisation"] == "Q8_0"
    assert all(item["verdict"] != "not" for item in found["options"])
    shown = run(variables, "llama-2-13b", "--quantisation", "F32", "--gpu", "k80").stdout
    assert "does not fit" in shown and "instead" in shown and "short" in shown


@pytest.mark.parametrize("gpus", ["p4", "p4,p40", "k80"])
def test_lines_of_memory_stand_below_each_other(variables: dict[str, str], gpus: str) -> None:
    lines = run(variables, "llama-2-7b", "--gpu", gpus).stdout.splitlines()
    (host,) = [line for line in lines if line.startswith("  host")]
    (bar, *_) = [line for line in lines if "█" in line]
    assert host.index("weights") == bar.index("█")


@pytest.mark.parametrize("engine", ["llama-server", "ollama"])
def test_cards_that_no_stack_serves(variables: dict[str, str], engine: str) -> None:
    done = run(variables, "llama-3.1-8b", "--gpu", "k40", "--engine", engine, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["verdict"] == "refused" and found["because"]
    shown = run(variables, "llama-3.1-8b", "--gpu", "k40", "--engine", engine)
    assert "refused" in shown.stdout and "because" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "no model was named"),
        (["nonsense-9b", "--gpu", "p40"], "no model called"),
        (["lama-3.1-8b", "--gpu", "p40"], "did you mean llama-3.1-8b"),
        (["missing.gguf", "--gpu", "p40"], "legacy-cuda plan --models"),
        (["missing.gguf", "--gpu", "p40"], "there is no file"),
        (["/", "--gpu", "p40"], "/ is no folder of a model\n  it has no config.json\n  -> name"),
        (["llama3:latest", "--gpu", "p40"], "no model called 'llama3'"),
        (["llama3:latest", "--gpu", "p40"], "-> legacy-cuda plan --models"),
        (["qwen3-8b", "--gpu", "p40", "--context", "8k"], "'8k' is no whole number"),
        (["qwen3-8b", "--gpu", "p40", "--split", "0"], "the shares of --split are all 0"),
        (["qwen3-8b", "--gpu", "p4", "--display", "9000"], "cannot take 9000 MiB of Tesla P4"),
        (["qwen3-8b", "--gpu", "p4", "--display", "0,300"], "2 figures for 1 card"),
        (["qwen3-8b", "--gpu", "p40", "--quantisation", "Q9"], "Q9"),
        (["qwen3-8b", "--gpu", "p40", "--kv-type", "q3_k"], "q3_k"),
        (["qwen3-8b", "--gpu", "p40", "--split", "1,1"], "2 shares for 1"),
        (["qwen3-8b", "--gpu", "p40", "--split", "x"], "no list of numbers"),
        (["qwen3-8b", "--gpu", "p40", "--display=-5"], "out of reason"),
        (["qwen3-8b", "--gpu", "nonsense"], "nonsense"),
        (["qwen3-8b", "--gpu", "p40", "--context", "0"], "out of reason"),
    ],
)
def test_bad_input(variables: dict[str, str], arguments: list[str], what: str) -> None:
    done = run(variables, *arguments)
    assert done.returncode == 2 and what in done.stderr


def test_a_name_as_ollama_writes_it(variables: dict[str, str]) -> None:
    done = run(variables, "qwen3-8b:latest", "--gpu", "p40", "--json")
    assert (done.returncode, json.loads(done.stdout)["model"]) == (0, "qwen3-8b")


@pytest.mark.parametrize(("columns", "most"), [("80", 80), ("100", 100), ("200", 120)])
@pytest.mark.parametrize("cards", ["p4000,gtx1060-6gb", "k80", "p4"])
def test_lines_fit_the_terminal(
    variables: dict[str, str], columns: str, most: int, cards: str
) -> None:
    arguments = ["hermes-3-8b", "--gpu", cards, "--context", "8192", "--parallel", "4"]
    changed = {**variables, "COLUMNS": columns}
    shown = run(changed, *arguments, "--quantisation", "F32").stdout.splitlines()
    assert any("short" in line for line in shown)
    assert [line for line in shown if len(line) > most or line != line.rstrip()] == []


def test_the_context_is_no_longer_than_the_model_was_made_for(
    variables: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_files.llama())
    made = json.loads(run(variables, str(path), "--gpu", "p40", "--json").stdout)
    assert made["settings"]["context"] == min(4096, made["context_of_model"])
    named = json.loads(run(variables, "qwen3-8b", "--gpu", "p40", "--json").stdout)
    assert named["settings"]["context"] == 4096


def test_a_file(variables: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_files.llama())
    found = json.loads(run(variables, str(path), "--gpu", "p40", "--json").stdout)
    assert (found["model"], found["quantisation"]) == ("tiny.gguf", "F16")
    assert found["model_bytes"] == sum(size for *_, size in model_files.llama_tensors())
    path.write_bytes(model_files.llama()[:-64])
    done = run(variables, str(path), "--gpu", "p40", "--json")
    assert done.returncode == 2 and "not finished" in json.loads(done.stdout)["why"]
    done = run(variables, str(path), "--gpu", "p40", "--quantisation", "Q8_0")
    assert done.returncode == 2 and "quantised already" in done.stderr


def test_a_page_that_cannot_be_written(variables: dict[str, str], tmp_path: Path) -> None:
    done = run(variables, "qwen3-8b", "--gpu", "p40", "--html", str(tmp_path / "no" / "x.html"))
    assert done.returncode == 3 and "could not be written" in done.stderr


def test_the_list_of_models(variables: dict[str, str]) -> None:
    listed = json.loads(run(variables, "--models", "--json").stdout)["models"]
    assert len(listed) >= 40 and all(item["source"] for item in listed)
    shown = run(variables, "--models").stdout
    assert re.search(r"qwen3-8b +Qwen 3 8B +8\.2 G +40960 +compared", shown)
