"""Engines beside the GPUs: what they say, what they lack, and that none holds up a scrape.

The engines are stand-ins with replies in the forms that the real ones have; a real llama-server is
asked in tests/artefact/test_up_llama.py.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda.engines.run import fetched
from legacy_cuda.monitor import engines
from legacy_cuda.monitor.asking import Asking, ask
from legacy_cuda.monitor.engines import (
    Engine,
    counts_of,
    each_on_gpus,
    families,
    on_gpus,
    reading_of,
)
from legacy_cuda.monitor.metrics import State, render
from legacy_cuda.monitor.overview import page
from legacy_cuda.nvml import Device, Process, Snapshot

LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 31
# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 96
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
"""
VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 700.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 300.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} 512.0
"""
MODEL = {"name": "hermes3:8b", "size": 6_000, "size_vram": 6_000, "context_length": 4096}


class Handler(BaseHTTPRequestHandler):
    answers: dict[str, bytes]

    def do_GET(self) -> None:
        body = self.answers.get(self.path)
        self.send_response(200 if body is not None else 503)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    own = type("Own", (Handler,), {"answers": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), own) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def gpu(*processes: Process) -> Device:
    return Device(0, processes=processes)


def named(name: str | None, memory: int | None = 5_000) -> Process:
    return Process(7, "compute", memory, name, 0)


def test_counts_of_each_engine() -> None:
    assert counts_of("llama-server", LLAMA) == {
        "prompt_tokens": 31, "generated_tokens": 96, "requests_running": 2, "requests_waiting": 1
    }  # fmt: skip
    assert counts_of("vllm", VLLM) == {
        "prompt_tokens": 1000, "generated_tokens": 512, "requests_running": 3, "requests_waiting": 0
    }  # fmt: skip


@given(st.text(max_size=200), st.sampled_from(engines.KINDS))
def test_any_text_for_metrics(text: str, kind: str) -> None:
    """Counts, or nothing: an engine that answers nonsense takes no other series with it."""
    engine = Engine(kind, "http://h:1")
    try:
        more = json.loads(text) if kind == "ollama" else text
    except ValueError:
        more = None
    render(families([reading_of(engine, b"", more)], []))


def test_what_lies_on_the_gpus() -> None:
    reading = reading_of(Engine("llama-server", "u"), b"", LLAMA)
    assert on_gpus(reading, [gpu(named("llama-server")), gpu(named("Xorg"))]) == 5_000
    assert on_gpus(reading, [gpu(named("python3"))]) == 0
    assert on_gpus(reading, []) is None  # no driver
    assert on_gpus(reading, [gpu(named(None))]) is None
    assert on_gpus(reading, [Device(0)]) is None
    assert on_gpus(reading, [gpu(named("llama-server", None))]) is None
    model = {**MODEL, "size_vram": 2_000}
    said = reading_of(Engine("ollama", "u"), b"", {"models": [MODEL, model]})
    assert on_gpus(said, []) == 2_000  # one name, said twice: the last


def test_two_engines_of_a_kind_are_not_told_apart() -> None:
    two = [
        reading_of(Engine("llama-server", url), b"", LLAMA) for url in ("http://h:1", "http://h:2")
    ]
    card = gpu(named("llama-server"))
    assert "engine_gpu_memory_bytes{" in render(families(two[:1], [card])).decode()
    assert "engine_gpu_memory_bytes{" not in render(families(two, [card])).decode()
    ollamas = [reading_of(Engine("ollama", url), b"", {"models": [MODEL]}) for url in ("a", "b")]
    assert render(families(ollamas, [card])).decode().count("engine_gpu_memory_bytes{") == 2
    assert each_on_gpus(two[:1], [card]) == [5_000] and each_on_gpus(two, [card]) == [None, None]


def test_the_page_knows_no_more_of_several_engines_than_the_metrics() -> None:
    card = replace(gpu(named("python3")), memory_total_bytes=1 << 33)
    shown = State(Snapshot(0.0, 0.1, devices=(card,)), (card,), {})
    one, two = (Engine("llama-server", f"http://h:{port}") for port in (1, 2))
    alone = page(shown, [reading_of(one, b"", LLAMA)])
    assert b'class="bad">0 MiB' in alone  # it fell to the CPU
    both = page(shown, [reading_of(engine, b"", LLAMA) for engine in (one, two)])
    assert b'class="bad"' not in both and b"0 MiB<" not in both


@pytest.mark.parametrize("host", ["h..h", "h" * 70])
def test_a_name_that_no_host_can_have(host: str) -> None:
    assert not ask(Engine("vllm", f"http://{host}:80")).up


def test_engines_in_the_page(server: ThreadingHTTPServer) -> None:
    engine, handler = Engine("ollama", url_of(server)), server.RequestHandlerClass
    assert not ask(engine).up
    handler.answers["/api/version"] = b'{"version": "0.0.0"}'
    assert ask(engine).up and ask(engine).models is None
    handler.answers["/api/ps"] = json.dumps({"models": [{**MODEL, "size_vram": 0}]}).encode()
    page = render(families([ask(engine)], [])).decode()
    own = f'engine="ollama",url="{engine.url}"'
    assert f"legacy_cuda_engine_up{{{own}}} 1.0" in page
    assert f"legacy_cuda_engine_models_loaded{{{own}}} 1.0" in page
    assert f"legacy_cuda_engine_gpu_memory_bytes{{{own}}} 0.0" in page
    own = f'engine="ollama",model="hermes3:8b",url="{engine.url}"'
    assert f"legacy_cuda_engine_model_bytes{{{own}}} 6000.0" in page
    for nonsense in (b"[]", b"{", b'{"models": [1]}', b'{"models": [{"name": "x"}]}'):
        handler.answers["/api/ps"] = nonsense
        found = ask(engine)
        assert found.up and found.models is None
        assert "models_loaded" not in render(families([found], [])).decode()
    llama = Engine("llama-server", url_of(server))
    handler.answers["/health"], handler.answers["/metrics"] = b"{}", LLAMA.encode()
    page = render(families([ask(llama)], [gpu(named("llama-server"))])).decode()
    assert "legacy_cuda_engine_generated_tokens_total{" in page
    assert 'engine_gpu_memory_bytes{engine="llama-server"' in page


def test_an_engine_that_never_ends_its_answer(server: ThreadingHTTPServer) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b".")
            time.sleep(0.1)

    server.RequestHandlerClass.do_GET = drip
    began = time.monotonic()
    with pytest.raises(OSError, match="too long"):
        fetched(url_of(server) + "/metrics", timeout=0.5)
    assert time.monotonic() - began < 5


def test_an_engine_that_hangs_is_down_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("legacy_cuda.monitor.asking.LIMIT", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        asking = Asking(Engine("vllm", f"http://127.0.0.1:{silent.getsockname()[1]}"), 0.01)
        began = time.monotonic()
        asking.start()
        assert time.monotonic() - began < 0.9 and not asking.reading.up
        for _ in range(1000):
            assert not asking.reading.up
        asking.stop()
        assert time.monotonic() - began < 10
