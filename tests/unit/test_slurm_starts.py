"""Starts: a requeue without a finished step counts, and so many in a row stop the run."""

from pathlib import Path

import pytest

from skyrl_stack.errors import TrainingStopped
from skyrl_stack.launch.slurm.starts import count_start
from skyrl_stack.profile import Profile
from skyrl_stack.records import Incarnation
from skyrl_stack.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, Profile(name="test"))
    (run.path / "slurm").mkdir()
    return run


def start(directory: RunDirectory, *, launch_id: str = "a") -> int:
    """Returns how many starts the launch has had."""
    return count_start(directory, "trainer", Incarnation(launch_id=launch_id), max_requeues=2).starts


def finish_step(directory: RunDirectory, number: int) -> None:
    (directory.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(number))


def test_requeues_without_a_step_stop_the_run(directory: RunDirectory) -> None:
    assert [start(directory) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(TrainingStopped, match=r"requeued 3 times in a row and step 1 was not finished \(run.max_req"):
        start(directory)


def test_a_step_in_between_starts_the_count_anew(directory: RunDirectory) -> None:
    for step in range(10):
        finish_step(directory, step)
        start(directory)
        start(directory)
    assert start(directory) == 21


def test_another_launch_has_its_own_count(directory: RunDirectory) -> None:
    for _ in range(3):
        start(directory)
    assert start(directory, launch_id="b") == 1
