"""How tests play an attempt or an episode without a sandbox: what stands in its place answers by the test's words."""

import asyncio
from typing import Any

from qwen3 import small_tokenizer
from skyrl_stack.agent.attempt import Attempt, attempt
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.sandbox.contract import CommandResult
from toys import toy_task

TOKENIZER = small_tokenizer()
TASK = toy_task()


class Answering:
    """A sandbox at the border of a test: each command prints the next of `words`, or raises it."""

    id = "answering"

    def __init__(self, *words: str | CommandResult | Exception) -> None:
        self.words = list(words)
        self.commands: list[str] = []

    async def run(self, command: str, **_: Any) -> CommandResult:
        self.commands.append(command)
        word = self.words.pop(0) if self.words else "nothing more"
        if isinstance(word, Exception):
            raise word
        return word if isinstance(word, CommandResult) else CommandResult(exit_code=0, stdout=word, stderr="")


def attempted(
    script: list[str], *, sandbox: Any = None, workdir: str = "/testbed", context_tokens: int = 50_000, **agent: Any
) -> Attempt:
    limits = AgentSection.model_validate({"tell_at": (), "tools": ("terminal", "think", "finish")} | agent)
    policy = ScriptedPolicy(script, TOKENIZER)
    return asyncio.run(
        attempt(
            "f() is wrong",
            sandbox=sandbox or Answering(),
            workdir=workdir,
            policy=policy,
            tokenizer=TOKENIZER,
            limits=limits,
            context_tokens=context_tokens,
        )
    )


class Idle:
    """A sandbox at the border of a test, in which nothing happens; also its provider, which counts."""

    id = "idle"

    def __init__(self) -> None:
        self.starts = 0

    async def start(self, _: Any) -> "Idle":
        self.starts += 1
        return self

    async def run(self, command: str, **_: Any) -> CommandResult:
        return CommandResult(exit_code=0, stdout="x = 1\n" * 50, stderr="")

    async def read_file(self, _: str) -> bytes:
        return b""

    async def stop(self) -> None:
        pass
