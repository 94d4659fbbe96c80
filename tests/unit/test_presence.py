"""Presence: who lives is judged by records that change, instance by instance, on the reader's own clock."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_stack import presence
from skyrl_stack.errors import PeerLost
from skyrl_stack.presence import Presence, Watch, declare_gone, record_failure, write_heartbeat
from skyrl_stack.profile import Profile, RunSection
from skyrl_stack.records import Heartbeat, Incarnation, Launch, Load, publish
from skyrl_stack.run_directory import RunDirectory

A_DAY = 86_400.0


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, Profile(name="test", run=RunSection(peer_timeout_s=5)))
    publish(run.launch_file, Launch())
    return run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The reader's own clock, to be moved; that of the records goes on."""
    moment = [100.0]
    monkeypatch.setattr(presence.time, "monotonic", lambda: moment[0])
    yield moment


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(presence, "INTERVAL_S", 0.05)
    return []


def me(directory: RunDirectory, instance: int = 0, restart: int = 0) -> Incarnation:
    return Incarnation(launch_id=directory.launch().launch_id, instance=instance, restart=restart)


def beat(directory: RunDirectory, instance: int = 0, state: str = "ready", *, clock_is_off_s: float = 0) -> None:
    record = {**me(directory, instance).model_dump(), "state": state, "at": time.time() + clock_is_off_s}
    publish(directory.heartbeat_file("runtime", instance), Heartbeat.model_validate(record))


def wait_for(lost: list[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not lost and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("clock_is_off_s", [0, -A_DAY, A_DAY])
def test_silence_is_a_record_that_does_not_change(
    directory: RunDirectory, now: list[float], clock_is_off_s: float
) -> None:
    watch = Watch(directory, "runtime", timeout_s=30)
    assert watch.lost() is None
    for _ in range(4):
        beat(directory, clock_is_off_s=clock_is_off_s)
        assert watch.lost() is None
        now[0] += 29
    assert watch.lost() is None
    now[0] += 2
    assert watch.lost() == "the runtime has been silent for 31 s"


def test_who_was_blind_himself_starts_to_watch_again(directory: RunDirectory, now: list[float]) -> None:
    beat(directory)
    watch = Watch(directory, "runtime", timeout_s=30)
    assert list(watch.living()) == [0]
    now[0] += 1000
    assert watch.lost() is None
    now[0] += 29
    assert watch.lost() is None
    now[0] += 2
    assert watch.lost()


def test_a_role_is_lost_when_all_its_instances_are(directory: RunDirectory, now: list[float]) -> None:
    watch = Watch(directory, "runtime", timeout_s=30)
    beat(directory, 0)
    beat(directory, 1)
    beat(directory, 2, "ended")
    assert list(watch.living()) == [0, 1]
    now[0] += 20
    beat(directory, 1)
    assert watch.lost() is None
    now[0] += 20
    assert list(watch.living()) == [1]
    assert watch.lost() is None
    beat(directory, 1, "failed")
    assert watch.lost() == "the last of 3 runtimes failed"
    beat(directory, 3)
    assert watch.lost() is None


def test_one_of_several_that_fails_is_no_failure_of_the_run(directory: RunDirectory) -> None:
    beat(directory, 0)
    beat(directory, 1)
    record_failure(directory, me(directory, 0), "runtime", "no room")
    assert directory.failure() is None
    beat(directory, 0, "failed")
    record_failure(directory, me(directory, 1), "runtime", "no room here either")
    assert (failure := directory.failure()) and failure.cause == "no room here either"


def test_what_was_killed_is_declared_gone_unless_it_said_so_or_was_started_again(directory: RunDirectory) -> None:
    def after(restart: int, state: str) -> tuple[int, str]:
        with declare_gone(directory, "runtime", me(directory)):
            write_heartbeat(directory, "runtime", me(directory, restart=restart), state)
        heartbeat = directory.heartbeats("runtime")[0]
        return heartbeat.restart, heartbeat.state

    assert after(0, "ready") == (0, "failed")
    assert after(0, "ended") == (0, "ended")
    assert after(1, "ready") == (1, "ready")


def test_a_peer_that_was_killed_is_gone_as_soon_as_its_job_says_so(directory: RunDirectory) -> None:
    beat(directory)
    record_failure(directory, me(directory), "runtime", "killed by SIGKILL")
    assert Watch(directory, "runtime", 30).lost() == "the runtime failed"
    assert Watch(directory, "trainer", 30).lost() is None


def test_a_silent_peer_is_lost_once(directory: RunDirectory, lost: list[str]) -> None:
    beat(directory)
    with Presence(directory, "trainer", "runtime", lost.append):
        wait_for(lost, 20)
        time.sleep(0.3)
    assert len(lost) == 1
    assert "the runtime has been silent for 5" in lost[0]


def test_a_peer_that_lives_or_never_came_is_not_lost(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "trainer", "runtime", lost.append):
        time.sleep(0.3)
        beat(directory)
        time.sleep(0.3)
    assert lost == []


def test_another_launch_in_the_directory_ends_this_one(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "runtime", "trainer", lost.append):
        publish(directory.launch_file, Launch())
        wait_for(lost, 10)
    assert lost == ["another launch has taken over the run directory"]


def test_a_later_incarnation_ends_this_one_and_keeps_its_record(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "runtime", "trainer", lost.append):
        write_heartbeat(directory, "runtime", me(directory, restart=1), "starting")
        wait_for(lost, 10)
    assert lost == ["Slurm has started this job again elsewhere"]
    assert (heartbeat := directory.heartbeat("runtime")) and (heartbeat.restart, heartbeat.state) == (1, "starting")


def test_a_heartbeat_says_how_full_the_runtime_is(directory: RunDirectory, lost: list[str]) -> None:
    load = Load(capacity=8, alive=3, waiting=0)
    with Presence(directory, "runtime", "trainer", lost.append) as present:
        present.ready(lambda: load)
        assert (heartbeat := directory.heartbeat("runtime")) and heartbeat.load == load


def test_an_exception_leaves_its_cause_and_the_state_failed(directory: RunDirectory, lost: list[str]) -> None:
    with pytest.raises(PeerLost), Presence(directory, "trainer", "runtime", lost.append):
        raise PeerLost("the runtime is gone")
    failure, heartbeat = directory.failure(), directory.heartbeat("trainer")
    assert failure and failure.cause == "the runtime is gone"
    assert heartbeat and heartbeat.state == "failed"


def test_one_that_left_may_be_back_and_one_that_ended_will_not(directory: RunDirectory, now: list[float]) -> None:
    watch = Watch(directory, "runtime", timeout_s=30, may_return=True)
    for state in ("ready", "left"):
        beat(directory, state=state)
        for _ in range(4):
            assert watch.lost() is None
            now[0] += 10
        assert not watch.living()
    beat(directory, state="ended")
    assert watch.lost() == "the runtime ended"


def test_who_cannot_write_says_so_before_the_other_sees_silence(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "trainer", "runtime", lost.append) as trainer:
        trainer._watch.timeout_s = 0.2
        shutil.rmtree(directory.path / "heartbeats")
        wait_for(lost, 5)
    assert lost and "No such file or directory" in lost[0]
