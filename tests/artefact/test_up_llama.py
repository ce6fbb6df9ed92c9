"""``legacy-cuda up --engine llama-cpp`` for real: installed, audited, and its server asked.

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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda.fetch import uv_binary

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
called = client.chat.completions.create(**ask, tools=[tool]).choices[0]
print(json.dumps({
    "text": whole.choices[0].message.content,
    "tokens": whole.usage.completion_tokens,
    "pieces": pieces,
    "reason": called.finish_reason,
    "calls": [
        [call.function.name, json.loads(call.function.arguments)]
        for call in called.message.tool_calls or []
    ],
}))
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
    """Chat, streaming and a call of a function, by a tiny model that was made for it."""
    plain = ask(made, "llama-64-F16.gguf")
    assert plain["tokens"] == 12
    assert "".join(plain["pieces"]) == plain["text"] and len(plain["pieces"]) > 3
    called = ask(made, "calls-F16.gguf")
    assert (called["reason"], called["calls"]) == ("tool_calls", [["answer", {"number": 42}]])


def ask(made: Made, model: str) -> dict[str, Any]:
    """What a client gets from a server with that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
            [python, "-c", CLIENT, url], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + log.read_text()
    finally:
        server.terminate()
        server.wait(30)
    if not Path("/dev/nvidiactl").exists():
        assert "libggml-cuda.so is there but cannot be loaded" in log.read_text()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())
