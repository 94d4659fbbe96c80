"""What the agent costs: our CPU per step beside the bare SDK's, 256 episodes at once, memory over a thousand.

    .venv/bin/python benchmarks/agent.py [--steps 30] [--rounds 5] [--concurrent 256] [--processes 4] [--episodes 1000]

A part is left out with 0.

Both sides play the same script with the same answers of 2 kB: the bare SDK with a stub model and a stub tool in its own
LocalConversation, ours with a stub policy and a stub sandbox, and Qwen3's real tokenizer and template.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tools.file_editor import SandboxEditorAction
from skyrl_stack.agent.tools.terminal import SandboxTerminalAction
from skyrl_stack.agent_section import AgentSection
from skyrl_stack.sandbox.contract import CommandResult

from litellm import ChatCompletionMessageToolCall  # isort: skip
from litellm.types.utils import Choices, Function, Message, ModelResponse
from openhands.sdk import LLM, Agent, LocalConversation, Tool
from openhands.sdk.tool import Action, Observation, ToolDefinition, ToolExecutor, register_tool
from pydantic import PrivateAttr

from tokenizers_npm import real_tokenizer

ANSWER = Path(json.__file__).read_text()[:2000]
THOUGHT = "I look at the next file, since the error that was reported has to come from there."


def calls(steps: int) -> Iterator[tuple[str, dict[str, str]]]:
    yield from (("terminal", {"command": f"cat src/file_{number}.py"}) for number in range(steps - 1))
    yield "finish", {"message": "done"}


class StubSandbox:
    id = "stub"

    async def run(self, command: str, **_: Any) -> CommandResult:
        return CommandResult(exit_code=0, stdout=ANSWER, stderr="")


class StubPolicy:
    """Ids that were tokenised before, as an engine gives them, after `latency_s`."""

    def __init__(self, turns: list[list[int]], latency_s: float = 0.0) -> None:
        self.turns = iter(turns)
        self.latency_s = latency_s

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        ids = next(self.turns)
        return Completion(ids, [-0.5] * len(ids), "stop")


def turns(tokenizer: Any, steps: int) -> list[list[int]]:
    texts = (f"{THOUGHT}\n{render_call(name, **arguments)}" for name, arguments in calls(steps))
    return [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]


async def ours(tokenizer: Any, script: list[list[int]], latency_s: float = 0.0) -> None:
    done = await attempt(
        "f() is wrong",
        sandbox=StubSandbox(),  # type: ignore[arg-type]
        workdir="/testbed",
        policy=StubPolicy(script, latency_s),
        tokenizer=tokenizer,
        limits=AgentSection(max_steps=1000, observation_limit_chars=10_000, episode_timeout_s=3600),
        context_tokens=1_000_000,
    )
    assert done.turns == len(script), done.ending


class StubObservation(Observation):
    pass


class StubExecutor(ToolExecutor[Action, StubObservation]):
    def __call__(self, action: Action, conversation: Any = None) -> StubObservation:
        return StubObservation.from_text(ANSWER)


def stub_tool(tool_name: str, action: type[Action]) -> type[ToolDefinition]:
    """A tool of the bare SDK with the schema of ours."""

    class StubTool(ToolDefinition[Action, StubObservation]):
        name: ClassVar[str] = tool_name

        @classmethod
        def create(cls, conv_state: Any) -> list[Any]:
            made = cls(
                description="Do it.", action_type=action, observation_type=StubObservation, executor=StubExecutor()
            )
            return [made]

    return StubTool


class StubLLM(LLM):
    _script: Any = PrivateAttr()

    def _transport_call(self, **_: Any) -> ModelResponse:
        name, arguments = next(self._script)
        function = Function(name=name, arguments=json.dumps(arguments))
        call = ChatCompletionMessageToolCall(id=f"call-{os.urandom(8).hex()}", type="function", function=function)
        message = Message(role="assistant", content=THOUGHT, tool_calls=[call])
        return ModelResponse(choices=[Choices(index=0, finish_reason="tool_calls", message=message)])


def bare(steps: int, directory: str) -> None:
    llm = StubLLM(
        model="openai/stub",
        num_retries=0,
        max_input_tokens=1_000_000,
        caching_prompt=False,
        input_cost_per_token=0.0,
        output_cost_per_token=0.0,
    )
    llm._script = calls(steps)
    agent = Agent(
        llm=llm,
        tools=[Tool(name="stub_terminal"), Tool(name="stub_editor")],
        include_default_tools=["FinishTool"],
        system_prompt="You fix issues in a Python repository at /testbed.",
    )
    conversation = LocalConversation(
        agent=agent, workspace=directory, visualizer=None, max_iteration_per_run=1000, stuck_detection=False
    )
    conversation.send_message("f() is wrong")
    conversation.run()
    conversation.close()


def cpu_per_step(work: Any, steps: int) -> float:
    """Milliseconds of CPU of this process per step."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / steps * 1000


