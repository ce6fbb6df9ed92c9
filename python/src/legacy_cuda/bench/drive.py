"""Sending the requests of a run: clock, threads, limits. What comes back is judged elsewhere."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from legacy_cuda.bench import answer, client, prompts, server
from legacy_cuda.bench.answer import Answer
from legacy_cuda.bench.client import Endpoint, Exchange
from legacy_cuda.bench.figures import Point, Repeat
from legacy_cuda.bench.prompts import Length
from legacy_cuda.bench.runfile import Run
from legacy_cuda.errors import SurroundingsError, UserError

WARM_UP_TOKENS = 8
_WATCH_S = 0.05
PATHS = {"chat": "/chat/completions", "completions": "/completions"}

Tell = Callable[[str, int, int], None]


@dataclass
class Limits:
    """Seconds. ``request``: for a whole answer; ``stall``: without a byte; ``until``: the time (of
    ``time.monotonic``) when the session is over, or None."""

    request: float
    stall: float
    until: float | None = None

    @property
    def over(self) -> bool:
        """Whether the time of the session is used up."""
        return self.until is not None and time.monotonic() >= self.until


def now() -> str:
    """The time as it is recorded."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def together(workers: Sequence[Sequence[Exchange]], limits: Limits) -> None:
    """Perform the exchanges: those of a worker one after another, the workers at once.

    Returns when all are over. Where the session's time ends or this is interrupted, what is under
    way is cut off and what is left is not sent; the interruption goes on then.
    """
    start = threading.Barrier(len(workers))
    # not Thread.join: once interrupted, it takes a running thread for ended (CPython before 3.13)
    ended = [threading.Event() for _ in workers]

    def work(mine: Sequence[Exchange], over: threading.Event) -> None:
        try:
            start.wait()
            for exchange in mine:
                exchange.perform()
        except threading.BrokenBarrierError:
            pass  # interrupted before it began
        finally:
            over.set()

    threads = [
        threading.Thread(target=work, args=pair, daemon=True)
        for pair in zip(workers, ended, strict=True)
    ]
    every = [exchange for mine in workers for exchange in mine]
    try:
        for thread in threads:
            thread.start()
        for over in ended:
            while not over.wait(_WATCH_S):
                _watch(every, limits)
    except BaseException:
        start.abort()
        for exchange in every:
            exchange.abort("cancelled")
        for thread, over in zip(threads, ended, strict=True):
            if thread.ident is not None:
                over.wait(limits.stall)
        raise


def _watch(exchanges: Sequence[Exchange], limits: Limits) -> None:
    """Cut off what takes too long."""
    over = limits.over
    late = time.monotonic_ns() - int(limits.request * 1e9)
    for exchange in exchanges:
        if over:
            exchange.abort("cancelled")
        elif 0 < exchange.raw.sent < late:
            exchange.abort("timeout")


