"""Output of one command out of a shell's streams: the end found, the middle cut.

Both streams end, for one command, at a mark that the command could not know.
"""

import asyncio
import secrets
from contextlib import suppress
from typing import Literal, Protocol

STDOUT, STDERR = 1, 2
_RECORD_LIMIT = 4 * 1024 * 1024


class Source(Protocol):
    """Both streams of a process."""

    async def read(self) -> tuple[int, bytes] | None:
        """(stream number, data), or None when they ended. Cancelled, it has taken nothing."""
        ...


class Output(Source, Protocol):
    """A source that somebody has to close."""

    def close(self) -> None: ...


class CappedText:
    """Bytes of which only the first and the last half of `limit` are kept."""

    def __init__(self, limit: int) -> None:
        self.half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self._cut = 0

    def add(self, data: bytes | bytearray) -> None:
        room = self.half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self.half:  # amortised: a piece is moved once for every `half` bytes
            self._drop()

    def _drop(self) -> None:
        excess = max(0, len(self._tail) - self.half)
        del self._tail[:excess]
        self._cut += excess

    @property
    def cut_bytes(self) -> int:
        self._drop()
        return self._cut

    def text(self) -> str:
        """UTF-8, with replacements, and one line that says how much of the middle is missing."""
        missing = f"\n[... {self.cut_bytes} bytes cut ...]\n" if self.cut_bytes else ""
        if not missing:
            return (self._head + self._tail).decode(errors="replace")
        return self._head.decode(errors="replace") + missing + self._tail.decode(errors="replace")


class MarkedStream:
    """One of a command's two streams: output up to the mark, and behind it a record of `fields` strings."""

    def __init__(self, mark: bytes, fields: int, output_limit: int) -> None:
        self.output = CappedText(output_limit)
        self._mark = b"\0" + mark + b"\0"
        self._fields = fields
        self._pending = bytearray()
        self._record: bytearray | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ValueError: what is behind the mark is longer than any environment can be.
        """
        if self._record is not None:
            self._record += data
            if len(self._record) > _RECORD_LIMIT:
                raise ValueError("the shell's environment is too large")
            return
        self._pending += data
        at = self._pending.find(self._mark)
        if at >= 0:
            self._record = self._pending[at + len(self._mark) :]
            self.output.add(self._pending[:at])
            self._pending.clear()
        elif (sure := len(self._pending) - len(self._mark) + 1) > 0:
            self.output.add(self._pending[:sure])
            del self._pending[:sure]

    def finish(self) -> None:
        """Take what could have been the beginning of a mark as output."""
        self.output.add(self._pending)
        self._pending.clear()

    @property
    def record(self) -> list[bytes] | None:
        """The fields behind the mark, once they are all there."""
        if self._record is None:
            return None
        fields = bytes(self._record).split(b"\0")
        return fields[: self._fields] if len(fields) > self._fields else None


class CommandStreams:
    """Both streams of one command. On stdout a record follows the mark: exit code, directory, exports."""

    def __init__(self, output_limit: int, mark: bytes | None = None) -> None:
        self.mark = mark or secrets.token_hex(16).encode()
        self.stdout = MarkedStream(self.mark, 3, output_limit)
        self.stderr = MarkedStream(self.mark, 0, output_limit)

    async def read(self, source: Source) -> Literal["ended", "closed"]:
        """Read until the command ended, or the stream closed before it did."""
        while piece := await source.read():
            stream, data = piece
            (self.stdout if stream == STDOUT else self.stderr).feed(data)
            if self.stdout.record is not None and self.stderr.record is not None:
                return "ended"
        self.give_up()
        return "closed"

    async def read_waiting(self, source: Source) -> Literal["open", "closed"]:
        """Read what is already there, and whether there can be more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                return "open" if await self.read(source) == "ended" else "closed"
        return "open"

    def words(self) -> str:
        """The end of what was said, on one line."""
        return " ".join(f"{self.stdout.output.text()} {self.stderr.output.text()}".split())[-300:]

    def give_up(self) -> None:
        """There is no mark to come: all that was read is output."""
        self.stdout.finish()
        self.stderr.finish()
