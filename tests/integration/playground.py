"""A tiny repository with a bug, as an image and a task, and a way to play a scripted episode on it."""

import asyncio
import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qwen3 import small_tokenizer
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.factory.base import ensure_base
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandbox, PodmanSandboxes
from skyrl_stack.tasks.task import Task

TOKENIZER = small_tokenizer()
IMAGE = "localhost/skyrl-stack/test:playground"
SOURCE = "def add(a, b):\n    return a - b\n"
EVAL_SCRIPT = """\
cd /testbed
: '>>>>> Start Test Output'
if python3 -P -c 'import sys; sys.path.insert(0, "."); import sums; sys.exit(sums.add(2, 2) != 4)'
then echo 'PASSED tests/test_sums.py::test_add'; else echo 'FAILED tests/test_sums.py::test_add - wrong'; fi
: '>>>>> End Test Output'
"""
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


class WatchedSandboxes(PodmanSandboxes):
    """Podman's sandboxes, each of which a test can get at."""

    started: asyncio.Queue[PodmanSandbox]

    async def start(self, spec: SandboxSpec) -> PodmanSandbox:
        sandbox = await super().start(spec)
        self.started.put_nowait(sandbox)
        return sandbox


def sandboxes() -> WatchedSandboxes:
    provider = WatchedSandboxes("test", image_stores=[ImageStore().path])
    provider.started = asyncio.Queue()
    return provider


@cache
def playground() -> Task:
    """The task; its image is made on first use."""
    with TemporaryDirectory() as context:
        commit = _make_repository(Path(context) / "testbed")
        asyncio.run(_build(Path(context)))
    return Task(
        instance_id="test__sums-1",
        repo="test/sums",
        version="1",
        base_commit=commit,
        image=IMAGE,
        problem_statement="add(2, 2) is 0",
        patch="",
        FAIL_TO_PASS=("tests/test_sums.py::test_add",),
        PASS_TO_PASS=(),
        eval_script=EVAL_SCRIPT,
        log_parser="parse_log_pytest_v2",
    )


def _make_repository(path: Path) -> str:
    """A repository of one commit, always the same; returns it."""
    path.mkdir()
    (path / "sums.py").write_text(SOURCE)
    moment = {"GIT_AUTHOR_DATE": "2020-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2020-01-01T00:00:00Z"}
    for argv in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "start")):
        subprocess.run([*GIT, *argv], cwd=path, check=True, env=os.environ | moment)
    return subprocess.run(
        [*GIT, "rev-parse", "HEAD"], cwd=path, check=True, capture_output=True, text=True
    ).stdout.strip()


async def _build(context: Path) -> None:
    async with ImageStore() as store:
        base = await ensure_base(store, "auto", print)
        (context / "Containerfile").write_text(f"FROM {base}\nCOPY testbed /testbed\nWORKDIR /testbed\n")
        await store.build(context, IMAGE)


def profile(**agent: Any) -> Profile:
    context_tokens = agent.pop("context_tokens", 20_000)
    return Profile.model_validate({"name": "test", "agent": agent, "model": {"context_tokens": context_tokens}})


async def play(
    script: Iterable[str] | Policy,
    directory: RunDirectory,
    provider: PodmanSandboxes,
    task: Task | None = None,
    **agent: Any,
) -> tuple[Episode, Trajectory]:
    """One episode of a policy, or of a script, on the playground."""
    policy = ScriptedPolicy(script, TOKENIZER) if isinstance(script, Iterable) else script
    return await run_episode(
        task or playground(),
        policy=policy,
        tokenizer=TOKENIZER,
        sandboxes=provider,
        profile=profile(**agent),
        directory=directory,
        step=1,
        repetition=0,
    )
