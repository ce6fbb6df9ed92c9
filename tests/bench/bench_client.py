#!/usr/bin/env python3
"""What the client of ``legacy-cuda bench`` adds to what it measures, beside other HTTP clients.

    bench_client.py [--streams 1,16,64] [--tokens 200] [--gap-ms 20] [--json FILE]

A stand-in server on loopback, in a process of its own, writes the time into each piece that it
sends. Delay: from there to the client having the piece in its hands, so it includes the kernel's
and the server's part, which are the same for all. CPU: processor time of the client for a piece.
The clients run in turn, each in a process of its own; one that is not installed is left out, and
that is said.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STUB = Path(__file__).parents[1] / "unit" / "openai_stub.py"
Delays = list[int]


def body(tokens: int) -> dict[str, Any]:
    return {
        "model": "stand-in",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def note(line: bytes | str, delays: Delays) -> None:
    """Read one line of a stream, as every client has to."""
    now = time.monotonic_ns()
    text = line.decode() if isinstance(line, bytes) else line
    if not text.startswith("data: {"):
        return
    choices = json.loads(text[6:])["choices"]
    if content := choices[0]["delta"].get("content"):
        delays.append(now - int(content))


def ours(url: str, streams: int, tokens: int) -> Delays:
    """The client of ``legacy-cuda bench``: it keeps what comes, and reads it when all is over."""
    from legacy_cuda.bench import drive
    from legacy_cuda.bench.client import Exchange, endpoint
    from legacy_cuda.bench.sse import Decoder

    place = endpoint(url)
    workers = [[Exchange(place, "/chat/completions", body(tokens), 60)] for _ in range(streams)]
    drive.together(workers, drive.Limits(600, 60))
    delays: Delays = []
    for (exchange,) in workers:
        decoder = Decoder()
        for arrived, data in exchange.raw.arrivals:
            for event in decoder.feed(data):
                if event.data != "[DONE]":
                    choice = json.loads(event.data)["choices"][0]
                    if content := choice["delta"].get("content"):
                        delays.append(arrived - int(content))
    return delays


def with_aiohttp(url: str, streams: int, tokens: int) -> Delays:
    import aiohttp

    delays: Delays = []

    async def one(session: Any) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=body(tokens)) as answer:
            rest = b""
            async for data in answer.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    note(line, delays)

    async def everything() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(one(session) for _ in range(streams)))

    asyncio.run(everything())
    return delays


def with_httpx(url: str, streams: int, tokens: int) -> Delays:
    import httpx

    delays: Delays = []

    async def one(client: Any) -> None:
        where = f"{url}/v1/chat/completions"
        async with client.stream("POST", where, json=body(tokens)) as answer:
            async for line in answer.aiter_lines():
                note(line, delays)

    async def everything() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=None) as client:
            await asyncio.gather(*(one(client) for _ in range(streams)))

    asyncio.run(everything())
    return delays


def _threads(one: Callable[[], None], streams: int) -> None:
    workers = [threading.Thread(target=one) for _ in range(streams)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def with_requests(url: str, streams: int, tokens: int) -> Delays:
    import requests

    delays: Delays = []

    def one() -> None:
        where = f"{url}/v1/chat/completions"
        with requests.post(where, json=body(tokens), stream=True, timeout=60) as answer:
            for line in answer.iter_lines(chunk_size=None):
                note(line, delays)

    _threads(one, streams)
    return delays


def with_urllib3(url: str, streams: int, tokens: int) -> Delays:
    import urllib3

    delays: Delays = []
    pool = urllib3.PoolManager(maxsize=streams)

    def one() -> None:
        where = f"{url}/v1/chat/completions"
        answer = pool.request("POST", where, json=body(tokens), preload_content=False)
        rest = b""
        for data in answer.read_chunked():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                note(line, delays)

    _threads(one, streams)
    return delays


CLIENTS = {
    "legacy-cuda bench": ("legacy_cuda.bench", ours),
    "aiohttp": ("aiohttp", with_aiohttp),
    "httpx": ("httpx", with_httpx),
    "urllib3, threads": ("urllib3", with_urllib3),
    "requests, threads": ("requests", with_requests),
}


def one_run(name: str, url: str, streams: int, tokens: int) -> dict[str, float]:
    """Measure in this process."""
    run = CLIENTS[name][1]
    run(url, 1, 5)  # imports and first connections
    begin = time.process_time()
    delays = run(url, streams, tokens)
    spent = time.process_time() - begin
    assert len(delays) == streams * tokens, f"{name}: {len(delays)} pieces"
    cuts = statistics.quantiles(delays, n=100)
    return {
        "delay_p50_us": statistics.median(delays) / 1e3,
        "delay_p99_us": cuts[98] / 1e3,
        "cpu_us": spent / len(delays) * 1e6,
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="1,16,64", help="at once (default 1,16,64)")
    parser.add_argument("--tokens", type=int, default=200, help="of each stream (default 200)")
    parser.add_argument("--gap-ms", type=float, default=20.0, help="between them (default 20)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, url, streams = arguments.one
        print(json.dumps(one_run(name, url, int(streams), arguments.tokens)))
        return 0
    stub = subprocess.Popen(
        [sys.executable, str(STUB), "--stamps", "--gap-ms", str(arguments.gap_ms)],
        stdout=subprocess.PIPE,
        text=True,
    )
    rows = []
    try:
        assert stub.stdout
        url = f"http://127.0.0.1:{stub.stdout.readline().strip()}"
        print(f"{'':20}{'streams':>8}{'delay p50 us':>14}{'p99 us':>10}{'CPU us/piece':>14}")
        for streams in map(int, arguments.streams.split(",")):
            for name, (module, _) in CLIENTS.items():
                if importlib.util.find_spec(module.partition(".")[0]) is None:
                    print(f"{name:20} left out: {module} is not installed")
                    continue
                command = [sys.executable, __file__, "--tokens", str(arguments.tokens)]
                done = subprocess.run(
                    [*command, "--one", name, url, str(streams)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr}")
                row = json.loads(done.stdout)
                rows.append({"client": name, "streams": streams, **row})
                print(
                    f"{name:20}{streams:>8}{row['delay_p50_us']:>14.0f}"
                    f"{row['delay_p99_us']:>10.0f}{row['cpu_us']:>14.0f}"
                )
    finally:
        stub.terminate()
        stub.wait(10)
    if arguments.json:
        document = {"schema": "legacy-cuda/bench-client/1", "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
