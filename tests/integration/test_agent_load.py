"""Hundreds of episodes in one process: the event loop stays free, whatever their conversations compute."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from attempting import TASK, TOKENIZER, Idle

from skyrl_stack.agent import turns
from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.calls import render_call
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

    def __init__(self) -> None:
        self.turns = iter(SCRIPT)

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        await asyncio.sleep(0.01)
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

    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(None)


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


async def mean_lag(episodes: int) -> float:
    """Seconds for which the loop would have kept somebody waiting who came at any moment of these episodes."""
    gaps = [0.0]

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)

    async def play() -> None:
        await attempt(
            "f() is wrong",
            sandbox=Idle(),  # type: ignore[arg-type]
            workdir="/",
            policy=Recorded(),
            tokenizer=TOKENIZER,
            limits=AgentSection(),
            context_tokens=50_000,
        )

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(play() for _ in range(episodes)))
    watching.cancel()
    return sum(gap * gap for gap in gaps) / 2 / sum(gaps)


def test_conversations_that_begin_at_once_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the same without turns, in the same minute of the same machine. Tenfold is usual; half is asked."""
    ratios = []
    for _ in range(3):
        in_turns = asyncio.run(mean_lag(32))
        with monkeypatch.context() as patch:
            patch.setattr(turns, "AT_ONCE", 1000)
            all_at_once = asyncio.run(mean_lag(32))
        ratios.append(in_turns / all_at_once)
        if ratios[-1] < 0.5:
            break
    assert min(ratios) < 0.5, ratios
