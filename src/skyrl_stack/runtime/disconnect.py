"""A client that went away: what was being done for it is cancelled, so that it holds neither a place nor a shell."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import Request

from skyrl_stack.runtime.wire import Conflict

_INTERVAL_S = 0.5


async def unless_disconnected[T](request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Result of `work`, which is cancelled when the client of `request` is gone. Read the body before.

    Raises:
        Conflict: the client is gone; nobody reads this.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=_INTERVAL_S))[0]:
            if await request.is_disconnected():
                raise Conflict("the client went away")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
