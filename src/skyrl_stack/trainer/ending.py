"""How the trainer ends before its work is done: at once, or at the end of the step in hand.

SIGTERM, the other role       at once: an exception in the main thread, so that everything is closed in order; if
or a node of its own is lost  that takes too long the process ends, and Ray's with it (the kernel kills them)
                              after the loss of a node it is to be started again, where a run goes on by itself:
                              also if its clean-up took too long, as it may without that node
SIGUSR1                       asked to leave: the step in hand is finished and saved first (`task_runner.py`)
a time limit                  leaves by itself when the next step would not end before it
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, NoReturn, Self

from skyrl_stack.errors import NodeLost, PeerLost, StackError

GRACE_S = 12.0
EXIT_LEFT = 75
"Exit code of a trainer that is to be started again, for its run can go on: sysexits' EX_TEMPFAIL."
LEAVE_BY_VARIABLE = "SKYRL_LEAVE_BY"
"Seconds since the epoch: by when the process must have ended. Unset without a time limit."
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Departure:
    """When to leave. Made by the trainer's process, and asked after each step by the one of its node that runs verl."""

    asked: Path
    "Exists as soon as somebody asked, or it is time."
    leave_by: float | None
    "Seconds since the epoch; None without a time limit."
    notice_s: float

    def after_step(self, now: float, longest_step_s: float) -> Literal["go on", "save", "leave"]:
        """What to do before another step, which is expected to take as long as the longest so far.

        In the last steps before the limit each is saved, whatever `trainer.save_every` says: if the next takes
        longer than it should and is cut off, it alone is lost.
        """
        if self.asked.exists():
            return "leave"
        if self.leave_by is None:
            return "go on"
        left_s = self.leave_by - now
        if left_s < longest_step_s:
            return "leave"
        return "save" if left_s < longest_step_s + self.notice_s else "go on"


class Ending:
    """Inside the block, which is the main thread's, a signal raises SystemExit, a lost peer or node a StackError.

    Where the trainer `comes_back`, the loss of a node is no failure: the block ends by SystemExit with EXIT_LEFT.
    """

    def __init__(self, *, comes_back: bool = False) -> None:
        self._comes_back = comes_back
        self._cause: StackError | None = None
        self._signal = 0
        self._asked: Path | None = None

    def __enter__(self) -> Self:
        self.take_signals()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        told = self._signal and isinstance(error, SystemExit)
        cause = self._cause if told else error
        if self._is_to_come_back(cause):
            raise SystemExit(EXIT_LEFT) from None
        if told and self._cause:
            raise self._cause from None
        if told:
            raise SystemExit(128 + self._signal) from None  # Ray hands on that there was one, but not its code

    def take_signals(self) -> None:
        """Handle the signals here; again after a library has put its own handlers in place."""
        for number in _SIGNALS:
            signal.signal(number, self._end)
        signal.signal(signal.SIGUSR1, self._leave)

    def after_steps(self, asked: Path) -> None:
        """From now on there may be a step in hand: who is asked to leave makes the file `asked` and goes on."""
        self._asked = asked

    def peer_lost(self, reason: str) -> None:
        """End the block by PeerLost. From any thread."""
        self._end_by(PeerLost(reason))

    def node_lost(self, reason: str) -> None:
        """End the block by NodeLost. From any thread."""
        self._end_by(NodeLost(reason))

    def _end_by(self, cause: StackError) -> None:
        self._cause = cause
        os.kill(os.getpid(), signal.SIGTERM)

    def _is_to_come_back(self, cause: BaseException | None) -> bool:
        if not (isinstance(cause, NodeLost) and self._comes_back):
            return False
        print(f"trainer: {cause}; it is to be started again", file=sys.stderr, flush=True)
        return True

    def _cut_short(self, code: int) -> None:
        os._exit(EXIT_LEFT if self._is_to_come_back(self._cause) else code)

    def _leave(self, _: int, __: FrameType | None) -> None:
        if self._asked is None:
            raise SystemExit(EXIT_LEFT)
        self._asked.touch()

    def _end(self, number: int, _: FrameType | None) -> NoReturn:
        self._signal = number
        for each in _SIGNALS:  # a second one must not cut the clean-up short; it is bounded in time
            signal.signal(each, signal.SIG_IGN)
        deadline = threading.Timer(GRACE_S, self._cut_short, (128 + number,))
        deadline.daemon = True
        deadline.start()
        raise SystemExit(128 + number)
