"""How the trainer ends before its work is done: by signal, or because the other role or a node of its own is gone.

Both become an exception in the main thread, so that everything is closed in order; and if that takes too
long the process ends at once, and Ray's processes with it (the kernel kills them when their parent dies).
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn, Self

from skyrl_stack.errors import PeerLost, StackError, TrainingStopped

GRACE_S = 12.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """Inside the block, which is the main thread's, a signal raises SystemExit, a lost peer or node a StackError."""

    def __init__(self) -> None:
        self._cause: StackError | None = None
        self._signal = 0

    def __enter__(self) -> Self:
        self.take_signals()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._signal or not isinstance(error, SystemExit):
            return
        if self._cause:
            raise self._cause from None
        raise SystemExit(128 + self._signal) from None  # Ray hands on that there was one, but not its code

    def take_signals(self) -> None:
        """Handle the signals here; again after a library has put its own handlers in place."""
        for number in _SIGNALS:
            signal.signal(number, self._end)

    def peer_lost(self, reason: str) -> None:
        """End the block by PeerLost. From any thread."""
        self._end_by(PeerLost(reason))

    def node_lost(self, reason: str) -> None:
        """End the block by TrainingStopped. From any thread."""
        self._end_by(TrainingStopped(reason))

    def _end_by(self, cause: StackError) -> None:
        self._cause = cause
        os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, number: int, _: FrameType | None) -> NoReturn:
        self._signal = number
        for each in _SIGNALS:  # a second one must not cut the clean-up short; it is bounded in time
            signal.signal(each, signal.SIG_IGN)
        deadline = threading.Timer(GRACE_S, os._exit, (128 + number,))
        deadline.daemon = True
        deadline.start()
        raise SystemExit(128 + number)
