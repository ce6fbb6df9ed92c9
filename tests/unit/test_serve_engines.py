"""``legacy-cuda serve`` for Ollama and vLLM, and what it prints: drop-ins, compose, NixOS, gateway.

Ollama is a stand-in that answers with the replies of its API's documentation.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import builders
import model_files
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import serving
from legacy_cuda.cli import main
from legacy_cuda.engines import Address, Service, compose, gateway, nixos, ollama, vllm
from legacy_cuda.engines.proof import prove
from legacy_cuda.nvml import Device, Missing, Process, Snapshot

PASCAL = Capability(6, 1)
UNIT = """\
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart={program} serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH=/usr/local/bin:/usr/bin:/bin"

[Install]
WantedBy=default.target
"""
# as somebody set it by hand
BY_HAND = """\
[Service]
Environment=CUDA_VISIBLE_DEVICES=0,1
Environment=OLLAMA_LLM_LIBRARY=cuda
Environment=OLLAMA_NO_CUDA=0
Environment=OLLAMA_NUM_GPU_LAYERS=999
Environment=OLLAMA_SCHED_SPREAD=true
"""
LATER = "[Service]\nEnvironment=OLLAMA_KEEP_ALIVE=5m\n"
# Ollama's own replies, as its documentation of the API has them, cut to what is read
OLLAMA = """\
#!{python}
import http.server, json, os, sys
host, _, port = os.environ["OLLAMA_HOST"].rpartition(":")
loaded = {{"models": []}}
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer({{"version": "0.0.0"}} if self.path == "/api/version" else loaded)
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["model"] == "missing:1b":
            return self.answer({{"error": "model 'missing:1b' not found"}}, 404)
        loaded["models"] = [{{
            "name": asked["model"], "model": asked["model"], "size": 5137025024,
            "digest": "2ae6", "details": {{"format": "gguf", "family": "llama"}},
            "expires_at": "2026-11-21T14:38:31.83753-07:00",
            "size_vram": int(os.environ["ON_GPUS"]), "context_length": 4096,
        }}]
        self.answer({{"model": asked["model"], "response": "", "done": True}})
    def log_message(self, *_):
        pass
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.clean_variables(tmp_path_factory.mktemp("home"))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with an Ollama as its installer leaves it, its service, and drop-ins by hand."""
    program = tmp_path / "usr" / "bin" / "ollama"
    for folder in (program.parent, tmp_path / "usr" / "lib" / "ollama" / "cuda_v12"):
        folder.mkdir(parents=True)
    program.write_text(OLLAMA.format(python=sys.executable))
    program.chmod(0o755)
    folder = tmp_path / "etc" / "systemd" / "system" / "ollama.service.d"
    folder.mkdir(parents=True)
    folder.with_name("ollama.service").write_text(UNIT.format(program=program))
    (folder / "10-gpu.conf").write_text(BY_HAND)
    (folder / "performance.conf").write_text(LATER)
    return tmp_path


def run(variables: dict[str, str], *arguments: str) -> Any:
    return tiny.run(variables, "serve", *arguments)


def test_the_data_follows_its_schema() -> None:
    schema = json.loads((catalog.DATA.parent / "schema" / "serving.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(serving._rows()))
    for engine in ("llama-server", "ollama", "vllm"):
        assert serving.variables(engine)
        assert serving.image(engine).name
    nothing = {row.name for engine in ("ollama", "sglang") for row in serving.no_settings(engine)}
    set_here = {row.name for engine in ("ollama", "vllm") for row in serving.variables(engine)}
    assert not nothing & set_here


# Ollama ------------------------------------------------------------------------------------------


def test_a_drop_in_is_shown_merged(variables: dict[str, str], machine: Path) -> None:
    unit = machine / "etc" / "systemd" / "system" / "ollama.service"
    asked = ["hermes3:8b-llama3.1-q5_K_M", "--engine", "ollama", "--gpu", "p4000,gtx1060-6gb"]
    asked += ["--context", "8192", "--kv-type", "q8_0", "--unit", str(unit)]
    done = run(variables, *asked, "--drop-in")
    assert done.returncode == 0, done.stderr
    for line in (
        "CUDA_VISIBLE_DEVICES=0,1", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "OLLAMA_LLM_LIBRARY=cuda_v12",
        f"LD_LIBRARY_PATH={machine}/usr/lib/ollama/cuda_v12", "OLLAMA_SCHED_SPREAD=1",
        "OLLAMA_KEEP_ALIVE=1h", "OLLAMA_CONTEXT_LENGTH=8192", "OLLAMA_NUM_PARALLEL=1",
        "OLLAMA_KV_CACHE_TYPE=q8_0", "OLLAMA_FLASH_ATTENTION=1",
    ):  # fmt: skip
        assert f"\nEnvironment={line}\n" in done.stdout, line
    drop_in = unit.with_name("ollama.service.d") / "50-legacy-cuda.conf"
    shown = run(variables, *asked, "--merged")
    paths = [line for line in shown.stdout.splitlines() if line.startswith("# /")]
    assert [path.rpartition("/")[2] for path in paths] == [
        "ollama.service", "10-gpu.conf", "50-legacy-cuda.conf", "performance.conf"
    ]  # fmt: skip
    for text in (
        "OLLAMA_NUM_GPU_LAYERS does nothing", "OLLAMA_NO_CUDA does nothing",
        "OLLAMA_LLM_LIBRARY=cuda gives way to cuda_v12",
        "performance.conf: OLLAMA_KEEP_ALIVE=5m wins over 1h",
    ):  # fmt: skip
        assert text in shown.stderr
    if shutil.which("systemd-analyze") is None:
        pytest.skip("skipped: no systemd-analyze")
    drop_in.write_text(done.stdout)
    cat = subprocess.run(
        ["systemd-analyze", f"--root={machine}", "cat-config", "systemd/system/ollama.service"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    # systemd's own view of the two, but for colours and the empty line at the end
    assert [line for line in cat.splitlines() if line] == [
        line for line in shown.stdout.splitlines() if line
    ]
    checked = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")


def test_one_card_needs_no_spreading_and_an_unknown_model_no_plan(
    variables: dict[str, str], machine: Path
) -> None:
    unit = str(machine / "etc" / "systemd" / "system" / "ollama.service")
    done = run(
        variables, "granite4:tiny-h", "--engine", "ollama", "--gpu", "p40", "--unit", unit,
        "--drop-in",
    )  # fmt: skip
    assert done.returncode == 0 and "nothing is known of granite4:tiny-h" in done.stderr
    assert "SPREAD" not in done.stdout and "CONTEXT" not in done.stdout
    assert "CUDA_VISIBLE_DEVICES=0\n" in done.stdout


def test_what_is_refused(variables: dict[str, str], machine: Path) -> None:
    done = run(variables, "hermes3:8b", "--engine", "ollama", "--gpu", "k80", "--env")
    assert done.returncode == 1 and "runs on the CPU without saying so" in " ".join(
        done.stderr.split()
    )
    done = run(variables, "llama3.3:70b", "--engine", "ollama", "--gpu", "p4", "--env")
    assert done.returncode == 1 and "does not fit" in done.stderr
    done = run(variables, "any", "--engine", "sglang", "--gpu", "p4")
    assert done.returncode == 1 and "sm75" in done.stderr
    done = run(variables, "any", "--engine", "vllm", "--gpu", "v100")
    assert done.returncode == 1 and "vllm is refused on v100" in done.stderr
    assert done.stdout == ""
    done = run(variables, "m.gguf", "--gpu", "p40", "--drop-in")
    assert done.returncode == 2 and "--systemd" in done.stderr
    done = run(variables, "hermes3:8b", "--engine", "ollama", "--gpu", "p40", "--systemd")
    assert done.returncode == 2 and "--drop-in" in done.stderr


@pytest.mark.parametrize(
    "words, what, why, instead",
    [
        ("any --engine vllm --gpu v100", "vllm is refused on v100", "7.0", "stock vLLM"),
        ("any --engine sglang --gpu p40", "sglang is refused on p40", "sm75", "vllm"),
        ("hermes3:8b --engine ollama --gpu k80", "ollama is refused on k80", "CPU", "llama.cpp"),
        ("any.gguf --gpu k40", "llama-server is refused on k40", "3.5", "from source"),
        ("any.gguf --gpu k80,rtx5090", "is refused on k80, rtx5090", "12.0", "2 machines"),
        ("llama3.3:70b --engine ollama --gpu p4", "does not fit", "MiB", "legacy-cuda plan"),
    ],
)
def test_a_refusal_is_a_document_too(
    variables: dict[str, str], machine: Path, words: str, what: str, why: str, instead: str
) -> None:
    done = run(variables, *words.split(), "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["exit_code"]) == (1, 1)
    assert what in said["error"] and why in said["why"] and instead in said["next"]


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("ollama", ["--layers", "3"]),
        ("ollama", ["--split", "3,1"]),
        ("ollama", ["--kv-type", "q8_0,q4_0"]),
        ("vllm", ["--kv-type", "q8_0"]),
        ("vllm", ["--layers", "3"]),
        ("vllm", ["--batch", "64"]),
    ],
)
def test_a_setting_that_an_engine_does_not_have(
    engine: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["serve", "hermes3:8b", "--engine", engine, "--gpu", "p40", *arguments, "--env"]
    assert main(asked) == 2
    found = capsys.readouterr()
    assert not found.out and arguments[0] in found.err


def test_open_webui_listens_on_loopback(variables: dict[str, str], machine: Path) -> None:
    asked = ["hermes3:8b", "--engine", "ollama", "--gpu", "p40", "--open-webui"]
    done = run(variables, *asked, "--program", str(machine / "usr" / "bin" / "ollama"))
    command = done.stdout.splitlines()[0]
    assert command == "# open-webui serve --host 127.0.0.1 --port 3000"


@pytest.mark.parametrize(
    ("model", "on_gpus", "code", "said"),
    [
        ("hermes3:8b", 5137025024, 0, "ready, process"),
        ("hermes3:8b", 2_000_000_000, 0, "1907 of 4899 MiB on the GPUs"),
        ("hermes3:8b", 0, 3, "it uses the CPU"),
        ("missing:1b", 0, 0, "not found"),
    ],
)
def test_ollama_in_the_foreground_says_where_the_model_lies(
    variables: dict[str, str], machine: Path, model: str, on_gpus: int, code: int, said: str
) -> None:
    port = tiny.free_port()
    process = subprocess.Popen(
        [*tiny.command(), "serve", model, "--engine", "ollama", "--gpu", "p40", "--port", str(port),
         "--program", str(machine / "usr" / "bin" / "ollama")],
        env={**variables, "ON_GPUS": str(on_gpus)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    text = ""
    while said not in text:
        line = process.stderr.readline()
        assert line, text
        text += line
    if code == 0:
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == code
    process.communicate()


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9))
def test_any_reply_of_ollama(rows: Any) -> None:
    try:
        found = ollama.loaded({"models": rows})
    except ValueError:
        return
    assert all(0 <= row.share <= 1 for row in found)


# vLLM --------------------------------------------------------------------------------------------


def test_vllm_is_set_up_or_refused(variables: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def asked(gpu: str = "p40", *more: str, **changes: Any) -> Any:
        shutil.rmtree(folder, ignore_errors=True)
        model_files.folder(folder, **changes)
        return run(variables, str(folder), "--gpu", gpu, "--program", str(program), *more, "--json")

    words = json.loads(asked("2xp40", "--parallel", "4").stdout)["command"]
    pairs = dict(zip(words, [*words[1:], ""], strict=True))
    assert pairs["--dtype"] == "half" and pairs["--tensor-parallel-size"] == "2"
    assert "--disable-custom-all-reduce" in words and "--enforce-eager" in words
    assert 0.8 < float(pairs["--gpu-memory-utilization"]) <= 0.95
    for changes, said in (
        ({"quantization_config": {"quant_method": "fp8"}}, "needs capability 7.5"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "needs capability 8.0"),
        ({"kv_lora_rank": 512}, "MLA"),
    ):
        done = asked(**changes)
        assert done.returncode == 1 and said in done.stderr
    done = asked(quantization_config={"quant_method": "gptq"})
    assert (done.returncode, done.stderr) == (0, "")
    done = asked(quantization_config={"quant_method": "awq"})
    assert done.returncode == 0 and "slow" in done.stderr
    gemma = json.loads(asked(model_type="gemma3_text", head_dim=64).stdout)["command"]
    assert gemma[gemma.index("--dtype") + 1] == "float32"
    done = asked("p40", "--parallel", "4096", "--context", "4096000")
    assert done.returncode == 1 and "MiB are missing" in done.stderr
    memory = [
        words[words.index("--gpu-memory-utilization") + 1]
        for more in ([], ["--display", "3000"])
        for words in [json.loads(asked("p40", *more).stdout)["command"]]
    ]
    assert float(memory[0]) - float(memory[1]) > 0.05
    done = asked("p40,p100")
    assert done.returncode == 2 and "one kind" in done.stderr
    model_files.folder(plain := tmp_path / "plain")
    service = run(
        variables, str(plain), "--gpu", "2xp40", "--program", str(program), "--systemd"
    ).stdout
    # gloo lists the interfaces, and on the network's own address nothing would reach it
    assert "\nRestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n" in service
    assert "\nIPAddressAllow=localhost\n" in service
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        assert f"\nEnvironment={name}=lo\n" in service
    (folder / "model.safetensors").write_bytes(b"\xff" * 8)
    done = run(variables, str(folder), "--gpu", "p40", "--program", str(program), "--json")
    assert done.returncode == 2 and "is not served" in done.stderr
    (folder / "model.safetensors").rename(folder / "model.gguf")
    done = run(variables, str(folder), "--gpu", "p40", "--program", str(program), "--json")
    assert done.returncode == 2 and "for a GGUF file name the file" in done.stderr


def test_vllm_is_refused_without_code_for_the_cards(
    variables: dict[str, str], tmp_path: Path
) -> None:
    site = tmp_path / "env" / "lib" / "python3.12" / "site-packages" / "vllm"
    program = tmp_path / "env" / "bin" / "vllm"
    for path in (site, program.parent):
        path.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    linked = tmp_path / "vllm"  # as pipx and uv put it on PATH
    linked.symlink_to(program)
    model_files.folder(folder := tmp_path / "m")

    def asked(gpu: str) -> Any:
        return run(variables, str(folder), "--gpu", gpu, "--program", str(linked), "--json")

    assert asked("p40").returncode == 0  # there is nothing to read
    extension = site / "_C.abi3.so"
    extension.write_bytes(builders.library(builders.container(builders.entry(number=61))))
    assert asked("p40").returncode == 0
    done = asked("p100")
    said = json.loads(done.stdout)
    assert done.returncode == 1 and "does not run on these cards" in said["error"]
    assert "_C.abi3.so has code for it in 0 of 1 containers" in said["why"]
    assert "legacy-cuda up p100 --engine vllm" in said["next"]
    other = tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "vllm"
    other.mkdir(parents=True)  # as in ~/.local, and nobody knows which of them the program is of
    whole = builders.library(builders.container(builders.entry(number=60)))
    (other / extension.name).write_bytes(whole)
    assert asked("p100").returncode == 0
    shutil.rmtree(other)
    extension.write_bytes(b"no library")
    assert asked("p100").returncode == 0


def test_vllm_is_asked_for_no_longer_context_than_the_model_has(
    variables: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def asked(context: int, **changes: Any) -> Any:
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        model_files.folder(tmp_path / "m", max_position_embeddings=4096, **changes)
        command = [str(tmp_path / "m"), "--gpu", "p40", "--program", str(program), "--json"]
        return run(variables, *command, "--context", str(context))

    assert asked(4096).returncode == 0
    done = asked(4097)
    assert done.returncode == 1 and "made for 4096 tokens" in done.stderr
    assert asked(4097, rope_parameters={"rope_type": "default"}).returncode == 1
    assert asked(4097, rope_scaling={"rope_type": "yarn", "factor": 4.0}).returncode == 0
    assert asked(4097, rope_scaling="yarn").returncode == 0
    assert asked(4097, model_max_length=8192).returncode == 0  # vLLM goes by that


# Proof -------------------------------------------------------------------------------------------


def seen(used: int, processes: tuple[Process, ...] | None) -> Snapshot:
    return Snapshot(0, 0, devices=(Device(0, memory_used_bytes=used, processes=processes),))


def test_what_proves_the_use_of_a_gpu() -> None:
    mine, others = Process(7, "compute", 900, "x", 0), Process(8, "compute", 900, "y", 0)
    unknown = Process(7, "compute", None, "x", 0)
    nothing = seen(0, ())
    assert prove(nothing, seen(900, (mine,)), {7}, [1000]).used is True
    assert prove(nothing, seen(900, (others,)), {7}, [10000]).used is False
    assert prove(nothing, seen(900, (unknown,)), {7}, [1000]).used is True
    assert prove(seen(900, ()), seen(900, (unknown,)), {7}, [1000]).used is False
    assert prove(nothing, seen(900, None), {7}, [1000]).used is True
    assert prove(nothing, seen(0, ()), {7}, [1000]).used is False
    error = Snapshot(0, 0, error=Missing("LIBRARY_NOT_FOUND", "nvmlInit"))
    assert prove(nothing, error, {7}, [1000]).used is None
    assert prove(nothing, Snapshot(0, 0), {7}, [1000]).used is False


# What is printed ---------------------------------------------------------------------------------


def service(**changes: Any) -> Service:
    usual: dict[str, Any] = {
        "engine": "llama-server", "model": "tiny", "address": Address(), "health": "/health",
        "command": ("/e/bin/llama-server", "--model", "/m$x.gguf", "--host", "0.0.0.0", "--metrics",
                    "--ctx-size", "4096"),
        "environment": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "metrics": "/metrics",
        "readable": (Path("/e"), Path("/m$x.gguf")), "planned": (1,),
    }  # fmt: skip
    return Service(**{**usual, **changes})


def test_a_compose_file_mounts_what_is_read_and_nothing_to_write() -> None:
    found = compose.document(service(), serving.image("llama-server"), 2, ["true"])
    (one,) = found["services"].values()
    assert one["entrypoint"][2] == "/m$$x.gguf"
    assert all(volume["read_only"] for volume in one["volumes"]) and one["read_only"]
    assert one["ports"] == ["127.0.0.1:8080:8080"]
    (device,) = one["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0", "1"]
    found = compose.document(service(writes=True), serving.image("ollama"), 0, ["true"])
    (one,) = found["services"].values()
    assert "entrypoint" not in one and "deploy" not in one and found["volumes"] == {"data": {}}


def test_several_gpus_need_shared_memory_and_localhost_is_an_address() -> None:
    found = compose.document(
        service(address=Address("localhost")), serving.image("vllm"), 2, ["true"]
    )
    (one,) = found["services"].values()
    assert one["shm_size"] == "1gb" and one["ports"] == ["127.0.0.1:8080:8080"]
    (one,) = compose.document(service(), serving.image("vllm"), 1, ["true"])["services"].values()
    assert "shm_size" not in one


def test_a_python_of_the_system_is_in_no_container(
    variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "e" / "bin").mkdir(parents=True)
    (tmp_path / "e" / "pyvenv.cfg").touch()
    program = tmp_path / "e" / "bin" / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    model = tmp_path / "tiny.gguf"
    model.write_bytes(model_files.llama())
    python = program.with_name("python")
    asked = [str(model), "--gpu", "p40", "--program", str(program), "--compose"]
    python.symlink_to("/usr/bin/python3")
    done = run(variables, *asked)
    assert done.returncode == 2 and "--systemd" in done.stderr and not done.stdout
    python.unlink()
    own = tmp_path / "own" / "bin" / "python3"
    own.parent.mkdir(parents=True)
    own.touch()
    python.symlink_to(own)
    done = run(variables, *asked)
    assert done.returncode == 0 and str(tmp_path / "own") in done.stdout


def test_options_for_nixos() -> None:
    found = nixos.llama_cpp(["p40"], service(), "/m$x.gguf")
    options = found["services.legacy-cuda.llama-cpp"]
    assert options["settings"] == {"metrics": True, "ctx-size": 4096}
    assert '"a\\${b}\\"\\\\c"' in nixos.text({"x": 'a${b}"\\c'})
    if shutil.which("nix-instantiate"):
        done = subprocess.run(
            ["nix-instantiate", "--parse", "-"], input=nixos.text(found), text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_settings_for_several_engines() -> None:
    found = [
        gateway.Endpoint("llama-server", "a", "http://127.0.0.1:8080"),
        gateway.Endpoint("ollama", "b:8b", "http://127.0.0.1:11434"),
    ]
    rows = gateway.litellm(found)["model_list"]
    assert rows[0]["litellm_params"]["model"] == "openai/a"
    assert rows[1]["litellm_params"] == {
        "model": "ollama_chat/b:8b", "api_base": "http://127.0.0.1:11434"
    }  # fmt: skip
    alone = gateway.open_webui(found)
    assert alone["OLLAMA_BASE_URLS"] == "http://127.0.0.1:11434"
    assert alone["OPENAI_API_BASE_URLS"] == "http://127.0.0.1:8080/v1"
    one = gateway.open_webui(found[:1])
    assert one["ENABLE_OLLAMA_API"] == "False" and "OLLAMA_BASE_URLS" not in one
    assert vllm.dtype_of({"torch_dtype": "float32"}) == "float32"
