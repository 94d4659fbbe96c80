"""The output of a process, by its real pipes: all of it, in pieces, and its end although others hold the pipes."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Coroutine
from typing import Any

from skyrl_stack.sandbox.pipes import PipeReader
from skyrl_stack.sandbox.stream import STDERR, STDOUT


def reading[T](script: str, use: Callable[[PipeReader], Coroutine[Any, Any, T]]) -> T:
    """`use` of the output of a shell script."""

    pipe = subprocess.PIPE
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stderr
        descriptors = (os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()), os.pidfd_open(process.pid))

        async def run() -> T:
            reader = PipeReader(*descriptors)
            try:
                return await asyncio.wait_for(use(reader), 30)
            finally:
                reader.close()

        return asyncio.run(run())


async def everything(reader: PipeReader) -> dict[int, bytes]:
    said = {STDOUT: b"", STDERR: b""}
    while piece := await reader.read():
        said[piece[0]] += piece[1]
    return said


def test_both_streams_come_whole() -> None:
    said = reading("head -c 3000000 /dev/zero; echo problem >&2", everything)
    assert said == {STDOUT: bytes(3_000_000), STDERR: b"problem\n"}


def test_the_end_of_the_process_is_the_end() -> None:
    """Not that of its pipes: here one child keeps them open, and another never stops writing."""
    said = reading("sleep 20 & yes & killer=$!; (sleep 2; kill $killer) & echo last >&2", everything)
    assert said[STDERR] == b"last\n"


def test_a_cancelled_read_loses_nothing() -> None:
    async def impatient(reader: PipeReader) -> bytes:
        said = b""
        while True:
            try:
                async with asyncio.timeout(0.001):
                    piece = await reader.read()
            except TimeoutError:
                continue
            if piece is None:
                return said
            said += piece[1]

    assert reading("for n in 1 2 3 4 5; do echo $n; sleep 0.02; done", impatient) == b"1\n2\n3\n4\n5\n"


def test_closing_ends_a_read() -> None:
    async def close_while_reading(reader: PipeReader) -> object:
        read = asyncio.create_task(reader.read())
        await asyncio.sleep(0.05)
        reader.close()
        return await read

    assert reading("sleep 0.5", close_while_reading) is None
