"""Episodes from a sandbox to a recorded reward, played by scripts in real sandboxes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from playing import TOKENIZER, WatchedSandboxes, play, profile, sandboxes

from skyrl_stack.agent.calls import render_call
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.policy import Completion
from skyrl_stack.agent.scripted import ScriptedPolicy
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import ModelUnavailable, SandboxLost, SandboxStartFailed
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import Task

pytestmark = pytest.mark.podman

LOOK = render_call("terminal", command="cat inflection/__init__.py | head -1")
FINISH = render_call("finish", message="done")


@pytest.fixture(scope="session")
def task(inflection_tasks: list[Task]) -> Task:
    return inflection_tasks[0]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, profile())


def fix(task: Task) -> str:
    return render_call("terminal", command=f"git apply - <<'PATCH'\n{task.patch}PATCH")


def played(task: Task, script: Any, directory: RunDirectory, **agent: Any) -> tuple[Episode, Trajectory]:
    async def run() -> tuple[Episode, Trajectory]:
        async with sandboxes() as provider:
            return await play(task, script, directory, provider, **agent)

    return asyncio.run(run())


def recorded(directory: RunDirectory) -> Episode:
    (file,) = directory.episodes.glob("*.json")
    return Episode.model_validate_json(file.read_text())


def added(patch: str) -> list[str]:
    return [line for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]


def sampled_text(trajectory: Trajectory) -> str:
    ids = [i for i, sampled in zip(trajectory.response_ids, trajectory.response_mask, strict=True) if sampled]
    return TOKENIZER.decode(ids)


def test_a_fix_is_rewarded_and_all_of_it_recorded(task: Task, directory: RunDirectory) -> None:
    episode, trajectory = played(task, [LOOK, fix(task), FINISH], directory)
    assert (episode.outcome, episode.reward, episode.error) == (Outcome.FINISHED, 1.0, None)
    assert episode.grade and episode.grade.reason == "Resolved"
    assert episode.patch and set(added(task.patch)) == set(added(episode.patch))
    assert set(episode.seconds) == {"start", "agent", "model", "tools", "patch", "grade"}
    assert (episode.turns, episode.sampled_tokens) == (3, sum(trajectory.response_mask))
    assert recorded(directory) == episode
    assert episode.trajectories == [trajectory]
    assert sampled_text(trajectory) == "".join(f"{turn}<|im_end|>" for turn in (LOOK, fix(task), FINISH))
    assert "\n[exit code 0]\n</tool_response>" in TOKENIZER.decode(trajectory.response_ids)


@pytest.mark.parametrize(
    ("script", "agent", "outcome"),
    [
        ([FINISH], {}, Outcome.FINISHED),
        (["I would rather not."], {}, Outcome.PLAIN_TEXT),
        ([LOOK] * 9, {"max_steps": 3}, Outcome.STEP_LIMIT),
        ([LOOK] * 99, {"max_steps": 99, "context_tokens": 2200}, Outcome.CONTEXT_EXCEEDED),
        (["talk " * 2000], {"context_tokens": 2200}, Outcome.CONTEXT_EXCEEDED),
        ([LOOK], {"context_tokens": 256}, Outcome.CONTEXT_EXCEEDED),
        ([render_call("terminal", command="sleep 60")], {"episode_timeout_s": 2}, Outcome.TIMED_OUT),
    ],
)
def test_every_end_is_an_outcome_and_is_graded(
    task: Task, directory: RunDirectory, script: list[str], agent: dict[str, Any], outcome: Outcome
) -> None:
    episode, trajectory = played(task, script, directory, **agent)
    assert (episode.outcome, episode.reward, episode.error) == (outcome, 0.0, None)
    assert len(trajectory.response_mask) == len(trajectory.response_ids) == len(trajectory.response_log_probs)
    assert len(trajectory.prompt_ids) + len(trajectory.response_ids) <= agent.get("context_tokens", 20_000) or (
        trajectory.response_ids == []
    )


def test_what_was_fixed_before_the_end_counts(task: Task, directory: RunDirectory) -> None:
    episode, _ = played(task, [fix(task), LOOK, LOOK], directory, max_steps=3)
    assert (episode.outcome, episode.reward) == (Outcome.STEP_LIMIT, 1.0)


def test_mistakes_are_told_and_stay_in_the_trajectory(task: Task, directory: RunDirectory) -> None:
    script = [
        "<tool_call>\n{bad json}\n</tool_call>",
        render_call("browser", url="http://example.org"),
        render_call("terminal", comand="ls"),
        render_call("file_editor", command="view", path="relative.py"),
        "",
        FINISH,
    ]
    episode, trajectory = played(task, script, directory)
    assert episode.outcome is Outcome.FINISHED
    assert sampled_text(trajectory) == "".join(f"{turn}<|im_end|>" for turn in script)
    shown = TOKENIZER.decode(trajectory.response_ids)
    for told in ("not valid JSON", "Tool 'browser' not found", "Error validating tool 'terminal'", "absolute path"):
        assert told in shown


class Losing(ScriptedPolicy):
    """Says its text, after the sandbox has gone."""

    def __init__(self, provider: WatchedSandboxes) -> None:
        super().__init__([LOOK, FINISH], TOKENIZER)
        self.provider = provider

    async def sample(self, prompt_ids: list[int], *, max_tokens: int) -> Completion:
        sandbox = await self.provider.started.get()
        await sandbox.stop()
        return await super().sample(prompt_ids, max_tokens=max_tokens)


def test_a_lost_sandbox_is_no_reward(task: Task, directory: RunDirectory) -> None:
    async def run() -> None:
        async with sandboxes() as provider:
            await play(task, Losing(provider), directory, provider)

    with pytest.raises(SandboxLost):
        asyncio.run(run())
    record = recorded(directory)
    assert (record.outcome, record.reward, record.grade) == (Outcome.SANDBOX_LOST, None, None)
    assert record.error and record.error.startswith("SandboxLost: ")


def test_a_lost_model_is_no_reward(task: Task, directory: RunDirectory) -> None:
    with pytest.raises(ModelUnavailable):
        played(task, [LOOK], directory)
    record = recorded(directory)
    assert (record.outcome, record.reward) == (Outcome.MODEL_LOST, None)
    assert sampled_text(record.trajectories[0]) == f"{LOOK}<|im_end|>"
    assert [event.kind for event in record.events] == ["system", "message", "call", "answer", "end"]
    assert record.error and record.error.startswith("ModelUnavailable: ")


def test_an_image_that_is_missing_is_recorded(task: Task, directory: RunDirectory) -> None:
    without_image = task.model_copy(update={"image": "localhost/skyrl-stack/test:missing"})
    with pytest.raises(SandboxStartFailed):
        played(without_image, [FINISH], directory)
    record = recorded(directory)
    assert record.reward is None
    assert record.error and "test:missing" in record.error


def test_a_cancelled_episode_leaves_no_sandbox(task: Task, directory: RunDirectory) -> None:
    async def run() -> bool:
        async with sandboxes() as provider:
            sleeping = play(task, [render_call("terminal", command="sleep 600")], directory, provider)
            episode = asyncio.create_task(sleeping)
            sandbox = await provider.started.get()
            await asyncio.sleep(1)
            episode.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(episode, 20)
            return await sandbox.is_running()

    assert asyncio.run(run()) is False
    assert recorded(directory).error == "CancelledError: "


def test_episodes_run_side_by_side(task: Task, directory: RunDirectory) -> None:
    async def run() -> list[Episode]:
        async with sandboxes() as provider:
            plays = (play(task, script, directory, provider) for script in ([fix(task), FINISH], [FINISH]))
            return [episode for episode, _ in await asyncio.gather(*plays)]

    assert [episode.reward for episode in asyncio.run(run())] == [1.0, 0.0]
