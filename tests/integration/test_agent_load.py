"""Hundreds of episodes in one process: the event loop stays free, whatever their conversations compute."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from attempting import TASK, TOKENIZER, Idle, attempted

from skyrl_stack.agent import heap, turns
from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.codeact import OHCodeActAgent
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory

TEXTS = [render_call("terminal", command="cat a.py"), render_call("finish", message="done")]
SCRIPT = [[*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id] for text in TEXTS]
NOT_ON_THE_LOOP = ("openhands/sdk/agent", "openhands/sdk/conversation", "litellm", "transformers", "jinja2")
"Packages that compute for milliseconds at a time. A tool's observation is small, and made on the loop."
WAITING = {"sleep", "fsync", "open", "rename"}
"C functions that wait for a clock or a file system."


class Recorded:
    """What an engine gave: ids, after a moment."""

    def __init__(self, moment: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.turns = iter(SCRIPT)
        self.moment = moment

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        await self.moment(0.01)
        ids = next(self.turns)
        return Completion(ids, [-0.5] * len(ids), "stop")


@contextmanager
def watched() -> Iterator[set[str]]:
    """What this thread, the event loop's, calls in the block of what it should not."""
    seen: set[str] = set()
    packages = tuple(f"/site-packages/{package}/" for package in NOT_ON_THE_LOOP)

    def look(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in WAITING:
            seen.add(f"{called.__name__} by {frame.f_code.co_filename}:{frame.f_lineno}")
        elif event == "call" and any(package in frame.f_code.co_filename for package in packages):
            seen.add(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

    gc.disable()  # it comes on any thread, and ends conversations of before
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        gc.enable()


def test_the_event_loop_neither_computes_for_openhands_nor_waits_for_files(tmp_path: Path) -> None:
    """No clock in it: every call of the loop's own thread is looked at."""
    directory = RunDirectory.create(tmp_path, Profile(name="test"))

    async def play(repetition: int) -> None:
        await run_episode(
            TASK,
            policy=Recorded(),
            tokenizer=TOKENIZER,
            sandboxes=Idle(),  # type: ignore[arg-type]
            profile=Profile(name="test"),
            directory=directory,
            step=1,
            repetition=repetition,
        )

    async def played() -> set[str]:
        with watched() as seen:
            await asyncio.gather(*(play(repetition) for repetition in range(4)))
        return seen

    assert asyncio.run(played()) == set()
    assert len(list(directory.episodes.glob("*.json"))) == 4


def test_what_would_block_the_loop_is_seen() -> None:
    with watched() as seen:
        time.sleep(0)
        TOKENIZER.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    assert any(call.startswith("sleep by") for call in seen)
    assert any("jinja2" in call for call in seen)


async def play_at_once(
    episodes: int, agent: str = "", moment: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    limits = AgentSection(agent_class=agent) if agent else AgentSection()
    attempts = (
        attempt(
            "f() is wrong",
            sandbox=Idle(),  # type: ignore[arg-type]
            workdir="/",
            policy=Recorded(moment),
            tokenizer=TOKENIZER,
            limits=limits,
            context_tokens=50_000,
        )
        for _ in range(episodes)
    )
    await asyncio.gather(*attempts)


def mean_lag(gaps: list[float]) -> float:
    """Seconds that somebody waits who comes at any moment."""
    return sum(gap * gap for gap in gaps) / 2 / sum(gaps)


async def lag_of_the_loop(work: Awaitable[None]) -> float:
    """The event loop's mean lag during `work`, in those of a thread beside it, which the machine keeps waiting too."""
    loops, threads, over = [0.0], [0.0], threading.Event()

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            loops.append(time.monotonic() - before)

    def beside() -> None:
        while not over.is_set():
            before = time.monotonic()
            time.sleep(0.005)
            threads.append(time.monotonic() - before)

    thread, watching = threading.Thread(target=beside), asyncio.create_task(watch())
    thread.start()
    await work
    watching.cancel()
    over.set()
    thread.join()
    return mean_lag(loops) / mean_lag(threads)


def blocking(seconds: float) -> Awaitable[None]:
    time.sleep(20 * seconds)
    return asyncio.sleep(0)


def test_the_lag_of_the_loop_is_that_of_a_thread_beside_it() -> None:
    """However busy the machine is: both wait for it. One or two is usual, and hundreds where the loop is blocked."""
    assert asyncio.run(lag_of_the_loop(play_at_once(32))) < 10
    assert asyncio.run(lag_of_the_loop(play_at_once(8, moment=blocking))) > 10


class Crowd:
    """How many are in a place at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def come(self, change: int) -> None:
        with self.lock:
            self.now += change
            self.most = max(self.most, self.now)


CROWD = Crowd()


class Crowding(OHCodeActAgent):
    """Its computing takes a while, in which other threads may run."""

    def step(self, *args: Any, **options: Any) -> None:
        CROWD.come(1)
        time.sleep(0.005)
        CROWD.come(-1)
        super().step(*args, **options)


@pytest.mark.parametrize(("at_once", "alone"), [(turns.AT_ONCE, True), (1000, False)])
def test_conversations_that_begin_at_once_take_turns(
    monkeypatch: pytest.MonkeyPatch, at_once: int, alone: bool
) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", at_once)
    monkeypatch.setattr(turns, "PATIENCE_S", 3600.0)
    monkeypatch.setattr(sys.modules[__name__], "CROWD", Crowd())
    asyncio.run(play_at_once(16, agent=f"{__name__}:Crowding"))
    assert (CROWD.most == 1) is alone


def test_full_collections_pass_over_what_was_imported() -> None:
    """They stop every thread. Torch, transformers, litellm and OpenHands make 600,000 objects."""
    gc.unfreeze()
    heap.exempt_imports.cache_clear()
    attempted([render_call("finish", message="done")])
    seen, passed_over = len(gc.get_objects()), gc.get_freeze_count()
    assert seen < passed_over / 10
