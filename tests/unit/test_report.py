"""Report: numbers computed from records, and robust against what a killed run leaves."""

import json
from pathlib import Path

import pytest

from skyrl_stack.profile import Profile
from skyrl_stack.records import Failure, Launch, publish
from skyrl_stack.report import print_report, read_steps
from skyrl_stack.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, Profile(name="test"))
    publish(run.launch_file, Launch(started_at=100))
    return run


def record_episode(directory: RunDirectory, name: str, task: str, step: int, reward: float | None) -> None:
    record = {
        "id": name,
        "instance_id": task,
        "step": step,
        "reward": reward,
        "prompt_tokens": 10,
        "response_tokens": 5,
    }
    record |= {"outcome": "Finished"} if reward is not None else {"error": "SandboxLost: gone"}
    directory.episode_file(name).write_text(json.dumps(record))


def record_step(directory: RunDirectory, step: int, **metrics: float) -> None:
    values = {"timing_s/step": 9.0, "timing_s/gen": 4.0, "actor/grad_norm": 0.5} | metrics
    with directory.metrics_file.open("a") as file:
        file.write(json.dumps({"step": step, "data": values}) + "\n")


def test_a_step_is_summed_up_from_its_episodes(directory: RunDirectory) -> None:
    for number, reward in enumerate([1.0, 0.0, 0.0, 0.0]):
        record_episode(directory, f"a{number}", "task-a", 1, reward)
    for number, reward in enumerate([0.0, 0.0, None]):
        record_episode(directory, f"b{number}", "task-b", 1, reward)
    record_step(directory, 1)
    (step,) = read_steps(directory)
    assert step.reward_mean == pytest.approx(1 / 6)
    assert step.reward_spread == pytest.approx(0.3727, abs=1e-4)
    assert (step.solved, step.failures, step.groups, step.tokens) == (1, 1, (1, 2), 7 * 15)


def test_episodes_of_a_step_that_was_never_made_are_no_step(directory: RunDirectory) -> None:
    record_episode(directory, "a", "task-a", 1, 1.0)
    assert read_steps(directory) == []


def test_a_step_that_a_resumed_launch_did_again_counts_once(directory: RunDirectory) -> None:
    record_step(directory, 1)
    record_step(directory, 2, **{"actor/grad_norm": 0.1})
    publish(directory.launch_file, Launch(started_at=200))
    record_step(directory, 2, **{"actor/grad_norm": 0.9})
    assert [(step.number, step.metrics["actor/grad_norm"]) for step in read_steps(directory)] == [(1, 0.5), (2, 0.9)]


def test_half_a_line_and_half_an_episode_are_left_out(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    record_episode(directory, "a", "task-a", 1, 1.0)
    record_step(directory, 1)
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 2, "da')
    directory.episode_file("b").write_text("{")
    print_report(directory, episodes=True)
    printed = capsys.readouterr().out
    assert "Finished" in printed
    assert len(read_steps(directory)) == 1


def test_the_cause_of_a_stop_is_printed(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    cause = "8 infrastructure failures in a row, the last: SandboxLost: [gone]"
    publish(directory.failure_file, Failure(launch_id=directory.launch().launch_id, role="trainer", cause=cause))
    print_report(directory)
    assert cause in capsys.readouterr().out.replace("\n", " ")
