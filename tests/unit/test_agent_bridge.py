"""The door between a conversation's thread and the event loop."""

import asyncio
from collections.abc import Callable

import pytest

from skyrl_stack.agent.bridge import Bridge, Halted
from skyrl_stack.agent.outcome import Ending, Outcome
from skyrl_stack.errors import SandboxLost


async def answer() -> int:
    await asyncio.sleep(0.01)
    return 42


async def lose() -> int:
    raise SandboxLost("gone")


def through(work: Callable[[Bridge], object], *, timeout_s: float = 60.0) -> tuple[object, Bridge]:
    """What `work` returns or raises in a thread of its own, and the bridge after it."""

    async def run() -> tuple[object, Bridge]:
        bridge = Bridge(asyncio.get_running_loop(), timeout_s=timeout_s)
        try:
            return await asyncio.to_thread(work, bridge), bridge
        except Halted as halted:
            return halted, bridge

    return asyncio.run(run())


def test_brings_back_the_result_and_counts_the_time_by_stage() -> None:
    result, bridge = through(lambda bridge: bridge.call("tools", answer()))
    assert result == 42
    assert bridge.ending is None
    assert bridge.seconds["tools"] >= 0.01
    assert bridge.seconds["model"] == 0.0


def test_the_first_failure_is_kept_and_nothing_passes_after_it() -> None:
    ran: list[str] = []

    async def later() -> None:
        ran.append("later")

    def work(bridge: Bridge) -> None:
        with pytest.raises(Halted):
            bridge.call("tools", lose())
        with pytest.raises(Halted):
            bridge.call("model", later())

    _, bridge = through(work)
    assert isinstance(bridge.ending, SandboxLost)
    assert ran == []


def test_the_wall_time_ends_a_call_that_does_not_return() -> None:
    cancelled: list[bool] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    result, bridge = through(lambda bridge: bridge.call("model", hang()), timeout_s=0.05)
    assert isinstance(result, Halted)
    assert bridge.ending == Ending(outcome=Outcome.TIMED_OUT)
    assert cancelled == [True]


def test_a_timeout_error_of_the_work_itself_is_a_failure_and_no_outcome() -> None:
    async def time_out() -> None:
        raise TimeoutError("the engine said so")

    _, bridge = through(lambda bridge: bridge.call("model", time_out()))
    assert isinstance(bridge.ending, TimeoutError)


def test_an_end_from_outside_frees_the_thread() -> None:
    async def run() -> Bridge:
        bridge = Bridge(asyncio.get_running_loop(), timeout_s=60)
        thread = asyncio.create_task(asyncio.to_thread(bridge.call, "tools", asyncio.sleep(3600)))
        await asyncio.sleep(0.05)
        bridge.end(Ending(outcome=Outcome.TIMED_OUT))
        with pytest.raises(Halted):
            await asyncio.wait_for(thread, 5)
        return bridge

    assert asyncio.run(run()).ending == Ending(outcome=Outcome.TIMED_OUT)
