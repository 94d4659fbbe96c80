"""The one door from a conversation's thread to the event loop, where sandboxes and the model are."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, Literal

from skyrl_stack.agent.outcome import Ending, Outcome
from skyrl_stack.agent.turns import TURNS

Stage = Literal["model", "tools"]


class Halted(Exception):
    """The episode is over: the conversation has to stop. Why is `Bridge.ending`."""

    def __init__(self) -> None:
        super().__init__("the episode is over")  # constant: OpenHands guesses the kind of an error from its text


class Bridge:
    """Runs coroutines of one episode on the loop, for its conversation's thread.

    OpenHands turns every exception of a tool into a message to the policy and goes on. So the first one is
    kept here as the episode's ending, and from then on nothing passes: the next call of the model stops the run.
    The same door enforces the wall time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, timeout_s: float) -> None:
        self._loop = loop
        self._deadline = time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._running: set[Future[Any]] = set()
        self.ending: Ending | BaseException | None = None
        "Why the episode is over, if that was decided outside of OpenHands."
        self.seconds: dict[Stage, float] = {"model": 0.0, "tools": 0.0}

    def call[T](self, stage: Stage, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it; its time is counted under `stage`.

        Raises:
            Halted: the episode is over, or this call ended it.
        """
        started = time.monotonic()
        future = self._submit(work)
        with TURNS.given_up():
            done, _ = wait([future], timeout=max(0.0, self._deadline - started))
            self.seconds[stage] += time.monotonic() - started
        self._running.discard(future)
        if not done:
            future.cancel()
            self.end(Ending(outcome=Outcome.TIMED_OUT))
            raise Halted
        if future.cancelled():
            self.end(asyncio.CancelledError())
            raise Halted
        if error := future.exception():
            self.end(error)
            raise Halted from error
        return future.result()

    def end(self, ending: Ending | BaseException) -> None:
        """Let nothing pass any more, and cancel what is under way. The first ending stays."""
        with self._lock:
            self.ending = self.ending or ending
            running = list(self._running)
        for future in running:
            future.cancel()

    def _submit[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self.ending is None:
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
                self._running.add(future)
                return future
        work.close()
        raise Halted
