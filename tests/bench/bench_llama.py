#!/usr/bin/env python3
"""``legacy-cuda bench`` beside llama-bench and the server's own clock, on one model.

    bench_llama.py BIN MODEL.gguf [--rounds 5] [--prompt 256] [--generate 32] [--threads 1]
                   [--extra JSON] [--json FILE]

BIN is the folder with llama-server and llama-bench. They take turns, round by round, so that other
work on the machine meets both. llama-bench computes in its own process: a prompt without a chat
template, then tokens on an empty context. ``legacy-cuda bench`` asks llama-server for the prompt
and, in other requests, for the tokens after a short prompt; the server's own times are of the same
requests. Needs nothing but those programs; exit code 1 if a ratio to the server's clock is further
from 1 than ``--least`` per cent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORT = 32


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, folder: Path) -> Iterator[str]:
    """llama-server on a free port of loopback."""
    from legacy_cuda.bench import client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(arguments.bin / "llama-server"), "--model", str(arguments.model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--parallel", "1"]
    command += ["--threads", str(arguments.threads), "--ctx-size", "2048"]
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    place = client.endpoint(f"127.0.0.1:{port}")
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            with contextlib.suppress(OSError):
                if client.ask(place, "GET", "/health", None, 1)[0] == 200:
                    break
            time.sleep(0.1)
        yield place.url
    finally:
        process.terminate()
        process.wait(30)


def llama_bench(arguments: argparse.Namespace) -> tuple[float, float]:
    """Tokens a second of the prompt and of the answer, by llama-bench."""
    command = [str(arguments.bin / "llama-bench"), "-m", str(arguments.model), "-o", "json"]
    command += ["-r", "1", "-t", str(arguments.threads)]
    command += ["-p", str(arguments.prompt), "-n", str(arguments.generate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    speeds = {row["n_gen"] > 0: row["avg_ts"] for row in json.loads(done.stdout)}
    return speeds[False], speeds[True]


def ours(url: str, arguments: argparse.Namespace, path: Path, number: int) -> list[dict[str, Any]]:
    """One more round by ``legacy-cuda bench run``: the metrics of the short and the long prompt."""
    command = [sys.executable, "-m", "legacy_cuda", "bench", "run", url, "--json"]
    command += ["--prompt", f"{SHORT},{arguments.prompt}", "--generate", str(arguments.generate)]
    command += ["--concurrency", "1", "--requests", "1", "--repeat", str(number + 1)]
    command += ["--extra", arguments.extra, "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    points = json.loads(done.stdout)["points"]
    return [
        {name: metric["rounds"][-1] for name, metric in point["metrics"].items()}
        for point in points
    ]


def main() -> int:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--extra", default="{}", help="as of legacy-cuda bench run")
    parser.add_argument("--least", type=float, default=10.0, help="per cent (default 10)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    rows: dict[str, list[float]] = {
        f"{what} over {peer}": []
        for peer in ("llama-bench", "the server's clock")
        for what in ("prefill", "decode")
    }
    with tempfile.TemporaryDirectory() as name, serving(arguments, Path(name)) as url:
        for number in range(arguments.rounds):
            prefill, decode = llama_bench(arguments)
            short, long = ours(url, arguments, Path(name, "run.json"), number)
            pairs = (
                ("prefill over llama-bench", long["prefill_tokens_per_s"] / prefill),
                ("decode over llama-bench", short["decode_tokens_per_s"] / decode),
                (
                    "prefill over the server's clock",
                    long["prefill_tokens_per_s"] / long["server_prefill_tokens_per_s"],
                ),
                (
                    "decode over the server's clock",
                    short["decode_tokens_per_s"] / short["server_decode_tokens_per_s"],
                ),
            )
            for row, ratio in pairs:
                rows[row].append(ratio)
            print(
                f"round {number + 1}: llama-bench pp {prefill:.1f} tg {decode:.2f}, "
                f"ours pp {long['prefill_tokens_per_s']:.1f} "
                f"tg {short['decode_tokens_per_s']:.2f} tokens/s",
                flush=True,
            )
    print(f"{'ratio':34}{'median':>8}{'least':>8}{'most':>8}")
    for row, ratios in rows.items():
        print(f"{row:34}{statistics.median(ratios):>8.3f}{min(ratios):>8.3f}{max(ratios):>8.3f}")
    if arguments.json:
        document = {"schema": "legacy-cuda/bench-llama/1", "ratios": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    off = [
        row
        for row, ratios in rows.items()
        if "clock" in row and abs(statistics.median(ratios) - 1) > arguments.least / 100
    ]
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
