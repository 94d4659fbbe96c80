"""How tests play an episode on a task, by a script or a policy of their own, in sandboxes of Podman."""

import asyncio
import secrets
from collections.abc import Iterable
from typing import Any

from qwen3 import small_tokenizer
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.profile import Profile
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.task import Task

TOKENIZER = small_tokenizer()


class WatchedSandboxes(PodmanSandboxes):
    """Podman's sandboxes, each of which a test can get at."""

    started: asyncio.Queue[EngineSandbox]

    async def start(self, spec: SandboxSpec) -> EngineSandbox:
        sandbox = await super().start(spec)
        self.started.put_nowait(sandbox)
        return sandbox


def sandboxes() -> WatchedSandboxes:
    provider = WatchedSandboxes(secrets.token_hex(8), image_stores=[ImageStore().path])
    provider.started = asyncio.Queue()
    return provider


def profile(**agent: Any) -> Profile:
    context_tokens = agent.pop("context_tokens", 20_000)
    agent.setdefault("tell_at", ())
    return Profile.model_validate({"name": "test", "agent": agent, "model": {"context_tokens": context_tokens}})


async def play(
    task: Task, script: Iterable[str] | Policy, directory: RunDirectory, provider: PodmanSandboxes, **agent: Any
) -> tuple[Episode, Trajectory]:
    """One episode of a policy, or of a script; `agent` are keys of the profile's section, and `context_tokens`."""
    policy = ScriptedPolicy(script, TOKENIZER) if isinstance(script, Iterable) else script
    episode = await run_episode(
        task,
        policy=policy,
        tokenizer=TOKENIZER,
        sandboxes=provider,
        profile=profile(**agent),
        directory=directory,
        step=1,
        repetition=0,
    )
    return episode, episode.trajectories[-1]
