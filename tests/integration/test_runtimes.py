"""Several runtimes of one run: real processes that join, are killed and start again, and episodes over all of them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from a_runtime import kill_server_of, server_of
from playing import TOKENIZER, profile

from lanes import sweeping_alone
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import SandboxLost, SandboxStartFailed
from skyrl_stack.launch import processes
from skyrl_stack.presence import Watch
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.report import read_episodes
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RemoteSandbox
from skyrl_stack.runtime.dispatch import Runtimes
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.sweep import sweep
from skyrl_stack.tasks.task import Task

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(240)]

FINISH = render_call("finish", message="done")


class Run:
    """A run directory, and the runtimes that were started in it."""

    def __init__(self, root: Path, peer_timeout_s: float) -> None:
        sections = {
            "run": {"peer_timeout_s": peer_timeout_s},
            "runtime": {"max_sandboxes": 2},
            "trainer": {"concurrent_episodes": 2},
        }
        self.profile = Profile.model_validate(profile().model_dump() | sections)
        self.directory = RunDirectory.create(root, self.profile)
        self.launch = Launch()
        publish(self.directory.launch_file, self.launch)
        self.runtimes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, instance: int, restart: int = 0) -> None:
        """A runtime, as Slurm would start it."""
        variables = {"SLURM_ARRAY_TASK_ID": str(instance), "SLURM_RESTART_COUNT": str(restart)}
        with (self.directory.logs / f"runtime-{instance}.{restart}").open("wb") as log:
            self.runtimes[instance] = subprocess.Popen(
                [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(self.directory.path)],
                env=os.environ | variables | {processes.LAUNCH_VARIABLE: self.launch.launch_id},
                stdout=log,
                stderr=log,
            )

    async def ready(self, *instances: int) -> None:
        def all_ready() -> bool:
            ready = {i for i, beat in self.directory.heartbeats("runtime").items() if beat.state == "ready"}
            return ready >= set(instances)

        await eventually(all_ready, 40)

    def kill(self, instance: int) -> None:
        process = self.runtimes.pop(instance)
        process.kill()
        process.wait()

    async def play(self, task: Task, policy: ScriptedPolicy, sandboxes: Runtimes) -> Episode:
        return await run_episode(
            task,
            policy=policy,
            tokenizer=TOKENIZER,
            sandboxes=sandboxes,
            profile=self.profile,
            directory=self.directory,
            step=1,
            repetition=0,
        )


class Interfering(ScriptedPolicy):
    """Solves the task; something happens before its first word, once all others that share `together` are as far."""

    def __init__(
        self, task: Task, happens: Callable[[], object] = lambda: None, together: asyncio.Barrier | None = None
    ) -> None:
        fix = render_call("terminal", command=f"git apply - <<'PATCH'\n{task.patch}PATCH")
        super().__init__([fix, FINISH], TOKENIZER)
        self.happens = happens
        self.together = together

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        if self.together:
            await self.together.wait()
            self.together = None
        self.happens()
        self.happens = lambda: None
        await asyncio.sleep(0.1)  # so that this process has seen what became of its connections
        return await super().sample(prompt_ids, max_tokens=max_tokens)


async def eventually(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def task(inflection_tasks: list[Task]) -> Task:
    return inflection_tasks[0]


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    run = Run(tmp_path, getattr(request, "param", 6))
    yield run
    for process in run.runtimes.values():
        process.terminate()
    for process in run.runtimes.values():
        assert process.wait(30) == 0
    assert processes.survivors(run.launch.launch_id) == []
    with sweeping_alone():
        sweep()


@pytest.fixture
async def sandboxes(run: Run) -> AsyncIterator[Runtimes]:
    async with Runtimes(run.directory) as sandboxes:
        yield sandboxes


def places(sandboxes: list[RemoteSandbox]) -> list[int]:
    """How many of the sandboxes are at each runtime, the most first."""
    clients: list[Any] = [sandbox._runtime for sandbox in sandboxes]
    return sorted((clients.count(client) for client in set(clients)), reverse=True)


async def test_starts_go_where_there_is_room_and_to_who_joins(run: Run, sandboxes: Runtimes, task: Task) -> None:
    run.start(0)
    run.start(1)
    spec = SandboxSpec(image=task.image)
    await run.ready(0, 1)
    started = [await sandboxes.start(spec) for _ in range(4)]
    assert places(started) == [2, 2]
    waiting = [asyncio.create_task(sandboxes.start(spec)) for _ in range(2)]
    await asyncio.sleep(3)
    assert not any(start.done() for start in waiting)
    run.start(2)
    started += await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert places(started) == [2, 2, 2]
    load = [beat.load for beat in run.directory.heartbeats("runtime").values()]
    assert all(each and each.capacity == 2 for each in load)
    await started[0].stop()
    started[0] = await asyncio.wait_for(sandboxes.start(spec), 30)
    assert places(started) == [2, 2, 2]
    with pytest.raises(SandboxStartFailed, match="no/such"):
        await started[1].stop()
        await asyncio.wait_for(sandboxes.start(SandboxSpec(image="localhost/no/such:1")), 60)
    await asyncio.gather(*(sandbox.stop() for sandbox in started))


async def test_the_end_of_one_of_two_costs_its_episodes_and_no_more(run: Run, sandboxes: Runtimes, task: Task) -> None:
    run.start(0)
    run.start(1)
    await run.ready(0, 1)
    watch = Watch(run.directory, "runtime", run.profile.run.peer_timeout_s)
    victim = (set(run.runtimes), await sandboxes.start(SandboxSpec(image=task.image)))[1]
    instance = next(i for i, each in sandboxes._runtimes.items() if each.client is victim._runtime)
    await victim.stop()
    together = asyncio.Barrier(4)  # all four places are taken
    results = await asyncio.gather(
        *(run.play(task, Interfering(task, together=together), sandboxes) for _ in range(3)),
        run.play(task, Interfering(task, lambda: run.kill(instance), together), sandboxes),
        return_exceptions=True,
    )
    assert len([result for result in results if isinstance(result, SandboxLost)]) == 2, results
    assert [result.reward for result in results if isinstance(result, Episode)] == [1.0, 1.0]
    assert [episode.reward for episode in read_episodes(run.directory) if episode.error] == [None, None]
    assert (await run.play(task, Interfering(task), sandboxes)).reward == 1.0
    await eventually(lambda: len(watch.living()) == 1, 20)
    assert watch.lost() is None


@pytest.mark.parametrize("run", [60], indirect=True)
async def test_the_death_of_a_server_costs_no_episode(run: Run, sandboxes: Runtimes, task: Task) -> None:
    run.start(0)
    await run.ready(0)
    keeper = run.runtimes[0].pid
    played = await run.play(task, Interfering(task, lambda: kill_server_of(keeper)), sandboxes)
    assert played.reward == 1.0


async def test_a_runtime_that_starts_again_is_found(run: Run, sandboxes: Runtimes, task: Task) -> None:
    run.start(0)
    await run.ready(0)
    with pytest.raises(SandboxLost):
        await run.play(task, Interfering(task, lambda: run.kill(0)), sandboxes)
    waiting = asyncio.create_task(run.play(task, Interfering(task), sandboxes))
    await asyncio.sleep(8)  # longer than its silence is taken for life
    assert not waiting.done()
    run.start(0, restart=1)
    assert (await asyncio.wait_for(waiting, 60)).reward == 1.0


async def test_a_call_to_a_node_that_fell_silent_ends_with_its_heartbeat(
    run: Run, sandboxes: Runtimes, task: Task
) -> None:
    run.start(0)
    await run.ready(0)
    sandbox = await sandboxes.start(SandboxSpec(image=task.image))
    call = asyncio.create_task(sandbox.run("sleep 200", timeout_s=300))
    await asyncio.sleep(1)
    server = server_of(run.runtimes[0].pid)
    os.kill(server, signal.SIGSTOP)  # as a node without power: nothing answers, nothing is refused
    with pytest.raises(SandboxLost, match="is gone"):
        await asyncio.wait_for(call, 30)
    os.kill(server, signal.SIGCONT)
