"""What the doctor asks of engines on the loopback address, and how it reads the answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda.doctor import loopback
from legacy_cuda.doctor.facts import Fact, LoadedModel, Service
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import apis, engines

Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with a body for each path; ``delay`` seconds pass between its bytes."""
    servers = []

    def start(bodies: dict[str, bytes], status: int = 200, delay: float = 0.0) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = bodies.get(self.path)
                self.send_response(status if body is not None else 404)
                self.end_headers()
                for at in range(len(body or b"")):
                    time.sleep(delay)
                    self.wfile.write((body or b"")[at : at + 1])

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def service(engine: str, *words: str, **variables: str) -> Service:
    named = tuple((name, Fact(value, "unit")) for name, value in variables.items())
    return Service("a.service", engine, Fact(words, "unit"), named, None)


PS = {
    "models": [
        {"name": "qwen3:8b", "size": 6591830464, "size_vram": 5333539264, "context_length": 4096},
        {"name": "all-minilm", "size": 1000, "size_vram": 1000},
        {"name": "on the CPU", "size": 1000},
        {"name": 7, "size": 1000, "size_vram": 1000},
        {"name": "negative", "size": 1000, "size_vram": -1},
        "nonsense",
    ]
}
METRICS = b"""# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="a/b"} 4.0
vllm:num_preemptions_total{engine="1",model_name="a/b"} 3.0
vllm:num_preemptions_created{engine="0",model_name="a/b"} 1.7e+09
"""


def test_ollama(serve: Serve) -> None:
    port = serve({"/api/ps": json.dumps(PS).encode()})
    (answer,) = apis.answers([service("ollama", OLLAMA_HOST=f"0.0.0.0:{port}")])
    assert answer.source == f"http://127.0.0.1:{port}/api/ps"
    assert answer.models == (
        LoadedModel("qwen3:8b", 6591830464, 5333539264),
        LoadedModel("all-minilm", 1000, 1000),
        LoadedModel("on the CPU", 1000, 0),
    )


def test_llama_server_and_vllm(serve: Serve) -> None:
    ready = serve({"/health": b'{"status":"ok"}'})
    loading = serve({"/health": b'{"error":{"code":503}}'}, status=503)
    metrics = serve({"/metrics": METRICS})
    found = list(
        apis.answers(
            service(engine, "x", "--port", str(port))
            for engine, port in (("llama-cpp", ready), ("llama-cpp", loading), ("vllm", metrics))
        )
    )
    assert [(item.engine, item.preempted) for item in found] == [("llama-cpp", None), ("vllm", 7.0)]


@pytest.mark.parametrize(
    ("made", "port"),
    [
        (service("ollama"), 11434),
        (service("ollama", OLLAMA_HOST="0.0.0.0"), 11434),
        (service("ollama", OLLAMA_HOST="http://127.0.0.1:9000/"), 9000),
        (service("ollama", OLLAMA_HOST="[::]:9000"), 9000),
        (service("ollama", OLLAMA_HOST="(hidden)"), None),
        (service("ollama", OLLAMA_HOST="192.0.2.1:9000"), None),
        (service("ollama", OLLAMA_HOST="0.0.0.0:99999"), None),
        (service("llama-cpp", "llama-server"), 8080),
        (service("llama-cpp", "llama-server", "--port=81"), 81),
        (service("llama-cpp", "llama-server", LLAMA_ARG_PORT="82"), 82),
        (service("llama-cpp", "llama-server", "--host", "(hidden)"), None),
        (service("llama-cpp", "llama-server", "--host", "/run/a.sock"), None),
        (service("llama-cpp", "llama-server", "--port", "$PORT"), None),
        (service("vllm", "vllm", "serve", "x", "--port", "83"), 83),
        (service("sglang", "sglang"), None),
    ],
)
def test_where_an_engine_listens(made: Service, port: int | None) -> None:
    assert apis.port_of(made) == port


def test_who_does_not_answer_in_time(serve: Serve) -> None:
    slow = serve({"/api/ps": json.dumps(PS).encode()}, delay=0.05)
    begin = time.monotonic()
    assert list(apis.answers([service("ollama", OLLAMA_HOST=f":{slow}")])) == []
    assert time.monotonic() - begin < loopback.SECONDS + 1
    gone = serve({})
    assert list(apis.answers([service("ollama", OLLAMA_HOST=f":{gone}")])) == []


def test_no_more_than_a_few_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(loopback, "get", lambda port, path: asked.append(port))
    many = [service("vllm", "x", "--port", str(port)) for port in (*range(9000, 9020), 9000)]
    assert list(apis.answers(many)) == [] and asked == [9000, 9001, 9002, 9003]


@given(st.binary(max_size=400), st.sampled_from(sorted(apis._PORTS)))
def test_any_answer(body: bytes, engine: str) -> None:
    answer = apis._read(service(engine), body, "x")
    assert answer is None or answer.engine == engine


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["models", "name", "size", "size_vram", "status"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["ollama", "llama-cpp"]))
def test_any_document(document: Any, engine: str) -> None:
    answer = apis._read(service(engine), json.dumps(document).encode(), "x")
    assert answer is None or all(item.on_gpu >= 0 and item.size > 0 for item in answer.models)


def test_processes_are_known_by_their_commands(tmp_path: Path) -> None:
    lines = {
        "10": b"/usr/bin/ollama\0serve\0",
        "11": b"python3\0-m\0llama_cpp.server\0--api-key\0secret\0",
        "12": b"vim\0ollama.txt\0",
        "13": b"",
        "14": b"\xff\xfe\0",
        "self": b"/usr/bin/ollama\0serve\0",
    }
    for name, data in lines.items():
        (tmp_path / "proc" / name).mkdir(parents=True)
        (tmp_path / "proc" / name / "cmdline").write_bytes(data)
    found = list(engines.processes(Place(tmp_path)))
    assert [(item.unit, item.engine) for item in found] == [
        ("process 10", "ollama"),
        ("process 11", "llama-cpp"),
    ]
    assert "secret" not in found[1].command.value
    assert apis.look(Place(tmp_path)) == ()  # a recorded tree: nothing is asked
