"""A command's output: the end mark wherever it is cut, the middle of too much left out."""

import asyncio
from collections import deque
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.sandbox.stream import STDERR, STDOUT, CappedText, CommandStreams, MarkedStream

PIECES = st.lists(st.binary(max_size=50), max_size=20)


@given(PIECES, st.integers(2, 200))
def test_what_is_kept_and_cut_adds_up(pieces: list[bytes], limit: int) -> None:
    text = CappedText(limit)
    for piece in pieces:
        text.add(piece)
    whole = b"".join(pieces)
    half = limit // 2
    if len(whole) <= 2 * half:
        assert text.cut_bytes == 0
        assert text.text() == whole.decode(errors="replace")
    else:
        assert text.cut_bytes == len(whole) - 2 * half
        assert text.text().startswith(whole[:half].decode(errors="replace"))
        assert text.text().endswith(whole[-half:].decode(errors="replace"))


def test_memory_is_bounded() -> None:
    text = CappedText(1000)
    for _ in range(10_000):
        text.add(b"x" * 1000)
    assert len(text._head) + len(text._tail) <= 3000
    assert text.cut_bytes == 10_000_000 - 1000


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.binary(max_size=100), st.lists(st.integers(0, 300)))
def test_the_mark_is_found_wherever_the_stream_is_cut(output: bytes, places: list[int]) -> None:
    stream = MarkedStream(b"mark", 2, 1000)
    for piece in cut(output + b"\0mark\0first\0second\0", places):
        assert stream.record is None
        stream.feed(piece)
    assert stream.record == [b"first", b"second"]
    assert stream.output.text() == output.decode(errors="replace")


@given(st.binary(max_size=30), st.lists(st.integers(0, 30)))
def test_the_beginning_of_a_mark_is_output_when_no_more_comes(output: bytes, places: list[int]) -> None:
    data = output + b"\0mar"
    stream = MarkedStream(b"mark", 0, 1000)
    for piece in cut(data, places):
        stream.feed(piece)
    stream.finish()
    assert stream.record is None
    assert stream.output.text() == data.decode(errors="replace")


class Pieces:
    """A source of pieces that are there already; then it waits, or has ended."""

    def __init__(self, *pieces: tuple[int, bytes], has_ended: bool = False) -> None:
        self.pieces = deque(pieces)
        self.has_ended = has_ended

    async def read(self) -> tuple[int, bytes] | None:
        if not self.pieces and not self.has_ended:
            await asyncio.Event().wait()
        return self.pieces.popleft() if self.pieces else None


def test_a_command_ends_when_both_streams_do() -> None:
    async def read() -> CommandStreams:
        source, streams = Pieces(), CommandStreams(1000, b"mark")
        for piece in (
            (STDOUT, b"out\0mark\0"),
            (STDERR, b"err\0ma"),
            (STDOUT, b"7\0/dir\n\0env\0"),
            (STDERR, b"rk\0"),
        ):
            assert await streams.read_waiting(source) == "open"
            source.pieces.append(piece)
        assert await streams.read(source) == "ended"
        return streams

    streams = asyncio.run(read())
    assert streams.stdout.record == [b"7", b"/dir\n", b"env"]
    assert (streams.stdout.output.text(), streams.stderr.output.text()) == ("out", "err")


def test_a_closed_stream_is_said_and_what_came_is_kept() -> None:
    streams = CommandStreams(1000, b"mark")
    source = Pieces((STDOUT, b"whole"), (STDOUT, b"torn\0ma"), has_ended=True)
    assert asyncio.run(streams.read(source)) == "closed"
    assert streams.stdout.output.text() == "wholetorn\0ma"
