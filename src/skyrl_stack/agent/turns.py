"""Whose turn it is to compute: conversations have a thread each, and a process has hundreds of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 1
"One thread of Python computes at a time in any case."
PATIENCE_S = 0.2
"After which a turn counts as over: what takes so long waits for something, as a custom agent's own model."


class Turns:
    """Lets one conversation compute while the others wait without asking for the interpreter.

    Threads that want to compute all ask for the interpreter's lock, which goes round in slices of 5 ms: when 256
    conversations begin, the event loop would have its slice about once in a second. Here it has one competitor.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._since: dict[int, float] = {}
        "By thread: when its turn began."

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The block computes, as soon as it is its turn."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """The block waits, or computes nothing of Python; a thread that had the turn has it again afterwards."""
        had = self._give()
        try:
            yield
        finally:
            if had:
                self._take()

    def _take(self) -> None:
        with self._changed:
            while self._computing() >= AT_ONCE:
                self._changed.wait(PATIENCE_S)
            self._since[threading.get_ident()] = time.monotonic()

    def _give(self) -> bool:
        with self._changed:
            had = self._since.pop(threading.get_ident(), None) is not None
            self._changed.notify()
            return had

    def _computing(self) -> int:
        now = time.monotonic()
        return sum(now - since < PATIENCE_S for since in self._since.values())


TURNS = Turns()
"Those of this process."
