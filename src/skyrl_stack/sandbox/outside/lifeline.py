"""The lifeline of a sandbox of a Podman elsewhere: a stream to its process 1, which ends when the stream does.

Over it the runtime asks for what only process 1 can do whatever happens in the sandbox, and hears of sizes that were
exceeded. `init.bash` is the other end.
"""

import asyncio
from contextlib import suppress
from importlib.resources import files
from typing import Literal, Protocol, cast

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.stream import Output

_INIT = (files(__package__) / "init.bash").read_text()

Size = Literal["memory", "processes"]


def process_1(sizes: list[Size]) -> list[str]:
    """The argv of process 1, which watches over `sizes`."""
    return ["/bin/bash", "--noprofile", "--norc", "-c", _INIT, "init", *sizes]


class Stream(Output, Protocol):
    """What process 1 says; `transport` takes what it is told."""

    transport: asyncio.WriteTransport


class Lifeline:
    """The runtime's end; close it, and the sandbox ends."""

    def __init__(self, container: str, frames: Stream) -> None:
        self._container = container
        self._frames = frames
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[int | None] = asyncio.Queue()
        self._exceeded: Size | None = None
        self._news = asyncio.Event()
        self._is_over = False
        self._reading = asyncio.create_task(self._read())

    def close(self) -> None:
        self._frames.close()

    @property
    def has_ended(self) -> bool:
        return self._is_over or self._reading.done()

    def has_lost(self) -> None:
        """Process 1 is gone, as somebody else says; the end of what it said may still be on its way."""
        self._is_over = True

    async def await_news(self, timeout_s: float) -> None:
        """Until a size was exceeded, or the sandbox ended, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    def take_excess(self) -> Size | None:
        """Which size was exceeded since this was asked last: everything in the sandbox was killed for that."""
        exceeded, self._exceeded = self._exceeded, None
        if not self.has_ended:
            self._news.clear()
        return exceeded

    async def ask(self, what: str, argument: str) -> int:
        """Have process 1 do what its program knows, such as `signal` all processes; the number that it answers.

        Raises:
            SandboxLost: it has ended.
        """
        async with self._turn:
            self._frames.transport.write(f"{what}:{argument}\n".encode())
            code = await self._answers.get()
        if code is None:
            self._answers.put_nowait(None)
            raise SandboxLost(f"sandbox {self._container} is gone")
        return code

    async def _read(self) -> None:
        pending = b""
        while piece := await self._frames.read():
            *lines, pending = (pending + piece[1]).split(b"\n")
            for line in lines:
                word, _, argument = line.decode(errors="replace").partition(" ")
                if word == "done":
                    self._answers.put_nowait(int(argument))
                elif word == "excess":
                    self._exceeded = cast(Size, argument)
                    self._news.set()
        self._answers.put_nowait(None)
        self._news.set()
