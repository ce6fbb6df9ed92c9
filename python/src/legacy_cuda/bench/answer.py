"""What one streamed answer says: whether it is whole, when its tokens came, how many. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from legacy_cuda.bench.client import Raw
from legacy_cuda.bench.sse import Decoder, StreamError

_MOST = 1 << 40
"""Tokens or ms: beyond it a server's number is taken for none."""

Outcome = Literal[
    "ok", "http-error", "server-error", "broken", "stalled", "timeout", "protocol", "cancelled"
]
Counted = Literal["usage", "timings", "none"]


@dataclass(frozen=True)
class Answer:
    """One request. Only an ``ok`` one has times of its own; counts are kept of any.

    ``ttft_ms``: from sending on an open connection to the first text; ``gaps_ms``: between pieces
    of text; ``latency_ms``: from sending to the last text. Tokens are the server's count, of the
    ``usage`` or the ``timings`` that it sent; None where it sent none. ``cached_tokens`` of the
    prompt were taken from a cache. ``prompt_ms`` and ``predicted_ms`` are the server's own times.
    """

    outcome: Outcome
    problem: str = ""
    status: int = 0
    ttft_ms: float | None = None
    latency_ms: float | None = None
    gaps_ms: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    counted_by: Counted = "none"
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    finish: str = ""

    @property
    def ok(self) -> bool:
        """Whether it counts."""
        return self.outcome == "ok"

    def record(self) -> dict[str, Any]:
        """As it is kept in a run file: nothing that says nothing."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", [])}


class _Failed(Exception):
    def __init__(self, outcome: Outcome, problem: str) -> None:
        self.outcome: Outcome = outcome
        super().__init__(problem)


@dataclass
class _Stream:
    """What was read of a stream so far."""

    texts: list[int] = field(default_factory=list)
    usage: Any = None
    timings: Any = None
    finish: str = ""
    done: bool = False


def read(raw: Raw) -> Answer:
    """The answer in what came. Never raises: what is wrong with it is its outcome."""
    stream = _Stream()
    try:
        _check_head(raw)
        _walk(raw, stream)
        _check_end(raw, stream)
    except _Failed as failed:
        return Answer(failed.outcome, str(failed)[:500], raw.status, **_counts(stream))
    first, last = stream.texts[0], stream.texts[-1]
    gaps = [
        round((later - earlier) / 1e6, 3)
        for earlier, later in zip(stream.texts, stream.texts[1:], strict=False)
    ]
    return Answer(
        "ok",
        status=raw.status,
        ttft_ms=round((first - raw.sent) / 1e6, 3),
        latency_ms=round((last - raw.sent) / 1e6, 3),
        gaps_ms=gaps,
        finish=stream.finish,
        **_counts(stream),
    )


def _check_head(raw: Raw) -> None:
    if raw.ending == "cancelled":
        raise _Failed("cancelled", "")
    if raw.ending == "no-connection":
        raise _Failed("broken", f"no connection: {raw.problem}")
    if raw.status and raw.status != 200:
        raise _Failed("http-error", f"status {raw.status}: {_message(raw)}")
    if raw.status and raw.content_type != "text/event-stream" and raw.ending == "end":
        if raw.content_type == "application/json" and (message := _message(raw)):
            raise _Failed("server-error", message)
        raise _Failed("protocol", f"no event stream: {raw.content_type or 'no type'}")


def _message(raw: Raw) -> str:
    """The error in an answer that is one JSON document, or its beginning."""
    text = b"".join(data for _, data in raw.arrivals)[:4096]
    try:
        return _error(json.loads(text)) or text.decode("utf-8", "replace")[:200]
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace")[:200]


def _error(data: Any) -> str:
    """The message of an error object, in the forms that servers give it; empty if it is none."""
    if not isinstance(data, dict):
        return ""
    found = data.get("error") or (data if data.get("object") == "error" else None)
    if isinstance(found, dict):
        return str(found.get("message") or found)
    return str(found) if found else ""


def _walk(raw: Raw, stream: _Stream) -> None:
    decoder = Decoder()
    for time, data in raw.arrivals:
        try:
            events = decoder.feed(data)
        except StreamError as error:
            raise _Failed("protocol", str(error)) from error
        for event in events:
            if event.data == "[DONE]":
                stream.done = True
            elif not stream.done:
                _take(event.kind, event.data, time, stream)


def _take(kind: str, text: str, time: int, stream: _Stream) -> None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if kind == "error":
            raise _Failed("server-error", text) from error
        raise _Failed("protocol", f"an event is no JSON: {text[:80]!r}") from error
    if message := _error(data) or (text if kind == "error" else ""):
        raise _Failed("server-error", message)
    if not isinstance(data, dict):
        raise _Failed("protocol", f"an event is no object: {text[:80]!r}")
    stream.usage = data.get("usage") or stream.usage
    stream.timings = data.get("timings") or stream.timings
    choices = data.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if not isinstance(choice, dict):
            continue
        if _has_text(choice):
            stream.texts.append(time)
        stream.finish = str(choice.get("finish_reason") or stream.finish)


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a piece carries output: text, reasoning, or a part of a call."""
    delta = choice.get("delta")
    piece = delta if isinstance(delta, dict) else choice
    names = ("content", "text", "reasoning_content", "reasoning", "tool_calls", "refusal")
    return any(piece.get(name) for name in names)


def _check_end(raw: Raw, stream: _Stream) -> None:
    whole = stream.done or bool(stream.finish)
    if not whole or raw.ending in ("timeout", "too-long"):
        after = f"after {len(stream.texts)} pieces"
        if raw.ending == "timeout":
            raise _Failed("timeout", f"not at its end in time, {after}")
        if raw.ending == "too-long":
            raise _Failed("protocol", raw.problem)
        if raw.ending == "stalled":
            raise _Failed("stalled", f"{raw.problem} {after}")
        if raw.ending == "end":
            raise _Failed("broken", f"the stream ended without [DONE] or a finish_reason {after}")
        raise _Failed("broken", f"{raw.problem} {after}")
    if not stream.texts:
        raise _Failed("protocol", "an answer without text")


def _counts(stream: _Stream) -> dict[str, Any]:
    """Tokens and times as the server counts them."""
    found: dict[str, Any] = {}
    usage = stream.usage if isinstance(stream.usage, dict) else {}
    timings = stream.timings if isinstance(stream.timings, dict) else {}
    details = usage.get("prompt_tokens_details")
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else None
    if prompt is not None and completion is not None:
        found["counted_by"] = "usage"
    elif (new := _count(timings, "prompt_n")) is not None:
        completion = _count(timings, "predicted_n")
        prompt = new + (_count(timings, "cache_n") or 0)
        if completion is None:
            return found
        found["counted_by"] = "timings"
    else:
        return found
    if cached is None:
        cached = _count(timings, "cache_n")
    found.update(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    for name in ("prompt_ms", "predicted_ms"):
        value = timings.get(name)
        if isinstance(value, (int, float)) and 0 < value < _MOST:
            found[name] = round(float(value), 3)
    return found


def _count(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
    return value if good else None
