"""One episode, from a task to its reward: start → attempt → patch → stop → grade in a fresh sandbox → record."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skyrl_stack.agent.attempt import attempt
from skyrl_stack.agent.outcome import of_error
from skyrl_stack.agent.policy import Policy
from skyrl_stack.agent.tokens import Tokenizer
from skyrl_stack.agent_section import Worth
from skyrl_stack.episode.record import Episode, Notes
from skyrl_stack.episode.reward import reward
from skyrl_stack.errors import SandboxExpired
from skyrl_stack.grading.grade import grade
from skyrl_stack.grading.patch import Start, extract_patch
from skyrl_stack.grading.start import hand_over
from skyrl_stack.profile import Profile
from skyrl_stack.records import publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import Sandbox, SandboxProvider, SandboxSpec
from skyrl_stack.tasks.task import REPOSITORY, Task

LEASE_MARGIN_S = 60.0


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
) -> Episode:
    """Roll `policy` out on `task` once, and grade what it left as far as the profile wants it for the outcome.

    The record is written in any case, with the error if there was one; no sandbox of the episode is left.

    Raises:
        InfrastructureError: the episode died of something that the policy did not do. It has no reward.
        ToolFailed, ProfileError: no episode can be played so: a tool cannot run, or what is named is not there.
    """
    notes = Notes(task, step=step, repetition=repetition)
    try:
        async with _sandbox(task, sandboxes, profile, notes) as (sandbox, start):
            worth = await _attempt(task, sandbox, policy, tokenizer, profile, notes)
            with notes.timed("patch"):
                patch = await _patch(sandbox, task, start)
            notes.add(patch=patch, masked=worth == "mask")
        if worth == "grade":
            await _grade(task, patch, sandboxes, profile, notes)
        elif worth == "zero":
            notes.add(reward=0.0)
    except BaseException as error:
        notes.add(error=f"{type(error).__name__}: {error}")
        if lost := of_error(error):
            notes.add_missing(outcome=lost.outcome, detail=lost.detail)
        raise
    finally:
        writing = asyncio.ensure_future(asyncio.to_thread(_write, notes, directory))  # and flushing it takes its time
        await asyncio.shield(writing)
    return writing.result()


def _write(notes: Notes, directory: RunDirectory) -> Episode:
    episode = notes.episode()
    publish(directory.episode_file(notes.id), episode)
    return episode


async def _attempt(
    task: Task, sandbox: Sandbox, policy: Policy, tokenizer: Tokenizer, profile: Profile, notes: Notes
) -> Worth:
    """Note what the policy did; what its outcome is worth.

    Raises:
        InfrastructureError: the sandbox or the model was lost; what was done until then is noted.
    """
    with notes.timed("agent"):
        result = await attempt(
            task.problem_statement,
            sandbox=sandbox,
            workdir=REPOSITORY,
            policy=policy,
            tokenizer=tokenizer,
            limits=profile.agent,
            context_tokens=profile.model.context_tokens,
        )
    notes.seconds |= {"model": result.model_s, "tools": result.tools_s}
    notes.seconds["agent"] -= result.model_s + result.tools_s
    notes.add(
        outcome=result.ending.outcome,
        detail=result.ending.detail,
        turns=result.turns,
        prompt_tokens=len(result.trajectories[0].prompt_ids) if result.trajectories else 0,
        response_tokens=sum(len(each.response_ids) for each in result.trajectories),
        sampled_tokens=sum(sum(each.response_mask) for each in result.trajectories),
        events=result.events,
        trajectories=result.trajectories,
    )
    if result.error:
        raise result.error
    return result.ending.outcome.worth(profile.agent.outcomes)


async def _grade(task: Task, patch: str, sandboxes: SandboxProvider, profile: Profile, notes: Notes) -> None:
    with notes.timed("grade"):
        verdict = await grade(task, patch, sandboxes, timeout_s=profile.grading.timeout_s, limits=profile.runtime)
    notes.add(grade=verdict, reward=reward(verdict))


async def _patch(sandbox: Sandbox, task: Task, start: Start) -> str:
    """What the policy left; nothing where its time took the sandbox away."""
    try:
        return await extract_patch(sandbox, task, start)
    except SandboxExpired:
        return ""


@asynccontextmanager
async def _sandbox(
    task: Task, sandboxes: SandboxProvider, profile: Profile, notes: Notes
) -> AsyncIterator[tuple[Sandbox, Start]]:
    """The sandbox that the policy works in; it is stopped even while the episode is being cancelled."""
    spec = SandboxSpec(
        image=task.image,
        workdir=REPOSITORY,
        # A single turn of the model may take the whole time of the episode.
        lease_s=max(profile.runtime.lease_s, profile.agent.episode_timeout_s + LEASE_MARGIN_S),
        **profile.runtime.sizes,
    )
    with notes.timed("start"):
        sandbox = await sandboxes.start(spec)
    try:
        with notes.timed("start"):
            start = await hand_over(sandbox, task)
        yield sandbox, start
    finally:
        stopping = asyncio.ensure_future(sandbox.stop())
        await asyncio.shield(stopping)
