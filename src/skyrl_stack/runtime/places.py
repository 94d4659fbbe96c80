"""Places: how many sandboxes may live at once, and the queue of starts that wait for one, each with its deadline."""

import asyncio
import time

from skyrl_stack.runtime.wire import Full


class Places:
    """`capacity` places, given in the order in which they were asked for."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = asyncio.Semaphore(capacity)
        self._queue: dict[object, float] = {}
        "When each that waits began to, the first one first."

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def oldest_wait_s(self) -> float:
        """How long the first in the queue has waited; 0 where nobody waits."""
        return time.monotonic() - next(iter(self._queue.values())) if self._queue else 0.0

    async def take(self, wait_s: float) -> float:
        """Wait for a place; returns for how many seconds.

        Raises:
            Full: none became free within `wait_s`.
        """
        me, began = object(), time.monotonic()
        self._queue[me] = began
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise Full(
                f"no place for another sandbox within {wait_s:g} s: runtime.max_sandboxes = {self.capacity} are alive"
            ) from error
        finally:
            del self._queue[me]
        return time.monotonic() - began

    def give_back(self) -> None:
        self._free.release()
