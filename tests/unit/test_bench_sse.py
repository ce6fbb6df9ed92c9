"""The reader of event streams: whatever the pieces, the same events, and nothing but its error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legacy_cuda.bench.sse import Decoder, Event, StreamError

TEXT = st.text("a :\t\x00\u2028\u20ac\ufeff\U0001f600", max_size=8)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def decode(pieces: list[bytes]) -> list[Event]:
    decoder = Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The bytes in pieces, some of them empty."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """A stream with comments and other fields, and the events in it."""
    end = draw(ENDS)
    text, events = draw(st.sampled_from(["", "\ufeff"])), []
    for _ in range(draw(st.integers(0, 5))):
        lines = draw(st.lists(TEXT, min_size=1, max_size=3))
        kind = draw(st.sampled_from(["", "error", "message"]))
        fields = [f"data: {line}" for line in lines]
        fields += [f"event: {kind}"] if kind else []
        fields += draw(st.lists(st.sampled_from([": ping", "id: 7", "retry: 3", "x"]), max_size=2))
        text += "".join(field + end for field in [*fields, ""])
        events.append(Event(kind, "\n".join(lines)))
    return text.encode(), events


@settings(max_examples=50, deadline=None)
@given(streams(), st.lists(st.integers(0, 500), max_size=8))
def test_events_come_out_as_they_went_in(
    stream: tuple[bytes, list[Event]], places: list[int]
) -> None:
    data, events = stream
    assert decode(cut(data, places)) == events


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_pieces_make_no_difference_to_any_bytes(data: bytes, places: list[int]) -> None:
    assert decode(cut(data, places)) == decode([data])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data:a", b"data: b", b":"]), max_size=12))
def test_ends_of_lines_between_pieces(parts: list[bytes]) -> None:
    assert decode(parts) == decode([b"".join(parts)])


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [Event("", "a")]),
        (b"data:a\n\n", [Event("", "a")]),
        (b"data:  a\n\n", [Event("", " a")]),
        (b"data: a\ndata\n\n", [Event("", "a\n")]),
        (b"data: a\r\n\r\ndata: b\r\r", [Event("", "a"), Event("", "b")]),
        (b"event: error\ndata: x\n\ndata: y\n\n", [Event("error", "x"), Event("", "y")]),
        (b"event: error\n\n", []),
        (b"data: not ended\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("", "a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: \xff\n\n", [Event("", "\ufffd")]),
    ],
)
def test_the_format(data: bytes, events: list[Event]) -> None:
    assert decode([data]) == events
    assert decode([data[at : at + 1] for at in range(len(data))]) == events


def test_an_event_is_there_with_the_line_that_ends_it() -> None:
    decoder = Decoder()
    assert decoder.feed(b"data: a\r\n\r") == [Event("", "a")]
    assert decoder.feed(b"\ndata: b\r\n\r\n") == [Event("", "b")]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_end_is_refused(end: bytes) -> None:
    decoder = Decoder(longest_line=1000)
    decoder.feed(b"data: " + b"x" * 900)
    with pytest.raises(StreamError):
        decoder.feed(b"x" * 200 + end)
