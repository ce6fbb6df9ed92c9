"""A tiny model behind ``vllm serve``: an OpenAI client, streaming, mixed load, memory watched.

    python served.py FOLDER --seconds 120 --output FILE --log FILE [-- SERVER'S OPTIONS]

FOLDER is one that ``models.py`` made. Answers are compared with ``expected.json``. Under load,
requests of all kinds come and go, some broken off by the client; every five seconds the
anonymous memory of the server's processes is read, and theirs on the GPU. SIGTERM ends the
load before its time. Nothing is asked of a hub, and the server sends no statistics of its use.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any


def words(tokens: list[int]) -> str:
    return " ".join({0: "<pad>", 1: "<s>", 2: "</s>"}.get(token, f"w{token}") for token in tokens)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def processes(root: int) -> list[int]:
    """A process and all below it."""
    found, at = [root], 0
    while at < len(found):
        for path in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += [int(text) for text in path.read_text().split()]
            except OSError:
                continue
        at += 1
    return found


def resident(root: int) -> dict[str, int]:
    """KiB of anonymous memory of a process and those below it, by name of process. Pages of files
    are left out: whether these are private depends on who else has the same libraries loaded."""
    found: dict[str, int] = {}
    for pid in processes(root):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    found[name] = found.get(name, 0) + int(line.split()[1])
        except OSError:
            continue
    return found


def on_the_gpu(root: int) -> tuple[int, int]:
    """MiB on the GPU that a process and those below it have in use, and that all have; 0 where
    nvidia-smi is not, or does not tell, as of processes that it shows under a host's numbers."""

    def asked(*words: str) -> list[str]:
        command = ["nvidia-smi", *words, "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return []
        return done.stdout.splitlines() if done.returncode == 0 else []

    def mib(text: str) -> int:  # "[N/A]" where it does not know
        return int(text) if text.strip().isdigit() else 0

    own = set(processes(root))
    rows = [row.split(",") for row in asked("--query-compute-apps=pid,used_memory")]
    everyone = asked("--query-gpu=memory.used")
    return (
        sum(mib(used) for pid, used in rows if mib(pid) in own),
        mib(everyone[0]) if everyone else 0,
    )


def wait(port: int, server: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
    end = time.time() + seconds
    while time.time() < end:
        if server.poll() is not None:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise SystemExit(f"the server ended with {server.returncode}:\n{last}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"no answer from the server in {seconds:.0f} s")


class Client:
    """Requests to the server, each compared with what is expected where that is known."""

    def __init__(self, port: int, rows: list[dict[str, Any]]) -> None:
        from openai import OpenAI

        self.api = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
        self.rows = rows
        self.model = self.api.models.list().data[0].id

    def ask(self, row: dict[str, Any], length: int, stream: bool) -> bool:
        """A completion of ``length`` tokens, greedy; whether it is what transformers said."""
        settings = {
            "model": self.model,
            "prompt": row["prompt"],
            "max_tokens": length,
            "temperature": 0,
            "extra_body": {"ignore_eos": True, "add_special_tokens": False},
        }
        if stream:
            text = "".join(
                part.choices[0].text
                for part in self.api.completions.create(**settings, stream=True)
                if part.choices
            )
        else:
            text = self.api.completions.create(**settings).choices[0].text
        wanted = [f"w{token}" for token in row["tokens"][:length] if token > 2]
        return text.split() == wanted

    def chat(self, row: dict[str, Any], length: int, stream: bool) -> str:
        asked = [{"role": "user", "content": words(row["prompt"][1:])}]
        settings = {"model": self.model, "messages": asked, "max_tokens": length, "temperature": 0}
        if not stream:
            return self.api.chat.completions.create(**settings).choices[0].message.content or ""
        parts = self.api.chat.completions.create(**settings, stream=True)
        return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)

    def sampled(self, row: dict[str, Any], length: int) -> None:
        self.api.completions.create(
            model=self.model, prompt=row["prompt"], max_tokens=length, temperature=0.9, top_p=0.8,
            n=2, logprobs=3, frequency_penalty=0.3, extra_body={"top_k": 20, "min_p": 0.01},
        )  # fmt: skip

    def broken_off(self, row: dict[str, Any]) -> None:
        parts = self.api.completions.create(
            model=self.model, prompt=row["prompt"], max_tokens=200, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        for number, _ in enumerate(parts):
            if number == 5:
                break
        parts.close()


def load(
    client: Client, seconds: float, root: int, enough: threading.Event, tell: Any
) -> dict[str, Any]:
    """Eight clients at once, for so long or until it is enough; what they did, and memory over
    time."""
    draw, end = random.Random(5), time.time() + seconds
    count = {"greedy": 0, "streamed": 0, "chat": 0, "sampled": 0, "broken off": 0}
    wrong = 0
    memory: list[tuple[float, dict[str, int], int, int]] = []
    started = time.time()

    def found() -> dict[str, Any]:
        named = {"memory (s, anonymous KiB by process; on the GPU MiB, of all MiB)": memory}
        passed = {"seconds": round(time.time() - started, 1), "asked for": seconds}
        return {**passed, "requests": count, "not as expected": wrong, **named}

    def one(kind: str, at: int, length: int) -> bool:
        row = client.rows[at]
        if kind in ("greedy", "streamed"):
            return client.ask(row, length, kind == "streamed")
        if kind == "chat":
            client.chat(row, length, bool(length % 2))
        elif kind == "sampled":
            client.sampled(row, length)
        else:
            client.broken_off(row)
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running: dict[Any, str] = {}
        while running or not enough.is_set():
            while len(running) < 8 and not enough.is_set():
                kind = draw.choice(list(count))
                at, length = draw.randrange(len(client.rows)), draw.randint(1, 200)
                running[pool.submit(one, kind, at, length)] = kind
            done, _ = concurrent.futures.wait(
                running, timeout=1, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for item in done:
                count[running.pop(item)] += 1
                wrong += not item.result()
            if not memory or time.time() - started - memory[-1][0] >= 5:
                elapsed = round(time.time() - started, 1)
                memory.append((elapsed, resident(root), *on_the_gpu(root)))
                tell(found())
            if time.time() > end:
                enough.set()
    return found()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--start", type=float, default=240, help="seconds for the server to start")
    parser.add_argument(
        "--without-gpu", action="store_true", help="answers are made up: without_gpu.py"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    own, mark, others = sys.argv[1:], "--", []
    if mark in own:
        own, others = own[: own.index(mark)], own[own.index(mark) + 1 :]
    options = parser.parse_args(own)
    rows = json.loads((options.folder / "expected.json").read_text())["rows"]
    port = free_port()
    program = ["-m", "vllm.entrypoints.cli.main"]
    if options.without_gpu:
        program = [str(Path(__file__).with_name("without_gpu.py"))]
        others = ["--worker-cls", "made_up.Worker", *others]
    command = [
        *(sys.executable, *program, "serve", str(options.folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"),
        *("--max-num-batched-tokens", "256", "--max-num-seqs", "16"),
        *(
            "--gpu-memory-utilization",
            "0.05",
            "--kv-cache-memory-bytes",
            str(1 << 30),
            *others,
        ),
    ]
    document: dict[str, Any] = {"command": command[1:]}

    def tell(found: dict[str, Any]) -> None:
        options.output.write_text(json.dumps({**document, "load": found}, indent=1))

    started, enough = time.time(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    with options.log.open("wb") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait(port, server, options.start, options.log)
        document["seconds to start"] = round(time.time() - started, 1)
        client = Client(port, rows)
        document["equal"] = [client.ask(row, 256, False) for row in rows]
        document["streamed"] = [client.ask(row, 256, True) for row in rows[:4]]
        plain, streamed = (client.chat(rows[3], 40, stream) for stream in (False, True))
        document["chat"] = {"words": len(plain.split()), "same streamed": plain == streamed}
        tell({})
        document["load"] = load(client, options.seconds, server.pid, enough, tell)
        document["alive"] = server.poll() is None
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, kind)
                server.wait(20)
                break
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
    good = (
        all(document["equal"]) and all(document["streamed"]) and document["chat"]["same streamed"]
    )
    document["good"] = bool(good and document["alive"] and not document["load"]["not as expected"])
    options.output.write_text(json.dumps(document, indent=1))
    return 0 if document["good"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
