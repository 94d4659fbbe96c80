"""Run directory and presence: complete files, launch ids, deadlines, lost peers."""

import stat
import threading
import time
from pathlib import Path

import pytest

from skyrl_stack import presence
from skyrl_stack.errors import PeerLost, RunDirectoryError
from skyrl_stack.presence import Presence
from skyrl_stack.profile import Profile, RunSection
from skyrl_stack.run_directory import Endpoint, Heartbeat, Launch, RunDirectory, publish, write_atomic


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(tmp_path, Profile(name="test", run=RunSection(peer_timeout_s=5)))
    publish(run.launch_file, Launch())
    return run


def endpoint_of(directory: RunDirectory, launch_id: str | None = None) -> Endpoint:
    return Endpoint(launch_id=launch_id or directory.launch().launch_id, url="http://127.0.0.1:1", token="secret")


def test_the_resolved_profile_is_written_first_and_reads_back(directory: RunDirectory) -> None:
    assert RunDirectory.open(directory.path).profile() == directory.profile()


def test_two_runs_in_one_second_get_two_directories(tmp_path: Path) -> None:
    made = {RunDirectory.create(tmp_path, Profile(name="test")).path for _ in range(3)}
    assert len(made) == 3


def test_latest_takes_the_newest_run_of_that_profile_only(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, Profile(name="a"))
    newest = RunDirectory.create(tmp_path, Profile(name="a"))
    RunDirectory.create(tmp_path, Profile(name="a_b"))
    assert RunDirectory.latest(tmp_path, "a").path == newest.path
    with pytest.raises(RunDirectoryError, match="no run of profile c"):
        RunDirectory.latest(tmp_path, "c")


def test_a_directory_without_a_profile_is_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no profile\.json"):
        RunDirectory.open(tmp_path)


def test_an_endpoint_is_readable_by_its_owner_alone_and_hides_its_token(directory: RunDirectory) -> None:
    publish(directory.endpoint_file("runtime"), endpoint_of(directory), mode=0o600)
    assert stat.S_IMODE(directory.endpoint_file("runtime").stat().st_mode) == 0o600
    assert "secret" not in repr(directory.endpoint("runtime"))


def test_an_endpoint_of_an_earlier_launch_does_not_count(directory: RunDirectory) -> None:
    publish(directory.endpoint_file("runtime"), endpoint_of(directory, "earlier"))
    assert directory.endpoint("runtime") is None
    with pytest.raises(PeerLost, match="did not appear"):
        directory.await_endpoint("runtime", timeout_s=0.2)


def test_waiting_ends_as_soon_as_the_peer_says_that_it_failed(directory: RunDirectory) -> None:
    failed = Heartbeat(launch_id=directory.launch().launch_id, state="failed")
    publish(directory.heartbeat_file("runtime"), failed)
    started = time.monotonic()
    with pytest.raises(PeerLost, match="failed before it was ready"):
        directory.await_endpoint("runtime", timeout_s=60)
    assert time.monotonic() - started < 30


def test_a_damaged_record_names_its_file(directory: RunDirectory) -> None:
    directory.launch_file.write_text("{")
    with pytest.raises(RunDirectoryError, match=r"launch\.json: damaged"):
        directory.launch()


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file, stop = tmp_path / "record", threading.Event()
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomic(file, contents[0])

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomic(file, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(file.read_bytes() in contents for _ in range(200))
    finally:
        stop.set()
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["record"]


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(presence, "INTERVAL_S", 0.05)
    return []


def wait_for(lost: list[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not lost and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_silent_peer_is_lost_once(directory: RunDirectory, lost: list[str]) -> None:
    launch_id = directory.launch().launch_id
    publish(directory.heartbeat_file("trainer"), Heartbeat(launch_id=launch_id, at=time.time() - 60))
    with Presence(directory, "runtime", "trainer", lost.append):
        wait_for(lost, 10)
        time.sleep(0.3)
    assert len(lost) == 1
    assert "the trainer has been silent for 6" in lost[0]


def test_a_peer_that_lives_or_never_came_is_not_lost(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "runtime", "trainer", lost.append):
        time.sleep(0.3)
        publish(directory.heartbeat_file("trainer"), Heartbeat(launch_id=directory.launch().launch_id))
        time.sleep(0.3)
    assert lost == []


def test_another_launch_in_the_directory_ends_this_one(directory: RunDirectory, lost: list[str]) -> None:
    with Presence(directory, "runtime", "trainer", lost.append):
        publish(directory.launch_file, Launch())
        wait_for(lost, 10)
    assert lost == ["another launch has taken over the run directory"]


def test_an_exception_leaves_its_cause_and_the_state_failed(directory: RunDirectory, lost: list[str]) -> None:
    with pytest.raises(PeerLost), Presence(directory, "trainer", "runtime", lost.append):
        raise PeerLost("the runtime is gone")
    failure, heartbeat = directory.failure(), directory.heartbeat("trainer")
    assert failure and failure.cause == "the runtime is gone"
    assert heartbeat and heartbeat.state == "failed"
