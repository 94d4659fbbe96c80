"""Both output streams of a process, read from its pipes until the process ends."""

import asyncio
import os
import select
from collections import deque

from skyrl_stack.sandbox.stream import STDERR, STDOUT

_PIECE = 256 * 1024
"More than a pipe holds."
_BURST = 16
"Reads without a pause before others get their turn."


class PipeReader:
    """The pipes of a process, piece by piece. A cancelled `read` has taken nothing: the next one goes on.

    They end when the process does, although what it started may still hold them; `life` is its pidfd.
    """

    def __init__(self, stdout: int, stderr: int, life: int) -> None:
        self._open = {STDOUT: stdout, STDERR: stderr}
        self._life = life
        self._last: deque[tuple[int, bytes]] = deque()
        self._burst = 0
        self._watched: list[int] = []
        self._ready: asyncio.Future[None] | None = None
        for descriptor in (stdout, stderr):
            os.set_blocking(descriptor, False)

    async def read(self) -> tuple[int, bytes] | None:
        """(stream number, data), or None when the process ended and all that it said was read."""
        while self._open and not self._last:
            self._burst += 1
            if self._burst < _BURST and (piece := self._take()):
                return piece
            if self._open:
                await self._pause()
        return self._last.popleft() if self._last else None

    def close(self) -> None:
        """Idempotent. A `read` under way ends."""
        self._unwatch()
        for descriptor in (*self._open.values(), self._life):
            if descriptor >= 0:
                os.close(descriptor)
        self._open, self._life = {}, -1

    def _take(self) -> tuple[int, bytes] | None:
        """What is there already."""
        for stream, descriptor in list(self._open.items()):
            try:
                if data := os.read(descriptor, _PIECE):
                    return stream, data
            except BlockingIOError:
                continue
            os.close(self._open.pop(stream))
        return None

    async def _pause(self) -> None:
        """Until there is something to read, or the process ended."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._watched = [*self._open.values(), self._life]
        for descriptor in self._watched:
            loop.add_reader(descriptor, self._unwatch)
        try:
            await self._ready
        finally:
            self._unwatch()
        self._burst = 0
        if self._open and _is_readable(self._life):
            self._take_the_last()

    def _take_the_last(self) -> None:
        """What the pipes of an ended process hold now is all that it said, whoever else may write there."""
        for stream, descriptor in self._open.items():
            try:
                self._last.append((stream, os.read(descriptor, _PIECE)))
            except BlockingIOError:
                continue
        self.close()

    def _unwatch(self) -> None:
        for descriptor in self._watched:
            asyncio.get_running_loop().remove_reader(descriptor)
        self._watched = []
        if self._ready and not self._ready.done():
            self._ready.set_result(None)


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
