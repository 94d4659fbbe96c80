"""What is kept for the server that comes after this one: records, and open descriptors that go with them.

    server ──put, drop──▶ keeper (runtime/keeper.py) ──all that it holds──▶ the next server

The way of systemd's file-descriptor store: a descriptor that the keeper holds too stays open when a server dies, and
the next server inherits it. A record is whatever JSON can say; it is in the keeper's memory and nowhere else.
"""

import json
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from skyrl_stack.errors import SetupError


@dataclass(frozen=True)
class Kept:
    """What a server before this one put away."""

    data: Any
    descriptors: tuple[int, ...]
    "They belong to who takes this."


class Store:
    """Of a process that nobody keeps: what it puts away ends with it."""

    died: str | None = None
    "How the server before this one did."
    deaths: int = 0
    "Of servers before this one."
    is_last: bool = False
    "Whether too many died: this one is to end everything in order."

    def __init__(self) -> None:
        self._found: dict[str, Kept] = {}

    @property
    def owner(self) -> int:
        """The process with which everything ends."""
        return os.getpid()

    def put(self, key: str, data: Any, descriptors: Sequence[int] | None = None) -> None:
        """Keep a record in place of the one of this key. `descriptors` stay the caller's; None leaves those kept."""

    def drop(self, key: str) -> None:
        """Forget a record with its descriptors, and all that are below it (`key/…`)."""

    def take(self, key: str) -> Kept | None:
        """What was found of this key; once."""
        return self._found.pop(key, None)

    def take_below(self, key: str) -> dict[str, Kept]:
        """All that was found below `key`, by the rest of its key; once."""
        below = [each for each in self._found if each.startswith(f"{key}/")]
        return {each.removeprefix(f"{key}/"): self._found.pop(each) for each in below}

    def forget_the_rest(self) -> None:
        """Nobody will take what is still there."""
        while self._found:
            key, kept = self._found.popitem()
            self.drop(key)
            for descriptor in kept.descriptors:
                os.close(descriptor)


class KeeperStore(Store):
    """Of a server that a keeper started. May be used by several threads."""

    def __init__(self, connection: socket.socket, handed: dict[str, Any]) -> None:
        super().__init__()
        self.died, self.deaths, self.is_last = handed["died"], handed["deaths"], handed["is_last"]
        self._connection = connection
        self._sending = threading.Lock()
        for key, (data, descriptors) in handed["records"].items():
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            self._found[key] = Kept(data, tuple(descriptors))

    @classmethod
    def handed_over(cls, descriptor: int) -> Self:
        """Of the keeper at the other end of an inherited socket.

        Raises:
            SetupError: there is none any more.
        """
        connection = socket.socket(fileno=descriptor)
        connection.set_inheritable(False)
        with connection.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            raise SetupError("the keeper is gone")
        return cls(connection, json.loads(line))

    @property
    def owner(self) -> int:
        return os.getppid()

    def put(self, key: str, data: Any, descriptors: Sequence[int] | None = None) -> None:
        """See `Store.put`. The keeper has it before whoever waits for this server's answer."""
        count = None if descriptors is None else len(descriptors)
        self._send({"put": key, "data": data, "descriptors": count}, descriptors or ())

    def drop(self, key: str) -> None:
        """See `Store.drop`."""
        self._send({"drop": key}, ())

    def _send(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            sent = socket.send_fds(self._connection, [line], descriptors)
            self._connection.sendall(line[sent:])


UNKEPT = Store()
"Of every process that is no runtime's."