def side_by_side(tokenizer: Any, steps: int, rounds: int) -> None:
    register_tool("stub_terminal", stub_tool("terminal", SandboxTerminalAction))
    register_tool("stub_editor", stub_tool("file_editor", SandboxEditorAction))
    script = turns(tokenizer, steps)
    results: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(rounds + 1):
            measured = {
                "bare": cpu_per_step(lambda: bare(steps, directory), steps),
                "ours": cpu_per_step(lambda: asyncio.run(ours(tokenizer, script)), steps),
            }
            for name, value in measured.items() if number else ():  # the first round warms both
                results[name].append(value)
    medians = {name: statistics.median(values) for name, values in results.items()}
    for name, values in results.items():
        print(f"{name}: {medians[name]:.1f} ms CPU/step ({min(values):.1f}-{max(values):.1f}, {rounds} rounds)")
    print(f"ours / bare: {medians['ours'] / medians['bare']:.2f}", flush=True)


async def lag(longest: list[float]) -> None:
    """Notes the longest time for which the event loop did not come back."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.01)
        longest[0] = max(longest[0], time.monotonic() - before - 0.01)


@dataclass(frozen=True)
class Load:
    """What one process did with its share of the episodes."""

    wall_s: float
    cpu_s: float
    longest_lag_s: float


async def at_once(tokenizer: Any, count: int, steps: int, latency_s: float) -> Load:
    script, longest = turns(tokenizer, steps), [0.0]
    watch = asyncio.create_task(lag(longest))
    wall, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(ours(tokenizer, script, latency_s) for _ in range(count)))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    watch.cancel()
    return Load(wall, cpu, longest[0])


def share(count: int, steps: int, latency_s: float) -> Load:
    """One process's, after it has imported and tried out everything."""
    tokenizer = real_tokenizer("qwen3")
    asyncio.run(at_once(tokenizer, 1, 2, 0.0))
    return asyncio.run(at_once(tokenizer, count, steps, latency_s))


def sharded(count: int, processes: int, steps: int, latency_s: float) -> None:
    """As verl's agent loop workers: `trainer/ranks.py` gives each process 64 episodes."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        shares = [pool.submit(share, count // processes, steps, latency_s) for _ in range(processes)]
        loads = [each.result() for each in shares]
    wall, cpu = max(load.wall_s for load in loads), sum(load.cpu_s for load in loads)
    lags = ", ".join(f"{load.longest_lag_s * 1000:.0f}" for load in loads)
    print(f"{count} episodes at once in {processes} processes, {steps} steps, {latency_s:g} s of model each:", end=" ")
    print(f"{wall:.1f} s wall, {cpu / count / steps * 1000:.1f} ms CPU/step,", end=" ")
    print(f"{count * steps / wall:.0f} steps/s, longest loop lag {lags} ms", flush=True)


async def one_after_another(tokenizer: Any, count: int, steps: int, side_by_side: int = 10) -> None:
    script = turns(tokenizer, steps)
    for done in range(side_by_side, count + 1, side_by_side):
        await asyncio.gather(*(ours(tokenizer, script) for _ in range(side_by_side)))
        if done in {count // 10, count // 2, count}:
            print(f"after {done} episodes: {resident_mb():.0f} MB resident", flush=True)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=256)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=1000)
    options = parser.parse_args()
    qwen = real_tokenizer("qwen3")
    if options.rounds:
        side_by_side(qwen, options.steps, options.rounds)
    if options.concurrent:
        for number in sorted({1, options.processes} - {0}):
            sharded(options.concurrent, number, 10, 0.5)
    if options.episodes:
        asyncio.run(one_after_another(qwen, options.episodes, 5))
