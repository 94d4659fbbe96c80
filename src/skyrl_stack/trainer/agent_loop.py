"""verl's agent loop ⇄ our episode: verl asks for a sample, an episode is run, its tokens and reward are handed over.

An infrastructure failure is raised, so verl gets no sample from it (see `groups.py` for what becomes of the group).
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.workers.rollout.llm_server import LLMServerClient

from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import ModelUnavailable, ProfileError, ToolFailed, attribute
from skyrl_stack.profile import Profile
from skyrl_stack.records import Failure, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.dispatch import Runtimes
from skyrl_stack.tasks.task import Task, read_tasks
from skyrl_stack.trainer.ranks import episodes_per_worker


class Masked(Exception):
    """An episode that ended in a way from which the profile takes no sample."""


class Surroundings:
    """What all episodes of one process share. Made in a thread: its files may be large, and far away."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.profile: Profile = directory.profile()
        self.tasks: dict[str, Task] = {task.instance_id: task for task in read_tasks(directory.tasks_file)}
        self.places = asyncio.Semaphore(episodes_per_worker(self.profile))
        self.sandboxes = Runtimes(directory)


async def surroundings(run_directory: str) -> Surroundings:
    """Those of this process; verl makes a new loop for each episode."""
    return await asyncio.shield(_surroundings(run_directory))


@cache
def _surroundings(run_directory: str) -> asyncio.Task[Surroundings]:
    return asyncio.create_task(asyncio.to_thread(lambda: Surroundings(RunDirectory.open(Path(run_directory)))))


class RolloutPolicy:
    """The model under training, through verl's rollout servers. One for each episode."""

    def __init__(self, client: LLMServerClient, *, request_id: str, sampling: dict[str, Any], end_of_turn: int) -> None:
        self.client = client
        self.request_id = request_id
        "The same for all turns, so that verl sends them to the server that holds the episode's keys and values."
        self.sampling = sampling
        self.end_of_turn = end_of_turn
        self.versions: list[int] = []
        "Versions of the weights that sampled: of each turn the first and the last."

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        with attribute(ModelUnavailable, "the rollout server failed"):
            output = await self.client.generate(
                request_id=self.request_id,
                prompt_ids=prompt_ids,
                sampling_params=self.sampling | {"max_tokens": max_tokens},
            )
        if output.stop_reason == "aborted" or not output.token_ids or output.log_probs is None:
            raise ModelUnavailable(f"the rollout server gave no tokens with log-probabilities ({output.stop_reason})")
        newest = output.extra_fields.get("global_steps") or 0
        self.versions += [output.extra_fields.get("min_global_steps") or newest, newest]  # an update may interrupt it
        ended = output.token_ids[-1] == self.end_of_turn
        return Completion(list(output.token_ids), list(output.log_probs), "stop" if ended else "length")


class EpisodeLoop(AgentLoopBase):
    """The agent loop that verl instantiates for each episode (`options.agent_loop_config`)."""

    def __init__(self, *args: Any, run_directory: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run_directory = run_directory

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:  # a list; verl annotates one output
        """Play the task of `row`, a row of `dataset.write_rows` with what verl added.

        Raises:
            InfrastructureError: there is no sample.
            Masked: the profile takes none from this outcome.
            ToolFailed, ProfileError: no episode can be played so; the run is told to stop.
        """
        shared = await surroundings(self.run_directory)
        tokenizer: Any = self.tokenizer  # verl's annotation names the factory, not what it makes
        policy = RolloutPolicy(
            self.server_manager,
            request_id=f"{row['uid']}-{row['session_id']}",
            sampling=sampling_params,
            end_of_turn=tokenizer.eos_token_id,
        )
        async with shared.places:
            with stopping_the_run(shared.directory):
                episode = await run_episode(
                    shared.tasks[row["instance_id"]],
                    policy=policy,
                    tokenizer=tokenizer,
                    sandboxes=shared.sandboxes,
                    profile=shared.profile,
                    directory=shared.directory,
                    step=int(row["global_steps"]),
                    repetition=int(row["session_id"]),
                )
        return to_outputs(episode, policy.versions)


@contextmanager
def stopping_the_run(directory: RunDirectory) -> Iterator[None]:
    """What no other episode would fare better with is the failure of the run, which `groups.py` sees.

    For verl it is one failed episode among others, to be replaced.
    """
    try:
        yield
    except (ToolFailed, ProfileError) as error:
        if directory.failure() is None:
            failure = Failure(launch_id=directory.launch().launch_id, role="trainer", cause=str(error))
            publish(directory.failure_file, failure)
        raise


def to_outputs(episode: Episode, versions: list[int]) -> list[AgentLoopOutput]:
    """An episode as verl's samples, one for each of its linked trajectories: the same tokens, mask and
    log-probabilities. verl takes the advantage of the last, and gives it to the others.

    Raises:
        Masked: the profile takes no sample from this outcome.
        ModelUnavailable: the policy sampled nothing, so there is nothing to learn from.
    """
    if episode.masked:
        raise Masked(f"episode {episode.id} ended as {episode.outcome}, which the profile masks")
    trajectories = [each for each in episode.trajectories if each.response_ids]
    if not trajectories:
        raise ModelUnavailable(f"episode {episode.id} ended as {episode.outcome} before its first sampled token")
    return [_output(episode, each, versions) for each in trajectories]


def _output(episode: Episode, trajectory: Trajectory, versions: list[int]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=trajectory.prompt_ids,
        response_ids=trajectory.response_ids,
        response_mask=trajectory.response_mask,
        response_logprobs=trajectory.response_log_probs,
        reward_score=episode.reward,
        num_turns=episode.turns,
        metrics=AgentLoopMetrics(
            generate_sequences=episode.seconds.get("model", 0.0), tool_calls=episode.seconds.get("tools", 0.0)
        ),
        extra_fields={
            "reward_extra_info": {},
            "min_global_steps": min(versions),
            "max_global_steps": max(versions),
        },
    )
