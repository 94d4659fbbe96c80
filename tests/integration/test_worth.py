"""What an outcome is worth, from the profile through the episode into verl's groups."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attempting import TASK, TOKENIZER, Idle

from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import SandboxLost, ToolFailed, TrainingStopped
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.agent_loop import Masked, stopping_the_run, surroundings, to_outputs
from skyrl_stack.trainer.groups import GroupBuffer

TALK = "Nothing is wrong."


def the_profile(worth: str) -> Profile:
    agent = {"outcomes": {"plain_text": worth, "context_exceeded": worth}, "tell_at": ()}
    model, trainer = {"context_tokens": 4000}, {"rollouts_per_task": 4, "max_consecutive_failures": 8}
    return Profile.model_validate({"name": "test", "agent": agent, "model": model, "trainer": trainer})


def played(directory: RunDirectory, worth: str, text: str = TALK) -> tuple[Episode, int]:
    """An episode of one turn, and how many sandboxes it took."""
    sandboxes: Any = Idle()
    episode = asyncio.run(
        run_episode(
            TASK,
            policy=ScriptedPolicy([text], TOKENIZER),
            tokenizer=TOKENIZER,
            sandboxes=sandboxes,
            profile=the_profile(worth),
            directory=directory,
            step=1,
            repetition=0,
        )
    )
    return episode, sandboxes.starts


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory.create(tmp_path, the_profile("mask"))
    publish(directory.launch_file, Launch())
    return directory


@pytest.mark.parametrize(("text", "outcome"), [(TALK, Outcome.PLAIN_TEXT), ("talk " * 9000, Outcome.CONTEXT_EXCEEDED)])
def test_an_outcome_is_worth_what_the_profile_says(directory: RunDirectory, text: str, outcome: Outcome) -> None:
    graded, _ = played(directory, "grade", text)
    assert (graded.outcome, graded.masked, graded.reward) == (outcome, False, 0.0)
    assert graded.grade and graded.grade.reason == "EmptyPatch"
    zero, _ = played(directory, "zero", text)
    assert (zero.outcome, zero.masked, zero.reward, zero.grade) == (outcome, False, 0.0, None)
    masked, _ = played(directory, "mask", text)
    assert (masked.outcome, masked.masked, masked.reward, masked.grade) == (outcome, True, None, None)
    assert masked.error is None
    recorded = [Episode.model_validate_json(file.read_bytes()) for file in directory.episodes.glob("*.json")]
    assert sorted(each.id for each in recorded) == sorted(each.id for each in (graded, zero, masked))


def test_only_what_is_not_masked_is_a_sample_for_verl(directory: RunDirectory) -> None:
    zero, _ = played(directory, "zero")
    (sample,) = to_outputs(zero, [1])
    assert (sample.reward_score, sample.response_mask) == (0.0, list(zero.trajectories[0].response_mask))
    masked, _ = played(directory, "mask")
    with pytest.raises(Masked, match="ended as PlainText, which the profile masks"):
        to_outputs(masked, [1])


@pytest.fixture
def buffer(directory: RunDirectory) -> GroupBuffer:
    return GroupBuffer(
        sampler_kwargs=SimpleNamespace(run_directory=str(directory.path)),
        trainer_mode="sync",
        trainer_config={},  # type: ignore[arg-type]
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        refill_fn=lambda count: None,
    )


def ended(buffer: GroupBuffer, group: str, *, kept: int, of: int = 4) -> set[str]:
    """The groups to be replaced, once `group` has ended with `kept` samples; verl calls one that lost any a failure."""
    buffer.partitions["train"] |= {f"{group}_{session}_0": {} for session in range(kept)}
    (buffer.finished_keys if kept == of else buffer.failure_keys)["train"].add(group)
    _, _, replaced, _ = buffer._terminal_eviction_reasons(1, "train")
    return replaced


def test_a_group_is_trained_on_without_its_masked_episodes(buffer: GroupBuffer) -> None:
    assert ended(buffer, "whole", kept=4) == set()
    assert ended(buffer, "three", kept=3) == set()
    assert ended(buffer, "one", kept=1) == {"one"}
    assert ended(buffer, "none", kept=0) == {"one", "none"}


def test_masked_groups_are_replaced_for_as_long_as_it_takes(buffer: GroupBuffer, directory: RunDirectory) -> None:
    """A policy that never comes to an end that counts is no broken machine."""
    for number in range(4):
        for _ in range(4):
            played(directory, "mask")
        assert f"group{number}" in ended(buffer, f"group{number}", kept=0)


def test_lost_groups_stop_the_run(buffer: GroupBuffer, directory: RunDirectory) -> None:
    for number in range(8):
        episode, _ = played(directory, "mask")
        lost = episode.model_copy(update={"error": f"SandboxLost: {number}", "masked": False})
        publish(directory.episode_file(episode.id), lost)
    ended(buffer, "first", kept=0)
    with pytest.raises(TrainingStopped, match="8 episodes in a row failed; the last: SandboxLost: 7"):
        ended(buffer, "second", kept=0)


def test_a_tool_that_cannot_run_stops_the_run_at_its_first_group(buffer: GroupBuffer, directory: RunDirectory) -> None:
    with pytest.raises(SandboxLost), stopping_the_run(directory):
        raise SandboxLost("gone")
    assert directory.failure() is None
    with pytest.raises(ToolFailed), stopping_the_run(directory):
        raise ToolFailed("tool old: ImportError: x")
    failure = directory.failure()
    assert failure and (failure.role, failure.cause) == ("trainer", "tool old: ImportError: x")
    with pytest.raises(TrainingStopped, match="tool old: ImportError: x"):
        ended(buffer, "first", kept=3)


def test_what_episodes_share_is_made_once_for_all_that_begin_together(directory: RunDirectory) -> None:
    directory.tasks_file.write_text(f"{TASK.model_dump_json()}\n")

    async def shared() -> Any:
        path = str(directory.path)
        first, cancelled = asyncio.create_task(surroundings(path)), asyncio.create_task(surroundings(path))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await first, await surroundings(path)

    first, again = asyncio.run(shared())
    assert first is again
    assert list(first.tasks) == [TASK.instance_id]
