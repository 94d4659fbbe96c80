"""One episode, from a task to its reward: start → attempt → patch → stop → grade in a fresh sandbox → record."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.tokens import Tokenizer, Trajectory
from skyrl_stack.episode.record import Episode, episode_id
from skyrl_stack.episode.reward import reward
from skyrl_stack.grading.grade import grade
from skyrl_stack.grading.patch import extract_patch
from skyrl_stack.profile import Profile, RuntimeSection
from skyrl_stack.run_directory import RunDirectory, publish
from skyrl_stack.sandbox.contract import Sandbox, SandboxProvider, SandboxSpec
from skyrl_stack.tasks.task import Task


async def run_episode(
    task: Task,
    *,
    policy: Policy,
    tokenizer: Tokenizer,
    sandboxes: SandboxProvider,
    profile: Profile,
    directory: RunDirectory,
    step: int,
    repetition: int,
) -> tuple[Episode, Trajectory]:
    """Roll `policy` out on `task` once, and grade what it left.

    The record is written in any case, with the error if there was one; no sandbox of the episode is left.

    Raises:
        InfrastructureError: the episode died of something that the policy did not do. It has no reward.
    """
    name = episode_id(task.instance_id, step=step, repetition=repetition)
    episode = Episode(id=name, instance_id=task.instance_id, step=step, repetition=repetition)
    try:
        async with _sandbox(task, sandboxes, profile.runtime, episode) as sandbox:
            trajectory = await _attempt(task, sandbox, policy, tokenizer, profile, episode)
            publish(directory.trajectory_file(name), trajectory)
            with episode.timed("patch"):
                episode.patch = await extract_patch(sandbox, task)
        with episode.timed("grade"):
            episode.grade = await grade(
                task, episode.patch, sandboxes, timeout_s=profile.grading.timeout_s, limits=profile.runtime
            )
        episode.reward = reward(episode.grade)
    except BaseException as error:
        episode.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        publish(directory.episode_file(name), episode)
    return episode, trajectory


async def _attempt(
    task: Task, sandbox: Sandbox, policy: Policy, tokenizer: Tokenizer, profile: Profile, episode: Episode
) -> Trajectory:
    with episode.timed("agent"):
        result = await attempt(
            task.problem_statement,
            sandbox=sandbox,
            workdir=SandboxSpec(image=task.image).workdir,
            policy=policy,
            tokenizer=tokenizer,
            limits=profile.agent,
            context_tokens=profile.model.context_tokens,
        )
    episode.outcome = result.outcome
    episode.turns = result.turns
    episode.prompt_tokens = len(result.trajectory.prompt_ids)
    episode.response_tokens = len(result.trajectory.response_ids)
    episode.sampled_tokens = sum(result.trajectory.response_mask)
    episode.seconds |= {"model": result.model_s, "tools": result.tools_s}
    episode.seconds["agent"] -= result.model_s + result.tools_s
    return result.trajectory


@asynccontextmanager
async def _sandbox(
    task: Task, sandboxes: SandboxProvider, sizes: RuntimeSection, episode: Episode
) -> AsyncIterator[Sandbox]:
    """The sandbox that the policy works in; it is stopped even while the episode is being cancelled."""
    spec = SandboxSpec(
        image=task.image,
        cpus=sizes.cpus,
        memory_mb=sizes.memory_mb,
        pids=sizes.pids,
        network=sizes.network,
        lease_s=sizes.lease_s,
    )
    with episode.timed("start"):
        sandbox = await sandboxes.start(spec)
    try:
        yield sandbox
    finally:
        stopping = asyncio.ensure_future(sandbox.stop())
        await asyncio.shield(stopping)
