"""``legacy-cuda serve``: a server that stands in for llama-server, killed, stopped and refused."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_files
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda import catalog
from legacy_cuda.catalog.estimates import overhead
from legacy_cuda.catalog.models import find_format, find_mix, find_model
from legacy_cuda.engines import Address, llama_server, unit
from legacy_cuda.planner import plan
from legacy_cuda.planner.placement import Settings
from legacy_cuda.planner.shapes import model_of

SERVER = """\
#!{python}
import http.server, os, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
loaded = time.monotonic() + 0.5
if os.environ.get("FAIL"):
    sys.exit(7)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() > loaded else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
print("order", os.environ["CUDA_DEVICE_ORDER"], flush=True)
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.clean_variables(tmp_path_factory.mktemp("home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(model_files.llama())
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def run(variables: dict[str, str], *arguments: str) -> Any:
    return tiny.run(variables, "serve", *arguments)


@contextmanager
def serving(variables: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*tiny.command(), "serve", *arguments],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        process.communicate(timeout=60)


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """The next line on standard error that has the text in it."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"no line with {text!r}")


def ready(process: subprocess.Popen[str]) -> int:
    """The engine's process, once it is ready."""
    found = re.search(r"ready, process (\d+)", line_with(process, "ready"))
    assert found
    return int(found[1])


def test_ready_killed_ready_again_and_stopped(
    variables: dict[str, str], model: Path, program: Path
) -> None:
    port = tiny.free_port()
    arguments = [str(model), "--gpu", "p40", "--program", str(program), "--port", str(port)]
    with serving(variables, *arguments) as process:
        first = ready(process)
        again = run(variables, *arguments)
        assert again.returncode == 3 and "listens" in again.stderr
        os.kill(first, signal.SIGKILL)
        assert "SIGKILL" in line_with(process, "ended")
        second = ready(process)
        assert second != first
        process.terminate()
        assert process.wait(timeout=60) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        assert process.stdout is not None
        assert process.stdout.read().count("order PCI_BUS_ID") == 2


def test_a_program_that_always_fails_is_given_up(
    variables: dict[str, str], model: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from legacy_cuda.engines import run as runner
    from legacy_cuda.errors import SurroundingsError

    monkeypatch.setenv("FAIL", "1")
    said: list[str] = []
    engine = runner.Engine(
        [str(program), "--port", "1"], {}, "http://127.0.0.1:1/health", restarts=2
    )
    begin = time.monotonic()
    with pytest.raises(SurroundingsError, match="ended 3 times"):
        runner.serve(engine, said.append)
    assert time.monotonic() - begin < 60
    assert [text for text in said if "status 7" in text] == said and len(said) == 2


def test_what_has_no_cpu_back_end_is_not_started_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from legacy_cuda import nvml
    from legacy_cuda.engines import run as runner
    from legacy_cuda.errors import SurroundingsError

    marker = tmp_path / "started"
    none = nvml.Snapshot(0.0, 0.0, error=nvml.Missing("LIBRARY_NOT_FOUND", "libnvidia-ml.so.1"))
    monkeypatch.setattr(nvml, "snapshot", lambda: none)
    engine = runner.Engine(
        ["touch", str(marker)], {}, "http://127.0.0.1:1/health", [1], restarts=0, on_gpus_only=True
    )
    with pytest.raises(SurroundingsError, match="has no CPU back end") as caught:
        runner.serve(engine, print)
    assert "library not found (libnvidia-ml.so.1)" in caught.value.why and not marker.exists()
    with pytest.raises(SurroundingsError, match="ended 1 times"):  # that reason and no other
        runner.serve(replace(engine, on_gpus_only=False), print)
    assert marker.exists()


def test_bad_files_are_refused_before_anything_starts(
    variables: dict[str, str], model: Path, program: Path
) -> None:
    marker = program.with_name("started")
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    arguments = ["--gpu", "p40", "--program", str(program)]
    model.write_bytes(model_files.llama()[:-64])
    done = run(variables, str(model), *arguments)
    assert done.returncode == 2 and "not finished" in done.stderr
    done = run(variables, str(model.with_name("missing.gguf")), *arguments)
    assert done.returncode == 2 and "there is no file" in done.stderr
    done = run(variables, "qwen3-8b", *arguments)
    assert done.returncode == 2 and "serve needs a GGUF file" in done.stderr
    done = run(variables, str(model), *arguments, "--port", "abc")
    assert done.returncode == 2 and "'abc' is no whole number" in done.stderr
    model.write_bytes(model_files.llama())
    done = run(variables, str(model), *arguments, "--context", "16000000", "--parallel", "64")
    assert done.returncode == 1 and "does not fit" in done.stderr
    done = run(variables, str(model), "--gpu", "p40", "--program", "no-such-server")
    assert done.returncode == 3 and "no program" in done.stderr
    assert not marker.exists()


def test_what_is_printed_instead(
    variables: dict[str, str], model: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(program.parent)
    here = [str(model), "--gpu", "p40", "--program", f"./{program.name}"]
    arguments = [*here[:-1], str(program)]
    found = json.loads(run(variables, *arguments, "--json").stdout)
    assert found == json.loads(run(variables, *here, "--json").stdout)
    assert found["schema"] == "legacy-cuda/serve/1"
    assert found["command"][:3] == [str(program), "--model", str(model)]
    assert found["health"] == "http://127.0.0.1:8080/health"
    text = run(variables, *arguments, "--env").stdout
    assert text.splitlines()[1] == "CUDA_DEVICE_ORDER=PCI_BUS_ID"
    text = run(variables, *arguments, "--env", "--name", "it's $5").stdout
    words = shlex.split(text.splitlines()[0].removeprefix("# "))
    assert words[words.index("--alias") + 1] == "it's $5"


@pytest.mark.parametrize("form", ["--env", "--systemd"])
def test_a_name_of_two_lines_is_refused(
    variables: dict[str, str], model: Path, program: Path, form: str
) -> None:
    arguments = [str(model), "--gpu", "p40", "--program", str(program), "--name", "a\nb"]
    done = run(variables, *arguments, form)
    assert (done.returncode, done.stdout) == (2, "") and "line break" in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="skipped: no systemd-analyze")
@pytest.mark.parametrize("folder", ["plain", "a:b $HOME %h ${X} ü"])
def test_the_unit_is_sound_and_hardened(
    variables: dict[str, str], model: Path, program: Path, tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder
    place.mkdir()
    model, program = model.rename(place / model.name), program.rename(place / program.name)
    (place / r"lib:\"c' \d.so").touch()
    done = run(variables, str(model), "--gpu", "p40", "--program", str(program), "--systemd")
    path = tmp_path / "llama.service"
    path.write_text(done.stdout)
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert done.stdout.count("\nBindReadOnlyPaths=") == 3
    program = program.rename(place / "llama's server")
    done = run(variables, str(model), "--gpu", "p40", "--program", str(program), "--systemd")
    assert done.returncode == 2 and "quote" in done.stderr
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stdout[-400:]


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_words_of_a_unit(word: str) -> None:
    if any(sign in word for sign in "\n\r\0"):
        with pytest.raises(ValueError, match="line break"):
            unit.quoted(word)
        return
    text = unit.quoted(word)
    inner = text[1:-1] if text.startswith('"') else text
    plain = inner.replace('\\"', '"').replace("\\\\", "\\").replace("%%", "%")
    if "\\" not in word:
        assert plain == word


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_paths_of_a_unit(name: str) -> None:
    """One path remains one, with nothing that systemd would take for something else."""
    if any(sign in name for sign in "\n\r\0"):
        with pytest.raises(ValueError, match="line break"):
            unit.quoted_path(Path("/", name))
        return
    path = Path("/", name)
    text = unit.quoted_path(path)
    bare = re.sub(r"\\.", "", text)
    assert not set(bare) & set(":\\\"' \t")
    assert re.sub(r"\\(.)", r"\1", text).replace("%%", "%") == str(path)


def test_the_unit_prepares_every_card() -> None:
    text = unit.unit("x", ["/p"], {}, [])
    assert "Wants=modprobe@nvidia_uvm.service\n" in text
    assert re.search(r"^After=.*\bmodprobe@nvidia_uvm.service$", text, re.M)
    (modprobe,) = [line for line in text.splitlines() if "nvidia-modprobe" in line]
    assert modprobe.endswith(" -u")
    assert re.findall(r"-c (\d+)", modprobe) == [str(number) for number in range(16)]


def bound(variables: dict[str, str], home: Path, *arguments: str) -> set[Path]:
    """What a service sees of a home folder."""
    done = run({**variables, "HOME": str(home)}, *arguments, "--gpu", "p40", "--systemd")
    assert done.returncode == 0, done.stderr
    return {Path(item) for item in re.findall(r"^BindReadOnlyPaths=(.*)$", done.stdout, re.M)}


def test_a_service_never_sees_a_whole_home(
    variables: dict[str, str], model: Path, program: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    program = program.rename(home / "bin" / program.name)
    (home / "bin" / "libggml.so.0").touch()
    asked = [str(model), "--program", str(program)]
    assert bound(variables, home, *asked) == {program, home / "bin" / "libggml.so.0", model}
    (home / "pyvenv.cfg").touch()
    done = run({**variables, "HOME": str(home)}, *asked, "--gpu", "p40", "--systemd")
    assert done.returncode == 2 and "too much to show" in done.stderr


def test_folders_that_are_too_much_to_show() -> None:
    from legacy_cuda.cli.serve import _is_broad

    home = Path.home()
    for folder in ("/", "/home", "/root", Path("/home", "x"), home, home / ".local"):
        assert _is_broad(Path(folder)), folder
    for folder in (home / "venv", home / ".local" / "share" / "venv", "/opt/venv", "/srv"):
        assert not _is_broad(Path(folder)), folder


def test_a_service_sees_each_step_to_its_python(
    variables: dict[str, str], model: Path, program: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    installed, place = home / "pythons" / "3.12.1", home / "venv"
    for folder in (installed / "bin", place / "bin", home / "links"):
        folder.mkdir(parents=True)
    (installed / "bin" / "python3.12").touch()
    (home / "pythons" / "3.12").symlink_to("3.12.1")
    (home / "links" / "python3").symlink_to(home / "pythons" / "3.12" / "bin" / "python3.12")
    (place / "bin" / "python").symlink_to(home / "links" / "python3")
    (place / "pyvenv.cfg").touch()
    program = program.rename(place / "bin" / program.name)
    found = bound(variables, home, str(model), "--program", str(program))
    assert found == {place, home / "links", home / "pythons" / "3.12", installed, model}


def test_arguments_say_everything_that_was_planned() -> None:
    cards = [catalog.find_gpu("p4000"), catalog.find_gpu("gtx1060-6gb")]
    where = plan.devices(cards, overhead((12, 4)))
    small = find_format("q8_0")
    settings = Settings(context=5000, parallel=3, keys=small, values=small, split=(2.0, 1.0))
    found = plan.try_out(model_of(find_model("qwen3-8b"), find_mix("Q4_K_M")), settings, where)
    given = llama_server.arguments(found, Path("/m.gguf"), Address(), "x")
    pairs = dict(itertools.pairwise(given))
    assert pairs["--ctx-size"] == str(3 * 5120) and pairs["--parallel"] == "3"
    assert pairs["--tensor-split"] == "25,12" and pairs["--n-gpu-layers"] == "37"
    counted = replace(settings, split=(25.0, 12.0))
    again = plan.try_out(found.model, counted, where)
    assert again.placement.places == found.placement.places
    single = plan.try_out(found.model, replace(settings, split=None), where[:1])
    given = llama_server.arguments(single, Path("/m.gguf"), Address(), "x")
    assert given[given.index("--split-mode") + 1] == "none" and "--tensor-split" not in given
    pairs = dict(itertools.pairwise(given))
    assert pairs["--flash-attn"] == "on" and pairs["--cache-type-v"] == "q8_0"
    assert pairs["--fit"] == "off" and pairs["--host"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("layers", "cards", "device"),
    [(None, 1, "CUDA0"), (None, 2, "CUDA0,CUDA1"), (1, 2, "CUDA0,CUDA1"), (0, 2, "none")],
)
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(
    layers: int | None, cards: int, device: str
) -> None:
    where = plan.devices([catalog.find_gpu("p40")] * cards, overhead((12, 4)))
    model = model_of(find_model("qwen3-8b"), find_mix("Q4_K_M"))
    found = plan.try_out(model, Settings(layers=layers), where)
    given = llama_server.arguments(found, Path("/m.gguf"), Address(), "x")
    assert dict(itertools.pairwise(given))["--device"] == device
    assert ("--tensor-split" in given) == (cards > 1 and layers != 0)


@pytest.mark.parametrize(("batch", "given"), [(512, None), (2048, None), (4096, "4096")])
def test_a_large_batch_is_given_twice(batch: int, given: str | None) -> None:
    """llama-server computes no more than its --batch-size at a time, 2048 by default."""
    where = plan.devices([catalog.find_gpu("p40")], overhead((12, 4)))
    model = model_of(find_model("qwen3-8b"), find_mix("Q4_K_M"))
    found = plan.try_out(model, Settings(context=8192, batch=batch), where)
    words = llama_server.arguments(found, Path("/m.gguf"), Address(), "x")
    pairs = dict(itertools.pairwise(words))
    assert pairs["--ubatch-size"] == str(batch) and pairs.get("--batch-size") == given


def test_its_log_is_read() -> None:
    log = (
        "load_tensors:   CPU_Mapped model buffer size =   344.44 MiB\n"
        "load_tensors:        CUDA0 model buffer size =  5115.49 MiB\n"
        "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB\n"
        "sched_reserve:      CUDA0 compute buffer size =   112.01 MiB\n"
    )
    found = llama_server.memory(log)
    assert found["CUDA0"] == {"weights": 5115.49, "cache": 512.0, "compute": 112.01}
    assert found["CPU_Mapped"] == {"weights": 344.44}
