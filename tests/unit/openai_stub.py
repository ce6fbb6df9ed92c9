"""A stand-in for a server of the OpenAI API, on loopback: computes nothing, misbehaves as told.

    python tests/unit/openai_stub.py --gap-ms 20 --stamps

prints its port and serves until it is ended. Tests start it in a thread instead (``serving``). Its
tokens are words and single digits; the chat template costs five. With ``stamps`` each piece of text
is the time it was sent at (nanoseconds of CLOCK_MONOTONIC, which all processes share).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TEMPLATE = 5
MODEL = "stand-in"


def tokens(text: str) -> int:
    """Tokens of a text: words without digits, and digits."""
    return len(re.findall(r"\d|[^\W\d]+", text))


@dataclass
class Behaviour:
    """How the stand-in answers. ``faults`` are by number of the completion request, from 0, as
    ``fault`` is for all of them; each is one of ``FAULTS``."""

    first_ms: float = 2.0
    per_prompt_token_us: float = 0.0
    gap_ms: float = 1.0
    tokens_per_chunk: int = 1
    slots: int = 1000
    usage: bool = True
    timings: bool = False
    tokenize: bool = False
    cached: int | None = None
    stamps: bool = False
    stop_after: int | None = None
    strict: bool = False
    fault: str = ""
    faults: dict[int, str] = field(default_factory=dict)
    context: int = 4096
    props: bool = False
    cut: int = 1 << 30  # prompts are cut to so many tokens, without a word


FAULTS = (
    "503",  # refused before anything is sent
    "json-error",  # 200, but a plain JSON document with an error in it
    "html",  # 200 and a web page
    "error-event",  # an error object after three pieces
    "cut",  # the connection ends after three pieces
    "no-end",  # a proper end of the response without [DONE] and finish_reason
    "stall",  # nothing more after three pieces
    "hang",  # nothing at all
    "huge-line",  # a line that does not end
    "garbage",  # data that is no JSON
    "empty",  # [DONE] and nothing else
)


class Stub:
    """The server; ``bodies`` are the completion requests that came, ``most`` how many at once."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.running = self.most = self.dropped = 0
        self.port = 0
        self.slots = asyncio.Semaphore(behaviour.slots)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> asyncio.AbstractServer:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while request := await reader.readline():
                method, path, _ = request.decode().split()
                length = 0
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                    elif name.lower() == "authorization":
                        self.keys.append(value.strip())
                body = json.loads(await reader.readexactly(length)) if length else {}
                if not await self._answer(method, path, body, reader, writer):
                    break
        writer.close()

    async def _answer(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Answer one request; False where the connection ends with it."""
        behaviour = self.behaviour
        if path in ("/v1/chat/completions", "/v1/completions"):
            number = len(self.bodies)
            self.bodies.append(body)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                async with self.slots:
                    return await self._complete(path, number, body, reader, writer)
            except ConnectionError:
                self.dropped += 1
                return False
            finally:
                self.running -= 1
        answer: Any = None
        if path == "/v1/models":
            answer = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        elif path == "/tokenize" and behaviour.tokenize:
            answer = {"tokens": list(range(tokens(body["content"])))}
        elif path == "/props" and behaviour.props:
            answer = {
                "build_info": "b1-stand-in",
                "total_slots": behaviour.slots,
                "model_path": "/somewhere/stand-in.gguf",
                "default_generation_settings": {"n_ctx": behaviour.context},
            }
        _plain(writer, 200 if answer else 404, answer or {"error": {"message": "not here"}})
        await writer.drain()
        return True

    async def _complete(
        self,
        path: str,
        number: int,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        behaviour = self.behaviour
        fault = behaviour.faults.get(number, behaviour.fault)
        chat = path.endswith("chat/completions")
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        prompt = min(behaviour.cut, tokens(text) + (TEMPLATE if chat else 0))
        if behaviour.strict and "ignore_eos" in body:
            _plain(writer, 400, {"error": {"message": "Unrecognized argument: ignore_eos"}})
            return True
        if prompt + body["max_tokens"] > behaviour.context:
            _plain(writer, 400, {"error": {"message": "the request exceeds the context"}})
            return True
        if fault == "503":
            _plain(writer, 503, {"error": {"message": "no slot is free"}})
            return True
        if fault == "json-error":
            _plain(writer, 200, {"error": {"message": "out of memory", "code": 500}})
            return True
        if fault == "html":
            _head(writer, 200, "text/html", 15)
            writer.write(b"<h1>Hello</h1>\n")
            return True
        if fault == "hang":
            await _gone(reader)
        await asyncio.sleep(
            (behaviour.first_ms + prompt * behaviour.per_prompt_token_us / 1e3) / 1e3
        )
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        begin = time.monotonic()
        wanted = min(body["max_tokens"], behaviour.stop_after or body["max_tokens"])
        made, pieces = 0, 0
        if chat:
            _event(writer, _chunk(chat, None))
        while made < wanted and fault != "empty":
            if pieces == 3 and fault:
                if fault == "error-event":
                    _event(writer, {"error": {"message": "CUDA error", "code": 500}})
                    writer.write(b"0\r\n\r\n")
                    return True
                if fault == "cut":
                    await writer.drain()
                    return False
                if fault == "stall":
                    await _gone(reader)
                if fault == "garbage":
                    _send(writer, b"data: {not json\n\n")
                if fault == "huge-line":
                    while not writer.is_closing():
                        _send(writer, b"data: " + b"x" * (1 << 20))
                        await writer.drain()
            made = min(wanted, made + behaviour.tokens_per_chunk)
            pieces += 1
            piece = f" {time.monotonic_ns()}" if behaviour.stamps else " word"
            _event(writer, _chunk(chat, piece))
            await writer.drain()
            if made < wanted:  # on a schedule, so that delays do not add up
                due = begin + pieces * behaviour.gap_ms / 1e3
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        if fault == "no-end":
            writer.write(b"0\r\n\r\n")
            return True
        if fault != "empty":
            _event(writer, self._last(chat, prompt, made, time.monotonic() - begin, body))
        _send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _last(
        self, chat: bool, prompt: int, made: int, spent: float, body: dict[str, Any]
    ) -> dict[str, Any]:
        behaviour = self.behaviour
        last = _chunk(chat, None, "length" if made == body["max_tokens"] else "stop")
        if behaviour.usage and body.get("stream_options", {}).get("include_usage"):
            last["usage"] = {"prompt_tokens": prompt, "completion_tokens": made}
            if behaviour.cached is not None:
                last["usage"]["prompt_tokens_details"] = {"cached_tokens": behaviour.cached}
        if behaviour.timings:
            first = behaviour.first_ms + prompt * behaviour.per_prompt_token_us / 1e3
            last["timings"] = {
                "cache_n": behaviour.cached or 0,
                "prompt_n": prompt - (behaviour.cached or 0),
                "prompt_ms": first,
                "predicted_n": made,
                "predicted_ms": spent * 1e3,
            }
        return last


def _chunk(chat: bool, text: str | None, reason: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
    if not chat:
        choice["text"] = text or ""
    elif reason:
        choice["delta"] = {}
    else:
        choice["delta"] = (
            {"role": "assistant", "content": None} if text is None else {"content": text}
        )
    return {"object": "chunk", "model": MODEL, "choices": [choice]}


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    _send(writer, b"data: " + json.dumps(data).encode() + b"\n\n")


def _head(writer: asyncio.StreamWriter, status: int, kind: str, length: int) -> None:
    writer.write(
        f"HTTP/1.1 {status} Status\r\nServer: stand-in\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n\r\n".encode()
    )


def _plain(writer: asyncio.StreamWriter, status: int, answer: Any) -> None:
    data = json.dumps(answer).encode()
    _head(writer, status, "application/json", len(data))
    writer.write(data)


async def _gone(reader: asyncio.StreamReader) -> None:
    """Wait until the client goes away, then end as if the connection broke."""
    while not reader.at_eof():
        await asyncio.sleep(0.01)
    raise ConnectionResetError


@contextlib.contextmanager
def serving(behaviour: Behaviour) -> Iterator[Stub]:
    """A stand-in in a thread of its own."""
    ready = threading.Event()
    stub: Stub
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event

    async def serve() -> None:
        nonlocal stub, loop, ended
        stub, loop, ended = Stub(behaviour), asyncio.get_running_loop(), asyncio.Event()
        server = await stub.start()
        ready.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-ms", type=float, default=2.0)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--stamps", action="store_true")
    arguments = parser.parse_args()

    async def serve() -> None:
        stub = Stub(Behaviour(arguments.first_ms, gap_ms=arguments.gap_ms, stamps=arguments.stamps))
        server = await stub.start()
        print(stub.port, flush=True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    sys.exit(main())
