"""A runtime that serves several trainers of other launches: real processes, real episodes, and sandboxes that do not
outlive the trainer that they are for."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from a_runtime import server_of
from playing import TOKENIZER, profile

from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.errors import PeerLost, ProfileError
from skyrl_stack.factory.make import write_tasks
from skyrl_stack.node import LAUNCH_VARIABLE
from skyrl_stack.presence import Watch
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime import external
from skyrl_stack.runtime.dispatch import Runtimes
from skyrl_stack.runtime.external import ExternalRuntime
from skyrl_stack.runtime.stand_in import standing_in
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.sweep import sweep
from skyrl_stack.tasks.task import Task, read_tasks

pytestmark = [pytest.mark.podman, pytest.mark.timeout(240)]

PEER_TIMEOUT_S = 5.0
TRAINER = """
import asyncio, sys
from pathlib import Path
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.dispatch import Runtimes
from skyrl_stack.runtime.stand_in import standing_in
from skyrl_stack.sandbox.contract import SandboxSpec

async def hold_a_sandbox(directory):
    sandbox = await Runtimes(directory).start(SandboxSpec(image=sys.argv[2], lease_s=3600))
    print("has one", flush=True)
    await sandbox.run("sleep 600", timeout_s=600)

directory = RunDirectory.open(Path(sys.argv[1]))
with standing_in(directory):
    asyncio.run(hold_a_sandbox(directory))
"""


def new_run(root: Path, **sections: Any) -> RunDirectory:
    sections["run"] = {"peer_timeout_s": PEER_TIMEOUT_S, **sections.get("run", {})}
    directory = RunDirectory.create(root, Profile.model_validate(profile().model_dump() | sections))
    publish(directory.launch_file, Launch())
    return directory


class Alone:
    """A runtime without a trainer, as a launcher starts it."""

    def __init__(self, root: Path, tasks: list[Task]) -> None:
        self.root = root
        self.directory = new_run(root, run={"runtime_only": True})
        self.directory.keep_api_key()
        write_tasks(self.directory.tasks_file, tasks)
        with self.directory.log("runtime").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(self.directory.path)],
                env=os.environ | {LAUNCH_VARIABLE: self.directory.launch().launch_id},
                stdout=log,
                stderr=log,
            )
        self.url = self.directory.await_endpoint("runtime", 60).url

    def user(self, **runtime: Any) -> RunDirectory:
        """The run directory of a trainer that uses it."""
        runtime = {"urls": [self.url], "api_key_file": str(self.directory.api_key_file), **runtime}
        return new_run(self.root, runtime=runtime)

    def sandboxes(self) -> int:
        return ExternalRuntime(self.url, self.directory.api_key_file).greet().alive


@pytest.fixture
def alone(tmp_path: Path, inflection_tasks: list[Task]) -> Iterator[Alone]:
    alone = Alone(tmp_path, inflection_tasks)
    yield alone
    os.kill(server_of(alone.process.pid), signal.SIGCONT)
    alone.process.terminate()
    assert alone.process.wait(30) == 0
    sweep()


def eventually(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_trainers_share_it_and_one_that_is_killed_leaves_no_sandbox(alone: Alone, inflection_tasks: list[Task]) -> None:
    victims = alone.user()
    argv = [sys.executable, "-c", TRAINER, str(victims.path), inflection_tasks[0].image]
    victim = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert victim.stdout and victim.stdout.readline() == "has one\n"
    mine = alone.user()
    with standing_in(mine):
        assert list(read_tasks(mine.tasks_file)) == inflection_tasks
        assert asyncio.run(play(mine, inflection_tasks[0])) == 1.0
        sandbox = asyncio.run(start(mine, inflection_tasks[0]))
        assert alone.sandboxes() == 2
        victim.kill()
        victim.wait()
        eventually(lambda: alone.sandboxes() == 1, PEER_TIMEOUT_S + 15)  # not for the hour of its lease
        assert alone.directory.log("runtime").read_text().count("is gone; removed") == 1, sandbox
    assert alone.sandboxes() == 0  # one that ends in order leaves nothing at once
    assert mine.heartbeats("runtime") == {} and mine.endpoint("runtime") is None  # a requeued trainer begins anew


async def play(directory: RunDirectory, task: Task) -> float | None:
    fix = render_call("terminal", command=f"git apply - <<'PATCH'\n{task.patch}PATCH")
    async with Runtimes(directory) as sandboxes:
        episode = await run_episode(
            task,
            policy=ScriptedPolicy([fix, render_call("finish", message="done")], TOKENIZER),
            tokenizer=TOKENIZER,
            sandboxes=sandboxes,
            profile=directory.profile(),
            directory=directory,
            step=1,
            repetition=0,
        )
    return episode.reward


async def start(directory: RunDirectory, task: Task) -> str:
    async with Runtimes(directory) as sandboxes:
        return (await sandboxes.start(SandboxSpec(image=task.image, lease_s=3600))).id


def test_a_runtime_that_falls_silent_is_lost_in_bounded_time(alone: Alone, capfd: pytest.CaptureFixture[str]) -> None:
    mine = alone.user()
    watch = Watch(mine, "runtime", PEER_TIMEOUT_S)
    with standing_in(mine):
        assert list(watch.living()) == [0] and watch.lost() is None
        os.kill(server := server_of(alone.process.pid), signal.SIGSTOP)  # as a node without power: nothing is refused
        eventually(watch.lost, 4 * PEER_TIMEOUT_S)
        assert "has been silent for" in str(watch.lost())
        eventually(lambda: f"runtime {alone.url}: cannot be reached" in capfd.readouterr().out, 20)
    os.kill(server, signal.SIGCONT)


def test_what_does_not_fit_is_one_line(
    alone: Alone, inflection_tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("another")
    refused(alone.user(api_key_file=str(wrong)), f"runtime {alone.url}: {wrong} does not hold its key")
    refused(alone.user(urls=[alone.url, "http://127.0.0.1:9"]), "runtime http://127.0.0.1:9: cannot be reached")
    others = alone.user()
    absent = inflection_tasks[0].model_copy(update={"image": "localhost/no/such:1"})
    write_tasks(others.tasks_file, [absent, inflection_tasks[1]])
    refused(others, f"runtime {alone.url}: lacks 1 of 2 task images, such as localhost/no/such:1")
    monkeypatch.setattr(external, "__version__", "99.0")
    refused(alone.user(), f"runtime {alone.url}: is of skyrl-stack 0.1.0, this 99.0: launch both from one")


def refused(directory: RunDirectory, said: str) -> None:
    with pytest.raises((ProfileError, PeerLost)) as error, standing_in(directory):
        pass
    assert said in str(error.value) and "\n" not in str(error.value)
    assert directory.api_key_file.exists() is False and directory.endpoint("runtime") is None
