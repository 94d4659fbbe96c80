"""Traces for the supervised start: the teacher's scripts, played by the product's own agent in real sandboxes."""

import asyncio
from collections.abc import Callable, Sequence

from skyrl_stack.agent.attempt import Attempt, attempt
from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.policy import Completion, Policy
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.errors import ProfileError
from skyrl_stack.profile import Profile
from skyrl_stack.sandbox.contract import SandboxProvider, SandboxSpec
from skyrl_stack.tasks.task import REPOSITORY, Task
from skyrl_stack.trainer.tiny.network import TinyTokenizer, train_tokenizer
from skyrl_stack.trainer.tiny.teacher import Script, scripts

_UNLIMITED_TOKENS = 1 << 20


class Classroom:
    """Plays a teacher's scripts on tasks, as many at once as the profile's episodes."""

    def __init__(
        self, sandboxes: SandboxProvider, profile: Profile, teacher: Callable[[Task], Sequence[Script]] = scripts
    ) -> None:
        self.sandboxes = sandboxes
        self.profile = profile
        self.teacher = teacher
        self._places = asyncio.Semaphore(profile.trainer.concurrent_episodes)

    async def tokenizer(self, tasks: Sequence[Task]) -> TinyTokenizer:
        """A tokenizer made for these tasks, their scripts and the agent's own prompt."""
        bytes_only = train_tokenizer([])
        first = _FirstPrompt(bytes_only)
        await self._play(tasks[0], first, bytes_only, context_tokens=_UNLIMITED_TOKENS)
        spoken = [turn for task in tasks for script in self.teacher(task) for turn in script.turns]
        return train_tokenizer([first.text, *spoken, *(task.problem_statement + task.patch for task in tasks)])

    async def traces(self, tasks: Sequence[Task], tokenizer: TinyTokenizer) -> list[Trajectory]:
        """Each script's trace, repeated by its share.

        Raises:
            ProfileError: the profile's limits end a script early.
        """

        async def trace(task: Task, script: Script) -> list[Trajectory]:
            policy = ScriptedPolicy(script.turns, tokenizer)
            context = self.profile.model.context_tokens
            played = await self._play(task, policy, tokenizer, context_tokens=context)
            if played.ending.outcome is not Outcome.FINISHED:
                raise ProfileError(
                    f"a script of {len(script.turns)} turns ended as {played.ending.outcome}: widen [agent]'s limits"
                )
            return played.trajectories * script.share

        lessons = [(task, script) for task in tasks for script in self.teacher(task)]
        played = await asyncio.gather(*(trace(task, script) for task, script in lessons))
        return [each for repeated in played for each in repeated]

    async def _play(self, task: Task, policy: Policy, tokenizer: TinyTokenizer, *, context_tokens: int) -> Attempt:
        spec = SandboxSpec(image=task.image, workdir=REPOSITORY, **self.profile.runtime.sizes)
        async with self._places:
            sandbox = await self.sandboxes.start(spec)
            try:
                return await attempt(
                    task.problem_statement,
                    sandbox=sandbox,
                    workdir=REPOSITORY,
                    policy=policy,
                    tokenizer=tokenizer,
                    limits=self.profile.agent,
                    context_tokens=context_tokens,
                )
            finally:
                await sandbox.stop()


class _FirstPrompt:
    """A policy that keeps what it is told first, and ends the work."""

    def __init__(self, tokenizer: TinyTokenizer) -> None:
        self._tokenizer = tokenizer
        self.text = ""

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        self.text = self._tokenizer.decode(prompt_ids, skip_special_tokens=False)
        return await ScriptedPolicy([render_call("finish", message="done")], self._tokenizer).sample(
            prompt_ids, max_tokens=max_tokens
        )
