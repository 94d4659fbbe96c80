"""Images on their way to a node: in what order, how often, and what those hear who wait."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from skyrl_stack.errors import SandboxLost, SetupError
from skyrl_stack.sandbox.supply import Supply


class Store:
    """Has what was brought, in order. The first image takes until `opened`."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.opened = asyncio.Event()

    async def bring(self, reference: str) -> None:
        self.brought.append(reference)
        await self.opened.wait()
        if reference == "none":
            raise SetupError("no such image")


def ended(scene: Callable[[Store, Supply], Awaitable[None]]) -> list[str]:
    """What was brought in a scene."""

    async def run() -> list[str]:
        store = Store()
        supply = Supply(store.bring)
        try:
            await scene(store, supply)
        finally:
            await supply.close()
        return store.brought

    return asyncio.run(asyncio.wait_for(run(), 10))


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - of the store there is no event
        await asyncio.sleep(0)


def test_an_image_comes_once_however_many_wait() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        waiting = asyncio.gather(*(supply.need("a") for _ in range(3)))
        await until(lambda: store.brought)
        store.opened.set()
        await waiting

    assert ended(scene) == ["a"]


def test_what_is_needed_comes_before_what_is_announced() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        supply.announce(["a", "b", "c"])
        await until(lambda: store.brought)
        waiting = asyncio.gather(supply.need("d"), supply.need("a"), supply.need("c"))
        await asyncio.sleep(0)
        store.opened.set()
        await waiting
        await until(lambda: len(store.brought) == 4)

    assert ended(scene) == ["a", "d", "c", "b"]


def test_a_new_announcement_takes_the_place_of_the_old() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        supply.announce(["a", "b"])
        await until(lambda: store.brought)
        supply.announce(["c"])
        store.opened.set()
        await until(lambda: len(store.brought) == 2)

    assert ended(scene) == ["a", "c"]


def test_what_cannot_be_had_is_said_to_those_who_need_it_and_keeps_nobody_else() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        store.opened.set()
        supply.announce(["none"])
        failed, came = await asyncio.gather(supply.need("none"), supply.need("a"), return_exceptions=True)
        assert isinstance(failed, SetupError)
        assert came is None
        with pytest.raises(SetupError, match="no such image"):  # another try is another try
            await supply.need("none")

    assert ended(scene)[-1] == "none"


def test_one_who_gives_up_takes_it_from_nobody() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        waiting = [asyncio.create_task(supply.need("a")) for _ in range(2)]
        await until(lambda: store.brought)
        waiting[0].cancel()
        await asyncio.sleep(0)
        store.opened.set()
        await waiting[1]

    assert ended(scene) == ["a"]


def test_who_waits_at_the_end_is_told() -> None:
    async def scene(store: Store, supply: Supply) -> None:
        waiting = asyncio.create_task(supply.need("a"))
        await until(lambda: store.brought)
        await supply.close()
        with pytest.raises(SandboxLost, match="closed"):
            await waiting

    assert ended(scene) == ["a"]
