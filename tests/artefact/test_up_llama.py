"""``legacy-cuda up --engine llama-cpp`` for real: installed, audited, and its server asked, once by
itself and once started by ``legacy-cuda serve``.

Takes the wheels from the cache or from LEGACY_CUDA_INDEX, else compiles them: a quarter of an hour
with two processors. On a machine without a GPU the server computes on the CPU and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda.fetch import uv_binary
from legacy_cuda.monitor.asking import ask as ask_engine
from legacy_cuda.monitor.engines import Engine

pytestmark = pytest.mark.large

ROOT = Path(__file__).parents[2]
GPUS = ("k80", "p40")
CLIENT = """
import json, sys
import openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", timeout=60)
said = [{"role": "user", "content": "Hello"}]
ask = dict(model="any", messages=said, temperature=0, max_tokens=12)
whole = client.chat.completions.create(**ask)
pieces = [
    chunk.choices[0].delta.content or ""
    for chunk in client.chat.completions.create(**ask, stream=True)
    if chunk.choices
]
tool = {
    "type": "function",
    "function": {
        "name": "answer",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
        },
    },
}
said = {
    "text": whole.choices[0].message.content,
    "tokens": whole.usage.completion_tokens,
    "pieces": pieces,
}
if sys.argv[2] == "calls":
    called = client.chat.completions.create(**ask, tools=[tool]).choices[0]
    said["reason"] = called.finish_reason
    said["calls"] = [
        [call.function.name, json.loads(call.function.arguments)]
        for call in called.message.tool_calls or []
    ]
print(json.dumps(said))
"""

# What a client does to a server with two slots; each part says what it saw.
SERVED = """
import concurrent.futures, json, os, re, signal, sys, time, urllib.request
import openai
url, pid = sys.argv[1], int(sys.argv[2])
client = openai.OpenAI(base_url=url + "/v1", api_key="none", timeout=60, max_retries=0)
ask = dict(model="any", messages=[{"role": "user", "content": "Hello"}], temperature=0)

def chat():
    return client.chat.completions.create(**ask, max_tokens=12).choices[0].message.content

def busy():
    text = urllib.request.urlopen(url + "/metrics", timeout=10).read().decode()
    return float(re.search(r"^llamacpp:requests_processing (\\S+)", text, re.M)[1])

