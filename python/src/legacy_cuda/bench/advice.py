"""What the figures of a run suggest, and what is wrong with them. Nothing that they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from legacy_cuda.bench.compare import ratio
from legacy_cuda.bench.figures import Summary, with_margin

GROWTH = 0.05
"""Five per cent more throughput is not worth the waiting of more requests at once."""
CLIENT_BUSY = 0.5
"""Of one processor. With half of it used up, this program may hold up what it measures."""
NOISY = 0.10
CACHED = 0.05
BURSTS = 0.2
LENGTH = 0.05
SEVERAL = 1.2
_FEW = 10
_SPEED = "output_tokens_per_s"


def suggestions(summaries: Sequence[Summary], server: Mapping[str, Any]) -> list[str]:
    """Sentences on settings, each with the figures that support it."""
    said = []
    shapes = sorted(summaries, key=lambda summary: summary.point)
    for (prompt, generate), group in groupby(shapes, key=lambda summary: summary.point[:2]):
        if found := _saturation([summary for summary in group if _SPEED in summary.metrics]):
            said.append(f"Prompts of {prompt} tokens, answers of {generate}: {found}")
    most = max((summary.point.concurrency for summary in summaries), default=0)
    slots = server.get("slots")
    if isinstance(slots, int) and most > slots:
        said.append(
            f"The server computes {slots} request{'s' if slots > 1 else ''} at once, as it says. "
            "Above that requests wait, and TTFT holds the wait."
        )
    return said


def _saturation(group: Sequence[Summary]) -> str:
    """The least concurrency above which throughput does not grow, where the rounds can tell."""
    if len(group) < 2:
        return ""
    for at, summary in enumerate(group[:-1]):
        highs = [
            ratio(summary.metrics[_SPEED], other.metrics[_SPEED])[2] for other in group[at + 1 :]
        ]
        if all(high is not None and high < 1 + GROWTH for high in highs):
            other = group[at + 1]
            return (
                f"{summary.point.concurrency} at once are enough. Throughput is {_speed(summary)} "
                f"there and {_speed(other)} at {other.point.concurrency}."
            )
    before, last = group[-2:]
    found, low, _ = ratio(before.metrics[_SPEED], last.metrics[_SPEED])
    if low is not None and low > 1 and found > 1 + GROWTH:
        return (
            f"throughput still grows at {last.point.concurrency} at once, {_speed(last)} after "
            f"{_speed(before)} at {before.point.concurrency}: measure more."
        )
    return ""


def _speed(summary: Summary) -> str:
    return f"{with_margin(summary.metrics[_SPEED])} tokens/s"


def warnings(summaries: Sequence[Summary], kept_prompts: Mapping[str, Any]) -> list[str]:
    """Sentences on what makes figures less than they seem, each with its points."""
    said = []
    for summary in summaries:
        if summary.not_counted:
            bad = {name: count for name, count in summary.outcomes.items() if name != "ok"}
            counts = ", ".join(f"{count} {name}" for name, count in bad.items())
            why = f": {summary.problems[0]}" if summary.problems else ""
            said.append(f"{summary.point}: {counts}, not in the figures{why}")
    kinds = {
        "the server sent no token counts, so there are no figures per token": [
            s for s in summaries if "none" in s.counted_by
        ],
        "tokens are counted by the server's timings, as it sent no usage": [
            s for s in summaries if "timings" in s.counted_by
        ],
        "answers ended before the tokens asked for": [s for s in summaries if s.short],
        "prompts were not as long as asked for; some servers cut them to their context": [
            s
            for s in summaries
            if s.prompt_tokens
            and max(abs(n - s.point.prompt) for n in s.prompt_tokens)
            > max(_FEW, LENGTH * s.point.prompt)
        ],
        "a part of the prompts came from a cache of the server": [
            s
            for s in summaries
            if s.cached_tokens is not None and s.cached_tokens > CACHED * s.point.prompt
        ],
        "pieces hold several tokens, so ITL is not the time of one": [
            s for s in summaries if s.tokens_per_piece and s.tokens_per_piece > SEVERAL
        ],
        "pieces came in bursts, held up on the way or by a busy machine: ITL and decode are not "
        "the server's": [s for s in summaries if s.bursts > BURSTS],
        "this program took more than half a processor: figures may be its own limit": [
            s for s in summaries if s.client_cpu > CLIENT_BUSY
        ],
        "rounds differ by more than a tenth: more of them would say more (--repeat)": [
            s for s in summaries if _noisy(s)
        ],
    }
    for text, found in kinds.items():
        if found:
            every = len(found) == len(summaries) > 1
            points = "all points" if every else ", ".join(str(s.point) for s in found)
            said.append(f"{text} ({points})")
    if kept_prompts.get("counted_by") == "none":
        said.append("lengths of prompts are not known: a word was taken for a token")
    if kept_prompts.get("counted_by") == "tokenize":
        said.append("lengths of prompts are /tokenize's, without the chat template")
    return said


def _noisy(summary: Summary) -> bool:
    found = summary.metrics.get(_SPEED) or summary.metrics.get("latency_ms")
    return bool(found and found.margin and found.margin > NOISY * found.mean)
