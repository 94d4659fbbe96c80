"""The peer of a role's job: when the queue is asked, and what its answer means."""

import json
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from skyrl_stack import presence
from skyrl_stack.errors import PeerLost
from skyrl_stack.launch.slurm import peer
from skyrl_stack.launch.slurm.peer import GoesBack, Peer
from skyrl_stack.presence import write_heartbeat
from skyrl_stack.profile import Profile, RunSection
from skyrl_stack.records import Incarnation, Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.site import JobSection, SlurmLauncher

JOB = JobSection(partition="test", time_limit="1:00:00", cpus=1, memory_gb=8)
RUN = RunSection(hold_s=100, start_timeout_s=1000, peer_timeout_s=30)


class Clock:
    """Of what is tested, to be moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(peer, "time", clock)
    monkeypatch.setattr(presence.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def directory(tmp_path: Path, slurm: FakeSlurm) -> RunDirectory:
    run = RunDirectory.create(tmp_path, Profile(name="test", run=RUN, launcher=SlurmLauncher(runtime=JOB, trainer=JOB)))
    publish(run.launch_file, Launch())
    queue(slurm, run, "PENDING")
    return run


def queue(slurm: FakeSlurm, directory: RunDirectory, state: str) -> None:
    name = f"trainer-{directory.launch().launch_id}"
    job = {"job_id": 12, "name": name, "job_state": state, "state_reason": "None", "nodes": ""}
    slurm.answers("squeue", f"echo '{json.dumps({'jobs': [job | {'start_time': 0, 'time_limit': 60}]})}'")


def beat(directory: RunDirectory, state: str, restart: int = 0) -> None:
    me = Incarnation(launch_id=directory.launch().launch_id, restart=restart)
    write_heartbeat(directory, "trainer", me, state)


def look(directory: RunDirectory, clock: Clock, seconds: float, trainer: Peer) -> None:
    """For so long, every two seconds."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += 2
        trainer.look()


def peer_of(directory: RunDirectory) -> Peer:
    return Peer(directory, "trainer", directory.launch().launch_id)


def test_one_that_never_came_may_wait_in_the_queue_for_days(directory: RunDirectory, clock: Clock) -> None:
    look(directory, clock, 10_000, peer_of(directory))


def test_one_that_left_is_waited_for_and_then_waited_for_in_the_queue(directory: RunDirectory, clock: Clock) -> None:
    trainer = peer_of(directory)
    beat(directory, "ready")
    look(directory, clock, 20, trainer)
    beat(directory, "left")
    look(directory, clock, 90, trainer)
    with pytest.raises(GoesBack, match="away for 100 s") as error:
        look(directory, clock, 30, trainer)
    assert error.value.behind == "12"


def test_one_that_comes_back_is_waited_for_anew(directory: RunDirectory, clock: Clock) -> None:
    trainer = peer_of(directory)
    for restart in range(3):
        beat(directory, "ready", restart)
        look(directory, clock, 10, trainer)
        beat(directory, "left", restart)
        look(directory, clock, 90, trainer)


def test_until_both_have_met_there_is_time_to_start(directory: RunDirectory, clock: Clock) -> None:
    beat(directory, "left")
    trainer = peer_of(directory)
    look(directory, clock, 990, trainer)
    with pytest.raises(GoesBack, match="away for 1000 s"):
        look(directory, clock, 30, trainer)


@pytest.mark.parametrize("state", ["CANCELLED", "FAILED", "NODE_FAIL"])
def test_one_whose_job_has_ended_is_lost(directory: RunDirectory, clock: Clock, slurm: FakeSlurm, state: str) -> None:
    trainer = peer_of(directory)
    beat(directory, "ready")
    look(directory, clock, 30, trainer)
    beat(directory, "left")
    queue(slurm, directory, state)
    with pytest.raises(PeerLost, match=f"job 12 of the trainer is {state}"):
        look(directory, clock, 60, trainer)


def test_an_end_that_slurm_takes_back_is_none(directory: RunDirectory, clock: Clock, slurm: FakeSlurm) -> None:
    trainer = peer_of(directory)
    beat(directory, "left")
    look(directory, clock, 22, trainer)
    for state in ("NODE_FAIL", "PENDING", "NODE_FAIL", "PENDING"):
        queue(slurm, directory, state)
        look(directory, clock, 20, trainer)


def test_no_answer_is_not_an_answer(directory: RunDirectory, clock: Clock, slurm: FakeSlurm) -> None:
    trainer = peer_of(directory)
    beat(directory, "left")
    slurm.answers("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    look(directory, clock, 3000, trainer)


def test_while_it_lives_slurm_is_left_alone(directory: RunDirectory, clock: Clock, slurm: FakeSlurm) -> None:
    trainer = peer_of(directory)
    for restart in range(100):
        beat(directory, "ready", restart)
        look(directory, clock, 20, trainer)
    assert slurm.calls == []