def until(what, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if what():
                return True
        except (OSError, openai.APIError):
            pass
        time.sleep(0.05)
    return False

def answers():
    try:
        return bool(busy() + 1)
    except OSError:
        return False

said = {"models": [one.id for one in client.models.list()], "chat": chat()}
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    said["parallel"] = [one.result() for one in [pool.submit(chat) for _ in range(6)]]
# a stream that would go on for long is left
stream = client.chat.completions.create(
    **ask, max_tokens=12000, stream=True, extra_body={"ignore_eos": True}
)
for _ in range(5):
    next(stream)
said["busy"] = busy()
stream.close()
began = time.monotonic()
said["freed"] = until(lambda: busy() == 0, 20)
said["freed_after"] = time.monotonic() - began
said["after"] = chat()
os.kill(pid, signal.SIGKILL)
said["gone"] = until(lambda: not answers(), 10)
said["again"] = until(chat, 30)
said["same"] = chat()
print(json.dumps(said))
"""


@dataclass
class Made:
    """An environment that ``up`` made, and what it said about it."""

    folder: Path
    models: Path
    document: dict[str, Any]


@pytest.fixture(scope="module", params=GPUS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    home = tmp_path_factory.mktemp("up")
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "legacy_cuda", "up", request.param),
                *("--engine", "llama-cpp", "--json"),
            ],
            env={**os.environ, "LEGACY_CUDA_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        folder = home / f"{request.param}-llama-cpp"
        tools = home / "tools"
        subprocess.run([uv_binary(), "venv", "-q", "--python", sys.executable, tools], check=True)
        install = [uv_binary(), "pip", "install", "-q", "--python", tools / "bin" / "python"]
        subprocess.run([*install, "gguf", "openai"], check=True)
        models = home / "models"
        subprocess.run(
            [tools / "bin" / "python", "-m", "tests.llama.models", models], cwd=ROOT, check=True
        )
        yield Made(folder, models, json.loads(done.stdout))
    finally:
        shutil.rmtree(home)


def test_it_is_proven(made: Made) -> None:
    document = made.document
    assert document["good"]
    (verdict,) = document["audit"]
    assert verdict["outcome"] == "runs"
    (library,) = [item for item in verdict["libraries"] if "libggml-cuda" in item["path"]]
    assert library["sass"] == library["containers"] > 100
    assert [item["as_recorded"] for item in document["compiled"]] == [True, True]
    assert document["check"]["server"]


def test_an_openai_client_is_answered(made: Made) -> None:
    """Chat, streaming and a call of a function, by a tiny model that was made for it. The others
    are offered none: what they answer then is bytes that no format of a call takes."""
    plain = ask(made, "llama-64-F16.gguf")
    assert plain["tokens"] == 12
    assert "".join(plain["pieces"]) == plain["text"] and len(plain["pieces"]) > 3
    called = ask(made, "calls-F16.gguf")
    assert (called["reason"], called["calls"]) == ("tool_calls", [["answer", {"number": 42}]])


def ask(made: Made, model: str) -> dict[str, Any]:
    """What a client gets from a server with that model."""
    port = free_port()
    log = made.models / "server.log"
    command = [str(made.folder / "bin" / "llama-server"), "--model", str(made.models / model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--jinja", "--ctx-size", "1024"]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait(port, server, log)
        python = made.models.parent / "tools" / "bin" / "python"
        url = f"http://127.0.0.1:{port}/v1"
        done = subprocess.run(
            [python, "-c", CLIENT, url, model.partition("-")[0]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + text_of(log)
    finally:
        server.terminate()
        server.wait(30)
    if not Path("/dev/nvidiactl").exists():
        assert "libggml-cuda.so is there but cannot be loaded" in text_of(log)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    for _ in range(300):
        assert server.poll() is None, text_of(log)
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise AssertionError(text_of(log))


def text_of(log: Path) -> str:
    """A server's log, in which are the tokens of models that speak no UTF-8."""
    return log.read_text(errors="replace")


def served(made: Made, *words: str | Path) -> list[str]:
    """The command of ``serve`` on the CPU, with that environment's llama-server."""
    program = made.folder / "bin" / "llama-server"
    return [
        *(sys.executable, "-m", "legacy_cuda", "serve", *map(str, words), "--gpu", "p40"),
        *("--layers", "0", "--program", str(program)),
    ]


def test_an_openai_client_of_serve(made: Made) -> None:
    """Chat, six at a time on two slots, a stream that is left, a server that is killed."""
    port = free_port()
    command = served(made, made.models / "llama-64-F16.gguf", "--context", "16384")
    command += ["--parallel", "2", "--port", str(port), "--name", "tiny"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        ready = next(line for line in process.stderr if "ready, process" in line)
        pid = ready.rpartition("process ")[2].strip()
        # what llama-server writes is read away, or it would wait for that
        threading.Thread(target=process.stderr.read, daemon=True).start()
        python = made.models.parent / "tools" / "bin" / "python"
        done = subprocess.run(
            [python, "-c", SERVED, f"http://127.0.0.1:{port}", pid],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        reading = ask_engine(Engine("llama-server", f"http://127.0.0.1:{port}"))
        assert reading.up and reading.counts["generated_tokens"] > 0
        assert set(reading.counts) == {
            "prompt_tokens", "generated_tokens", "requests_running", "requests_waiting"
        }  # fmt: skip
        assert said["models"] == ["tiny"]
        assert said["chat"] and set(said["parallel"]) == {said["chat"]}
        assert said["busy"] == 1 and said["freed"], said
        assert said["after"] == said["same"] == said["chat"]
        assert said["gone"] and said["again"]
    finally:
        process.terminate()
        assert process.wait(60) == 0
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", port)) != 0


def test_bench_of_serve(made: Made, tmp_path: Path) -> None:
    """A run of few points, resumed with more rounds, shown, and compared with itself."""
    port = free_port()
    command = served(made, made.models / "llama-64-F16.gguf", "--context", "1024")
    process = subprocess.Popen(
        [*command, "--parallel", "2", "--port", str(port)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        next(line for line in process.stderr if "ready, process" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        file = tmp_path / "run.json"
        bench = [sys.executable, "-m", "legacy_cuda", "bench"]
        run = [*bench, "run", f"http://127.0.0.1:{port}", "--prompt", "32,128"]
        run += ["--generate", "24", "--concurrency", "1,2", "--output", str(file)]
        for rounds in ("1", "3"):
            subprocess.run([*run, "--repeat", rounds], check=True, capture_output=True)
        found = json.loads(file.read_text())
        done = subprocess.run(
            [*bench, "show", str(file)], check=True, capture_output=True, text=True
        )
        assert "decode" in done.stdout
        same = [*bench, "compare", str(file), str(file)]
        done = subprocess.run(same, check=True, capture_output=True, text=True)
        assert "worse" not in done.stdout.replace("better or worse", "")
    finally:
        process.terminate()
        process.wait(60)
    assert found["complete"] and len(found["sessions"]) == 2
    assert len(found["rounds"]) == 2 * 2 * 3  # lengths of prompts, requests at once, rounds
    requests = [one for each in found["rounds"] for one in each["requests"]]
    assert {one["outcome"] for one in requests} == {"ok"}
    assert {one["completion_tokens"] for one in requests} == {24}
    assert found["server"]["slots"] == 2


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "a tensor too many"])
def test_a_bad_file_is_refused_before_the_port_opens(
    made: Made, tmp_path: Path, damage: str
) -> None:
    data = (made.models / "llama-64-F16.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    count = (int.from_bytes(data[8:16], "little") + 1).to_bytes(8, "little")
    path.write_bytes(
        {
            "cut": data[:-100],
            "garbage": b"GGUF" + bytes(4000),
            "empty": b"",
            "a tensor too many": data[:8] + count + data[16:],
        }[damage]
    )
    port = free_port()
    process = subprocess.Popen(
        served(made, path, "--port", str(port)), stderr=subprocess.PIPE, text=True
    )
    opened = False
    while process.poll() is None:
        with socket.socket() as one:
            opened = opened or one.connect_ex(("127.0.0.1", port)) == 0
        time.sleep(0.01)
    assert process.stderr is not None
    text = process.stderr.read()
    assert process.returncode == 2 and "is not served" in text, text
    assert not opened and "starting" not in text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
