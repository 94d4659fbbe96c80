"""Run directory: complete files, launch ids, instances, deadlines."""

import stat
import threading
import time
from pathlib import Path

import pytest

from skyrl_stack.errors import PeerLost, RunDirectoryError
from skyrl_stack.profile import Profile, RunSection
from skyrl_stack.records import Endpoint, Heartbeat, Launch, publish, write_atomic
from skyrl_stack.run_directory import RunDirectory


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


def test_a_role_is_as_far_as_the_furthest_of_its_instances(directory: RunDirectory) -> None:
    launch_id = directory.launch().launch_id
    for instance, state in ((0, "ended"), (10, "failed"), (2, "starting")):
        record = {"launch_id": launch_id, "instance": instance, "state": state}
        publish(directory.heartbeat_file("runtime", instance), Heartbeat.model_validate(record))
    assert list(directory.heartbeats("runtime")) == [0, 2, 10]
    assert (heartbeat := directory.heartbeat("runtime")) and heartbeat.state == "starting"
    assert directory.heartbeat("trainer") is None


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


@pytest.mark.parametrize("shown", [True, False], ids=["an old one", "none"])
@pytest.mark.parametrize("late", ["launch.json", "profile.json"])
def test_a_node_waits_until_it_sees_what_its_launch_was_handed(directory: RunDirectory, late: str, shown: bool) -> None:
    """Whichever of the two files a shared file system shows late."""
    old = {name: (directory.path / name).read_bytes() for name in ("launch.json", "profile.json")}
    launch, profile = Launch(), directory.profile().model_copy(update={"name": "new"})
    directory.hand_over(launch, profile)
    new = (directory.path / late).read_bytes()
    write_atomic(directory.path / late, old[late])
    if not shown:
        (directory.path / late).unlink()
    with pytest.raises(RunDirectoryError, match=r"belongs to another launch|not a run directory"):
        directory.await_launch(launch.launch_id, 0.1)
    threading.Timer(0.3, write_atomic, [directory.path / late, new]).start()
    directory.await_launch(launch.launch_id, 10, poll_s=0.05)
    assert directory.profile() == profile