def body(settings: dict[str, Any], text: str, generate: int) -> dict[str, Any]:
    """The request for so many tokens."""
    asked: dict[str, Any] = {"model": settings["model"]}
    if settings["api"] == "chat":
        asked["messages"] = [{"role": "user", "content": text}]
    else:
        asked["prompt"] = text
    asked.update(
        max_tokens=generate, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    if settings["ignore_eos"]:
        asked["ignore_eos"] = True
    return {**asked, **settings["extra"]}


def find_length(place: Endpoint, settings: dict[str, Any], limits: Limits) -> Length:
    """How long prompts are in tokens of this server, from two small ones.

    Raises:
        SurroundingsError: it does not answer them.
        UserError: it refuses them.
    """
    counts: list[int] = []
    for words in (prompts.SMALL, prompts.LARGE):
        text = prompts.text(secrets.token_hex(8), words)
        exchange = Exchange(place, PATHS[settings["api"]], body(settings, text, 1), limits.stall)
        together([[exchange]], limits)
        got = answer.read(exchange.raw)
        if not got.ok and got.prompt_tokens is None:  # one token may well be no text
            raise _first_failed(got, place, settings)
        count, source = got.prompt_tokens, str(got.counted_by)
        if count is None:
            count, source = _tokenized(place, settings, text), "tokenize"
        if count is None:
            return prompts.UNKNOWN
        counts.append(count)
    found = prompts.length(counts[0], counts[1], source)
    if found is None:
        raise SurroundingsError(
            "the server's token counts make no sense",
            f"{prompts.SMALL} words are {counts[0]} tokens, {prompts.LARGE} words {counts[1]}",
        )
    return found


def _tokenized(place: Endpoint, settings: dict[str, Any], text: str) -> int | None:
    """Tokens by llama-server's and vLLM's ``/tokenize``, without the chat template."""
    asked = {"content": text, "prompt": text, "model": settings["model"]}
    try:
        status, data = client.ask(place, "POST", "/tokenize", asked)
    except OSError:
        return None
    tokens = data.get("tokens") if status == 200 and isinstance(data, dict) else None
    return len(tokens) if isinstance(tokens, list) else None


def _first_failed(got: Answer, place: Endpoint, settings: dict[str, Any]) -> UserError:
    if got.outcome == "cancelled":
        return SurroundingsError(
            "the time is over before anything was measured", next_step="give a longer --time-limit"
        )
    if got.outcome == "broken":
        return server.unreachable(place, got.problem)
    if got.outcome == "http-error" and 400 <= got.status < 500:
        steps = ["--api completions" if settings["api"] == "chat" else "--api chat"]
        if settings["ignore_eos"] and "ignore_eos" in got.problem:
            steps.insert(0, "--no-ignore-eos")
        return UserError(
            "the server refuses the requests of a benchmark",
            got.problem,
            f"check the address and the model; try {', or '.join(steps)}",
        )
    return SurroundingsError("the first request failed", f"{got.outcome}: {got.problem}")


@dataclass
class Session:
    """One start of the program on a run. ``kept`` is called when there is something to keep."""

    run: Run
    place: Endpoint
    limits: Limits
    kept: Callable[[], None]
    tell: Tell
    salt: str = field(default_factory=lambda: secrets.token_hex(8))
    failing: set[Point] = field(default_factory=set)
    _warm: set[Point] = field(default_factory=set)

    def go(self) -> str:
        """Measure what is missing, and say how it ended: ``complete``, ``failures`` (a point at
        which no request succeeded was given up), ``time limit`` or ``unreachable``; an interruption
        goes through, with everything kept."""
        record = {"started": now(), "ended": "", "how": "interrupted"}
        self.run.sessions.append(record)
        try:
            record["how"] = self._all()
        finally:
            record["ended"] = now()
            self.kept()
        return record["how"]

    def _all(self) -> str:
        while left := [item for item in self.run.missing() if item[0] not in self.failing]:
            if self.limits.over:
                return "time limit"
            point, number = left[0]
            total = len(self.run.points) * self.run.settings["repeat"]
            done = total - len(self.run.missing())
            if point not in self._warm:
                self.tell(f"{point}: warming up", done, total)
                self._warm_up(point)
                if self.limits.over:
                    return "time limit"
            self.tell(f"{point}: round {number + 1}", done, total)
            repeat = self._round(point, number)
            self.kept()
            if repeat.unfinished:
                if self.limits.over:
                    return "time limit"
                try:
                    client.ask(self.place, "GET", f"{self.place.base}/models")
                except OSError:
                    return "unreachable"
                self.failing.add(point)
        return "failures" if self.failing else "complete"

    def _exchanges(
        self, point: Point, label: str, generate: int, each: int
    ) -> list[list[Exchange]]:
        settings = self.run.settings
        words = self.run.prompts["words"][str(point.prompt)]
        path = PATHS[settings["api"]]

        def one(worker: int, turn: int) -> Exchange:
            seed = f"{self.salt}/{point}/{label}/{worker}/{turn}"
            if settings["same_prompt"]:
                seed = str(point.prompt)
            asked = body(settings, prompts.text(seed, words), generate)
            return Exchange(self.place, path, asked, self.limits.stall)

        return [[one(w, t) for t in range(each)] for w in range(point.concurrency)]

    def _warm_up(self, point: Point) -> None:
        """Requests that are not measured; they also show how long the prompts really are."""
        tokens = min(point.generate, WARM_UP_TOKENS)
        for number in range(self.run.settings["warmup"]):
            workers = self._exchanges(point, f"warm-up {number}", tokens, 1)
            together(workers, self.limits)
            got = [answer.read(exchange.raw) for (exchange,) in workers]
            self._correct(point, [one.prompt_tokens for one in got if one.prompt_tokens])
        self._warm.add(point)

    def _correct(self, point: Point, counts: Sequence[int]) -> None:
        """Other words for a prompt's length, where it is more than a hundredth off. Where it is
        more than a tenth off, no tokenizer did that: the server cut the prompt."""
        kept = self.run.prompts
        key = str(point.prompt)
        if not counts or kept["counted_by"] not in ("usage", "timings") or key in kept["checked"]:
            return
        mean = sum(counts) / len(counts)
        off = abs(mean - point.prompt)
        if max(1.0, point.prompt / 100) < off < max(10.0, point.prompt / 10):
            before = Length(kept["fixed"], kept["per_word"], kept["counted_by"])
            after = prompts.corrected(before, kept["words"][key], mean)
            kept["words"][key] = max(1, after.words(point.prompt))
        kept["checked"].append(key)

    def _round(self, point: Point, number: int) -> Repeat:
        workers = self._exchanges(point, str(number), point.generate, self.run.settings["requests"])
        started, cpu = now(), time.process_time()
        unfinished = ""
        try:
            together(workers, self.limits)
        except BaseException:
            unfinished = "interrupted"
            raise
        finally:
            cpu = time.process_time() - cpu
            raws = [exchange.raw for mine in workers for exchange in mine]
            times = [(raw.sent, raw.ended) for raw in raws if raw.sent]
            seconds = (max(e for _, e in times) - min(s for s, _ in times)) / 1e9 if times else 0.0
            answers = tuple(answer.read(raw) for raw in raws)
            if any(got.outcome == "cancelled" for got in answers):
                unfinished = unfinished or "time limit"
            elif not any(got.ok for got in answers):
                unfinished = "no request succeeded"
            repeat = Repeat(
                point,
                number,
                started,
                round(seconds, 6),
                round(cpu / seconds, 4) if seconds > 0 else 0.0,
                answers,
                unfinished,
            )
            self.run.repeats.append(repeat)
        return repeat


def first_prompts(found: Length, points: Sequence[Point], api: str) -> dict[str, Any]:
    """What a run records of its prompts: their lengths in words, before any correction.

    Raises:
        UserError: the chat template alone is longer than a prompt.
    """
    words = {str(point.prompt): found.words(point.prompt) for point in points}
    short = [int(length) for length, count in words.items() if count < 1]
    if short:
        raise UserError(
            f"a prompt of {min(short)} tokens cannot be made",
            f"what the server adds to every prompt is {found.fixed:.0f} tokens",
            "ask for longer prompts"
            + (", or use --api completions, which has no template" if api == "chat" else ""),
        )
    return {
        "text": "random words of four letters",
        **asdict(found),
        "words": words,
        "checked": [],
    }
