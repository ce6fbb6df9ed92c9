"""Figures of a benchmark: what an answer says, statistics, comparisons, advice, the page."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from test_report import Page

from legacy_cuda import catalog
from legacy_cuda.bench import advice, answer, compare, figures, page, prompts, runfile
from legacy_cuda.bench.answer import Answer
from legacy_cuda.bench.client import Raw
from legacy_cuda.bench.figures import Point, Repeat

MS = 1_000_000
POINT = Point(100, 11, 1)


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def piece(text: str | None = "x", reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}], **more}


def raw(*arrivals: tuple[float, bytes], **more: Any) -> Raw:
    """An answer that was sent at 10 ms; arrivals in ms."""
    found = Raw("end", "", 200, "text/event-stream", 10 * MS, 0)
    found.arrivals = [(round(at * MS), data) for at, data in arrivals]
    for name, value in more.items():
        setattr(found, name, value)
    return found


# -------------------------------------------------------------------------------- answers


def test_times_of_an_answer() -> None:
    got = answer.read(
        raw(
            (15, event(piece(None))),
            (30, event(piece("a"))),
            (35, event(piece(""))),
            (40, event(piece("b")) + event(piece("c"))),
            (60, event(piece("d"))),
            (
                61,
                event(piece(None, "length"))
                + event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}),
            ),
            (70, event(b"[DONE]")),
        )
    )
    assert (got.outcome, got.ttft_ms, got.latency_ms) == ("ok", 20.0, 50.0)
    assert got.gaps_ms == [10.0, 0.0, 20.0]
    assert (got.prompt_tokens, got.completion_tokens, got.counted_by) == (7, 5, "usage")
    assert (got.cached_tokens, got.finish) == (None, "length")


def test_counts_are_usages_or_else_the_timings_or_none() -> None:
    timings = {"prompt_n": 5, "cache_n": 2, "prompt_ms": 8.0, "predicted_n": 3, "predicted_ms": 9.0}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }

    def read(**more: Any) -> Answer:
        return answer.read(raw((11, event(piece("a", "stop", **more)))))

    got = read(usage=usage, timings=timings)
    assert (got.prompt_tokens, got.completion_tokens, got.cached_tokens) == (9, 4, 1)
    assert (got.prompt_ms, got.predicted_ms, got.counted_by) == (8.0, 9.0, "usage")
    got = read(timings=timings)
    assert (got.prompt_tokens, got.completion_tokens, got.cached_tokens) == (7, 3, 2)
    assert got.counted_by == "timings"
    for more in (
        {},
        {"usage": {"prompt_tokens": "9", "completion_tokens": 4}},
        {"usage": {"prompt_tokens": -1, "completion_tokens": 4}},
        {"usage": [1]},
        {"usage": {"prompt_tokens": 10**400, "completion_tokens": 4}},
        {"timings": {"prompt_n": 5}},
    ):
        got = read(**more)
        assert (got.outcome, got.counted_by, got.prompt_tokens) == ("ok", "none", None)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"delta": {"reasoning_content": "a"}},
        {"delta": {"reasoning": "a"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
    ],
)
def test_what_counts_as_text(choice: dict[str, Any]) -> None:
    got = answer.read(raw((12, event({"choices": [choice]})), (13, event(b"[DONE]"))))
    assert (got.outcome, got.ttft_ms) == ("ok", 2.0)


GOOD = event(piece("a")), event(piece("b", "stop"))


@pytest.mark.parametrize(
    ("outcome", "found"),
    [
        ("http-error", raw((11, b'{"error": {"message": "busy"}}'), status=503)),
        ("http-error", raw(status=301)),
        ("server-error", raw((11, b'{"error": "busy"}'), content_type="application/json")),
        ("server-error", raw((11, event({"error": {"message": "busy"}})))),
        ("server-error", raw((11, b"event: error\ndata: busy\n\n"))),
        ("server-error", raw((11, event({"object": "error", "message": "busy"})))),
        ("protocol", raw((11, b"<h1>busy</h1>"), content_type="text/html")),
        ("protocol", raw((11, event(b"{")))),
        ("protocol", raw((11, event(b"[1]")))),
        ("protocol", raw((11, b"data: " + b"[" * 100_000 + b"\n\n"))),
        ("protocol", raw((11, event(b"[DONE]")))),
        ("protocol", raw((11, b"data: " + b"x" * (5 << 20)))),
        ("protocol", raw((11, GOOD[0]), ending="too-long", problem="more than that")),
        ("broken", raw((11, GOOD[0]))),
        ("broken", raw((11, GOOD[0]), ending="broken", problem="reset")),
        ("broken", raw(ending="no-connection", status=0)),
        ("broken", raw(ending="broken", status=0)),
        ("stalled", raw((11, GOOD[0]), ending="stalled")),
        ("timeout", raw((11, GOOD[0] + GOOD[1]), ending="timeout")),
        ("cancelled", raw((11, GOOD[0] + GOOD[1]), ending="cancelled")),
    ],
)
def test_what_is_no_answer_has_no_times(outcome: str, found: Raw) -> None:
    got = answer.read(found)
    assert got.outcome == outcome
    assert (got.ttft_ms, got.latency_ms, got.gaps_ms) == (None, None, [])
    assert outcome == "cancelled" or got.problem
    assert (
        "busy" in got.problem
        or b"busy" not in b"".join(data for _, data in found.arrivals)
        or (outcome == "protocol")
    )


def test_a_connection_that_stays_open_after_the_end_is_whole() -> None:
    assert answer.read(raw((11, GOOD[0] + event(b"[DONE]")), ending="stalled")).ok


NAMES = (
    "choices delta content finish_reason index error object usage timings prompt_tokens "
    "completion_tokens prompt_tokens_details cached_tokens prompt_n predicted_n cache_n prompt_ms"
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES.split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ANYTHING, max_size=4))
def test_no_answer_of_a_server_is_an_exception(events: list[Any]) -> None:
    data = b"".join(event(json.dumps(item).encode()) for item in events)
    got = answer.read(raw((11, data), (12, event(b"[DONE]"))))
    assert Answer(**json.loads(json.dumps(got.record()))) == got


# ------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    # from the tables of Student's distribution
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 5, 2.571),
        (0.95, 30, 2.042),
        (0.99, 2, 9.925),
        (0.99, 7, 3.499),
        (0.95, 120, 1.980),
    ],
)
def test_students_t(confidence: float, freedom: int, t: float) -> None:
    assert figures.student(confidence, freedom) == pytest.approx(t, abs=6e-4)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(7)
    inside = 0
    for _ in range(1000):
        found = figures.estimate([draw.gauss(100, 5) for _ in range(3)])
        assert found and found.margin is not None
        inside += abs(found.mean - 100) <= found.margin
    assert 0.93 < inside / 1000 < 0.97


def test_one_round_has_no_interval() -> None:
    assert figures.estimate([]) is None
    assert figures.estimate([3.0]) == figures.Estimate(3.0, None, (3.0,))


@pytest.mark.parametrize("count", [100, 101, 137, 1000])
def test_percentiles_are_numpys(count: int) -> None:
    draw = random.Random(count)
    values = [draw.uniform(-1e6, 1e6) for _ in range(count)]
    cuts = statistics.quantiles(values, n=100, method="inclusive")  # the same interpolation
    for percent in (50, 90, 95, 99):
        found = figures.percentile(values, percent)
        assert found == pytest.approx(cuts[percent - 1], abs=1e-6)


@pytest.mark.parametrize(("percent", "least"), [(50, 1), (90, 10), (95, 20), (99, 100)])
def test_a_percentile_of_too_few_values_is_none(percent: int, least: int) -> None:
    assert figures.percentile([1.0] * least, percent) == 1.0
    assert figures.percentile([1.0] * (least - 1), percent) is None


# ---------------------------------------------------------------------------------- figures


def ok(ttft: float = 100.0, gap: float = 10.0, tokens: int = 11, **more: Any) -> Answer:
    """An answer of equal gaps to a prompt of 100 tokens."""
    gaps = [gap] * (tokens - 1)
    settings: dict[str, Any] = {
        "prompt_tokens": 100,
        "completion_tokens": tokens,
        "counted_by": "usage",
        **more,
    }
    return Answer("ok", "", 200, ttft, ttft + sum(gaps), gaps, **settings)


def round_of(
    *answers: Answer, point: Point = POINT, number: int = 0, seconds: float = 1.0, **more: Any
) -> Repeat:
    return Repeat(point, number, "2026-11-21T00:00:00+00:00", seconds, 0.01, answers, **more)


def test_figures_of_a_round() -> None:
    (summary,) = figures.summarise([round_of(ok(), ok(300.0, 20.0), seconds=0.5)])
    value = summary.value
    assert value("ttft_ms") == 200
    assert value("prefill_tokens_per_s") == pytest.approx(200 / 0.4)
    assert value("tpot_ms") == value("itl_ms") == 15
    assert value("decode_tokens_per_s") == pytest.approx(20 / 0.3)
    assert value("latency_ms") == pytest.approx((200 + 500) / 2)
    assert value("output_tokens_per_s") == 22 / 0.5
    assert value("total_tokens_per_s") == 222 / 0.5
    assert value("server_prefill_tokens_per_s") is None
    assert summary.percentiles["itl_ms"]["p50"] == 15 and summary.outcomes == {"ok": 2}


def test_cached_tokens_were_not_computed() -> None:
    (summary,) = figures.summarise([round_of(ok(cached_tokens=50, prompt_ms=10.0))])
    assert summary.value("prefill_tokens_per_s") == 500
    assert summary.value("server_prefill_tokens_per_s") == 5000


def test_prefill_speed_is_of_one_request_at_a_time() -> None:
    (summary,) = figures.summarise([round_of(ok(), point=Point(100, 11, 2))])
    assert summary.value("prefill_tokens_per_s") is None and summary.value("ttft_ms") == 100


@pytest.mark.parametrize("outcome", ["http-error", "timeout", "stalled", "broken", "protocol"])
def test_failures_are_counted_and_in_no_figure(outcome: Any) -> None:
    rounds = [round_of(ok()), round_of(ok(), Answer(outcome, "why"), number=1)]
    (summary,) = figures.summarise(rounds)
    assert summary.outcomes == {outcome: 1, "ok": 2} and summary.failed == 1
    assert summary.metrics["ttft_ms"].values == (100.0, 100.0)
    assert summary.metrics["output_tokens_per_s"].values == (11.0,)  # the other was another load
    (line,) = advice.warnings([summary], {})
    assert outcome in line and "why" in line


def test_an_unfinished_round_is_counted_and_in_no_figure() -> None:
    stopped = round_of(ok(9.0), Answer("cancelled"), number=1, unfinished="interrupted")
    (summary,) = figures.summarise([round_of(ok()), stopped])
    assert summary.rounds == 1 and summary.metrics["ttft_ms"].values == (100.0,)
    assert summary.outcomes == {"cancelled": 1, "ok": 2}
    assert (summary.failed, summary.not_counted) == (0, 1)


def test_without_counts_there_are_times_and_no_speeds() -> None:
    unknown = {"prompt_tokens": None, "completion_tokens": None, "counted_by": "none"}
    (summary,) = figures.summarise([round_of(ok(**unknown))])
    assert set(summary.metrics) == {"ttft_ms", "itl_ms", "latency_ms"}
    assert any("no token counts" in text for text in advice.warnings([summary], {}))


def test_numbers_for_people() -> None:
    assert [
        figures.round_(value) for value in (None, 0.0, 0.0123, 1.234, 12.34, 123.4, 12345.6)
    ] == [*("", "0", "0.0123", "1.23", "12.3", "123", "12346")]


# --------------------------------------------------------------------------------- prompts


def test_prompts_are_the_same_for_a_seed_and_share_no_beginning() -> None:
    assert prompts.text("a", 5) == prompts.text("a", 5)
    starts = {prompts.text(f"seed {number}", 50)[:40] for number in range(300)}
    assert len(starts) == 300
    assert {len(word) for word in prompts.WORDS} == {4}
    assert len(prompts.text("a", 1000).split()) == 1000


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.floats(0.5, 8.0), st.integers(prompts.LARGE, 100_000))
def test_lengths_follow_the_line(fixed: int, per_word: float, target: int) -> None:
    def count(words: int) -> int:
        return round(fixed + per_word * words)

    found = prompts.length(count(prompts.SMALL), count(prompts.LARGE), "usage")
    assert found
    words = found.words(target + fixed)
    better = prompts.corrected(found, words, count(words))
    assert abs(count(better.words(target + fixed)) - target - fixed) <= per_word + 1


def test_counts_that_do_not_rise_are_no_line() -> None:
    assert prompts.length(10, 10, "usage") is None


# ------------------------------------------------------------------------------ comparisons


def summaries(values: list[float], point: Point = POINT) -> list[figures.Summary]:
    """A point with these decode speeds, one a round; what else there is follows from them."""
    return figures.summarise(
        [
            round_of(ok(gap=1000 / value), point=point, number=number, seconds=11 / value)
            for number, value in enumerate(values)
        ]
    )


def verdicts(a: list[float], b: list[float], least: float = 0.02) -> dict[str, str]:
    rows = compare.compare(summaries(a), summaries(b), least)
    return {row.metric: row.verdict for row in rows}


def test_a_difference_beyond_the_noise() -> None:
    found = verdicts([50, 51, 49], [60, 61, 59])
    assert found["decode_tokens_per_s"] == found["output_tokens_per_s"] == "better"
    assert found["ttft_ms"] == "no difference seen"
    found = verdicts([60, 61, 59], [50, 51, 49])
    assert found["decode_tokens_per_s"] == "worse"


def test_within_the_noise_no_difference_is_seen() -> None:
    assert verdicts([50, 60, 40], [55, 65, 45])["decode_tokens_per_s"] == "no difference seen"


def test_small_differences_are_none_however_sure() -> None:
    assert verdicts([50, 50, 50], [50.5, 50.5, 50.5])["decode_tokens_per_s"] == "no difference seen"
    assert verdicts([50, 50, 50], [50.5, 50.5, 50.5], 0.0)["decode_tokens_per_s"] == "better"


def test_one_round_tells_nothing_about_noise() -> None:
    (row,) = [
        row
        for row in compare.compare(summaries([50]), summaries([100, 101]))
        if row.metric == "decode_tokens_per_s"
    ]
    assert row.verdict == "not known" and (row.low, row.high) == (None, None)
    assert row.ratio == pytest.approx(math.sqrt(100 * 101) / 50)


def test_less_is_better_for_times() -> None:
    slow = figures.summarise([round_of(ok(200.0 + n), number=n) for n in range(3)])
    fast = figures.summarise([round_of(ok(100.0 + n), number=n) for n in range(3)])
    found = {row.metric: row for row in compare.compare(slow, fast)}
    assert found["ttft_ms"].verdict == "better" and found["ttft_ms"].ratio < 0.51


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1, 1000), min_size=2, max_size=6),
    st.lists(st.floats(1, 1000), min_size=2, max_size=6),
)
def test_a_comparison_turned_round_says_the_opposite(a: list[float], b: list[float]) -> None:
    opposite = {"better": "worse", "worse": "better", "no difference seen": "no difference seen"}
    there, back = verdicts(a, b, 0.0), verdicts(b, a, 0.0)
    assert {name: opposite[word] for name, word in there.items()} == back


def test_equal_servers_are_called_different_one_time_in_twenty() -> None:
    draw = random.Random(3)

    def rounds() -> figures.Estimate:
        found = figures.estimate([math.exp(draw.gauss(4, 0.05)) for _ in range(4)])
        assert found
        return found

    outside = 0
    for _ in range(600):
        _, low, high = compare.ratio(rounds(), rounds())
        assert low is not None and high is not None
        outside += not low <= 1 <= high
    assert 0.02 < outside / 600 < 0.07


def expectation(**metrics: list[float]) -> dict[str, Any]:
    spans = {name: {"low": low, "high": high} for name, (low, high) in metrics.items()}
    points = [{**POINT._asdict(), "metrics": spans}]
    return {"schema": compare.EXPECTATION, "source": "a plan", "points": points}


def test_expectations() -> None:
    measured = summaries([50, 51, 49])
    wanted = expectation(
        decode_tokens_per_s=[40, 60],
        output_tokens_per_s=[60, 70],
        ttft_ms=[200, 300],
        tpot_ms=[1, 2],
        server_decode_tokens_per_s=[1, 2],
    )
    schema = load_schema("bench-expectation")
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(wanted)
    found = {row.metric: row.verdict for row in compare.meets(measured, wanted)}
    assert found == {
        "decode_tokens_per_s": "within",
        "output_tokens_per_s": "worse than expected",
        "ttft_ms": "better than expected",
        "tpot_ms": "worse than expected",
        "server_decode_tokens_per_s": "not measured",
    }
    # the interval of the rounds reaches into the range
    touching = expectation(decode_tokens_per_s=[52, 60])
    assert [row.verdict for row in compare.meets(measured, touching)] == ["within"]


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"schema": compare.EXPECTATION},
        {"schema": compare.EXPECTATION, "points": [{"prompt": 1}]},
        expectation(speed=[1, 2]),
        {"schema": "legacy-cuda/bench-expectation/2", "points": []},
    ],
)
def test_bad_expectations(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        compare.meets([], bad)
    assert not Draft202012Validator(load_schema("bench-expectation")).is_valid(bad)


def load_schema(name: str) -> dict[str, Any]:
    path = catalog.DATA.parent / "schema" / f"{name}.schema.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def test_every_metric_can_be_expected() -> None:
    schema = load_schema("bench-expectation")
    for metric in figures.METRICS:
        wanted = expectation(**{metric.name: [0, 1]})
        assert Draft202012Validator(schema).is_valid(wanted), metric.name


# ---------------------------------------------------------------------------------- advice


def sweep(speeds: dict[int, list[float]]) -> list[figures.Summary]:
    """Throughputs by concurrency."""
    return [
        found
        for count, values in speeds.items()
        for found in figures.summarise(
            [
                round_of(ok(), point=Point(100, 11, count), number=number, seconds=11 / value)
                for number, value in enumerate(values)
            ]
        )
    ]


def test_where_throughput_stops_growing() -> None:
    (text,) = advice.suggestions(
        sweep({1: [10, 10.1], 2: [19, 19.1], 4: [30, 30.1], 8: [30, 30.1], 16: [29, 29.1]}), {}
    )
    assert "4 at once are enough" in text and "at 8" in text


def test_throughput_that_still_grows() -> None:
    (text,) = advice.suggestions(sweep({1: [10, 10.1], 2: [19, 19.1]}), {})
    assert "still grows at 2" in text


@pytest.mark.parametrize(
    "speeds",
    [
        {1: [10, 14, 8], 2: [11, 15, 9]},  # too noisy to tell
        {1: [10], 2: [10]},  # one round each
        {1: [10, 10.1]},
    ],
)
def test_no_advice_without_data_for_it(speeds: dict[int, list[float]]) -> None:
    assert advice.suggestions(sweep(speeds), {}) == []


def test_more_at_once_than_slots() -> None:
    (text,) = advice.suggestions(sweep({1: [10], 2: [10]}), {"slots": 1})
    assert "computes 1 request at once" in text
    assert advice.suggestions(sweep({1: [10], 2: [10]}), {"slots": 2}) == []


@pytest.mark.parametrize(
    ("word", "answers", "more"),
    [
        ("cache", [ok(cached_tokens=60)], {}),
        ("ended before", [ok(tokens=5)], {}),
        ("timings", [ok(counted_by="timings")], {}),
        ("several tokens", [ok(completion_tokens=22)], {}),
        ("as long as asked", [ok(prompt_tokens=80)], {}),
        ("bursts", [ok(gap=0.01)], {}),
        ("processor", [ok()], {"client_cpu": 0.8}),
    ],
)
def test_what_to_mind(word: str, answers: list[Answer], more: dict[str, Any]) -> None:
    repeat = Repeat(POINT, 0, "", 1.0, more.get("client_cpu", 0.01), tuple(answers))
    (text,) = advice.warnings(figures.summarise([repeat]), {"counted_by": "usage"})
    assert word in text and str(POINT) in text
    assert advice.warnings(figures.summarise([round_of(ok())]), {"counted_by": "usage"}) == []


def test_rounds_that_differ() -> None:
    assert "differ" in advice.warnings(summaries([50, 80, 30]), {})[0]


# ---------------------------------------------------------------------------------- the page


def a_run(repeats: list[Repeat], name: str = "model") -> runfile.Run:
    points = sorted({repeat.point for repeat in repeats})
    settings = {
        "url": "http://127.0.0.1:1/v1",
        "model": name,
        "api": "chat",
        "prompt": sorted({point.prompt for point in points}),
        "generate": 11,
        "concurrency": sorted({point.concurrency for point in points}),
        "repeat": 2,
        "requests": 1,
        "warmup": 1,
        "same_prompt": False,
        "note": name,
    }
    server = {"model": name, "engine": name, "version": name, "slots": None}
    machine = {"gpus": None, "gpus_unknown": name, "driver": None, "cpu": name}
    kept = {"text": "words", "counted_by": "usage"}
    return runfile.Run("0.1.0", "2026-11-21", settings, server, machine, kept, [], repeats)


def test_the_page() -> None:
    repeats = [
        round_of(ok(gap=10.0 + number), point=Point(prompt, 11, count), number=number)
        for prompt in (100, 400)
        for count in (1, 4)
        for number in (0, 1)
    ]
    html = page.html(a_run(repeats))
    found = PageWithShapes(html)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("svg") == 6 and tags.count("polyline") == 3 * 2 + 1 + 2 * 2
    assert "Throughput" in found.text and "pp400" in found.text and "4 at once" in found.text
    assert not set(tags) & {"script", "link", "img", "iframe"}
    for _, attributes in found.tags:
        assert not {"src", "href"} & set(attributes)
        for name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2"):
            if name in attributes:
                assert -1 <= float(attributes[name] or "nan") <= 500
    assert html == page.html(a_run(list(repeats)))


def test_a_page_of_little_or_nothing() -> None:
    assert "<svg" not in page.html(a_run([round_of(ok())]))
    found = PageWithShapes(page.html(a_run([round_of(Answer("timeout", "late"))])))
    assert "1 timeout" in found.text and "1 rounds are not measured" in found.text


def test_what_comes_from_outside_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    repeats = [round_of(ok(), Answer("server-error", evil), point=POINT)]
    run = a_run(repeats, evil)
    run.skipped[Point(1, 2, 3)] = evil
    found = PageWithShapes(page.html(run))
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(evil) >= 6


class PageWithShapes(Page):
    """The page of a run has more tags that hold nothing, and closes all of them."""
