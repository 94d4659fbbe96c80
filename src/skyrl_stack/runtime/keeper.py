"""The keeper: the runtime's process, which starts its server and holds what must outlive it.

    launcher ──▶ keeper ──▶ server (process.py) ──put, drop──▶ keeper

It holds what servers put away (`sandbox/keeping.py`): listening ports, the lifelines of Podman and the broker, the
pipes of shells, and a record of each. A server that dies of what nobody told it to die of is started again and inherits
all of it, while clients wait in the ports' queues. Whatever ends the keeper ends the server by the kernel's signal, and
the cell by its lifelines.

There is little in it, so that little can fail: Python's own library, one thread, nothing read from disk.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from skyrl_stack.node import end_with_parent

CRASHED = 70
"Exit code of a server that met with what nobody foresaw. By any other it says that it has ended in order."
_DEATHS = 3
"So often may the server die within _DEATHS_WITHIN_S."
_DEATHS_WITHIN_S = 600.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PIECE = 64 * 1024
_MOST_DESCRIPTORS = 16
"That come with one record."


class Keeper:
    """Starts servers with `arguments`, one after the other, until one ends in order."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._records: dict[str, tuple[Any, list[int]]] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._told: int | None = None
        "The signal by which we were told to end."
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)

    def run(self) -> int:
        """Serve to the end; returns the exit code."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files[1], self._files[1]))
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        deaths: list[float] = []
        died, total = None, 0
        while True:
            is_last = len(deaths) > _DEATHS
            code = self._serve({"died": died, "deaths": total, "is_last": is_last})
            if 0 <= code != CRASHED:
                return code
            died, total = _how(code), total + 1
            if is_last:
                print(f"runtime: the server died {total} times, the last time by {died}", file=sys.stderr)
                return 1
            now = time.monotonic()
            deaths = [at for at in deaths if now - at < _DEATHS_WITHIN_S] + [now]

    def _serve(self, news: dict[str, Any]) -> int:
        """Start a server, hand it all that we hold, and hold what it puts away until it ends; its exit code."""
        ours, theirs = socket.socketpair()
        inherited = [descriptor for _, descriptors in self._records.values() for descriptor in descriptors]
        argv = [sys.executable, "-m", "skyrl_stack.runtime.process", *self._arguments]
        self._server = subprocess.Popen(
            [*argv, "--keeper", str(theirs.fileno())], pass_fds=(theirs.fileno(), *inherited), preexec_fn=self._prepare
        )
        theirs.close()
        if self._told:
            self._server.send_signal(self._told)
        with ours:
            with suppress(OSError):  # it is dead already
                ours.sendall(json.dumps({**news, "records": self._records}).encode() + b"\n")
            self._hold(ours)
        return self._server.wait()

    def _prepare(self) -> None:
        """In the server before it is: it ends with us, and is told nothing before it listens."""
        end_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._told = number
        if self._server:
            self._server.send_signal(number)

    def _hold(self, connection: socket.socket) -> None:
        """Take what a server puts away, until its end of the connection closes, which is its own end."""
        pending, descriptors = b"", deque[int]()
        with suppress(ConnectionError):
            while True:
                data, came, _, _ = socket.recv_fds(connection, _PIECE, _MOST_DESCRIPTORS)
                if not data:
                    break
                descriptors.extend(came)
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line), descriptors)
        _close(descriptors)

    def _obey(self, message: dict[str, Any], came: deque[int]) -> None:
        if "drop" in message:
            key = message["drop"]
            for each in [each for each in self._records if each == key or each.startswith(f"{key}/")]:
                _close(self._records.pop(each)[1])
            return
        key, count = message["put"], message["descriptors"]
        _, held = self._records.get(key, (None, []))
        if count is not None:
            _close(held)
            held = [came.popleft() for _ in range(count)]
        self._records[key] = (message["data"], held)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _close(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
