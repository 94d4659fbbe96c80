"""A command's output: frames in any pieces, the end mark wherever it is cut, the middle of too much left out."""

import asyncio
import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from skyrl_stack.sandbox.stream import STDERR, STDOUT, CappedText, CommandStreams, FrameReader, MarkedStream

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


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">B3xI", stream, len(data)) + data


def test_a_command_ends_when_both_streams_do() -> None:
    async def read() -> CommandStreams:
        reader = asyncio.StreamReader()
        streams = CommandStreams(1000, b"mark")
        for data in (
            frame(STDOUT, b"out\0mark\0" + b"0\0"),
            frame(STDERR, b"err\0ma"),
            frame(STDOUT, b"7\0/dir\n\0env\0"),
            frame(STDERR, b"rk\0"),
        ):
            assert await streams.read_waiting(FrameReader(reader)) == "open"
            reader.feed_data(data)
        assert await streams.read(FrameReader(reader)) == "ended"
        return streams

    streams = asyncio.run(read())
    assert streams.stdout.record == [b"0", b"7", b"/dir\n", b"env"]
    assert (streams.stdout.output.text(), streams.stderr.output.text()) == ("out", "err")


def test_a_closed_stream_is_said_and_what_came_is_kept() -> None:
    async def read() -> tuple[str, str]:
        reader = asyncio.StreamReader()
        reader.feed_data(frame(STDOUT, b"whole") + frame(STDOUT, b"torn off")[:12])
        reader.feed_eof()
        streams = CommandStreams(1000, b"mark")
        how = await streams.read(FrameReader(reader))
        return how, streams.stdout.output.text()

    assert asyncio.run(read()) == ("closed", "wholetorn")


def test_a_cancelled_read_loses_nothing() -> None:
    async def read() -> list[tuple[int, bytes] | None]:
        reader = asyncio.StreamReader()
        frames = FrameReader(reader)
        whole = frame(STDOUT, b"one") + frame(STDERR, b"two")
        got = []
        for byte in whole:
            reader.feed_data(bytes([byte]))
            try:
                async with asyncio.timeout(0):
                    got.append(await frames.read())
            except TimeoutError:
                pass
        return got

    got = asyncio.run(read())
    assert b"".join(data for piece in got if piece for data in [piece[1]]) == b"onetwo"
