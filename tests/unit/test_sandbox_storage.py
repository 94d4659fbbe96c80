"""Private directories, their owners, and what a sweep takes for a leftover."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lanes import sweeping_alone
from skyrl_stack.errors import SetupError
from skyrl_stack.node import Process
from skyrl_stack.sandbox import storage, sweep
from skyrl_stack.scratch import Owner, read_owner


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files of the test's own."""
    path = Path(f"/tmp/t{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    yield path
    storage.remove_private_directory(path)


def ended_process() -> Owner:
    """The owner that a process was which is gone."""
    process = subprocess.Popen(["sleep", "600"])
    started = Process(process.pid).started
    assert started
    process.kill()
    process.wait()
    return Owner.this_process("dead").model_copy(update={"pid": process.pid, "started": started})


def test_a_private_directory_is_private_and_owned(temporary: Path) -> None:
    path = storage.make_private_directory("abc", "/run/directory")
    assert path == temporary / "skyrl-abc"
    assert path.stat().st_mode & 0o777 == 0o700
    owner = read_owner(path)
    assert owner
    assert owner.is_alive
    assert (owner.launch_id, owner.pid, owner.run_directory) == ("abc", os.getpid(), "/run/directory")
    with pytest.raises(SetupError, match="skyrl-abc: cannot make it"):
        storage.make_private_directory("abc")
    assert sorted(temporary.iterdir()) == [path]


@pytest.mark.parametrize("change", [{"started": 1}, {"boot_id": "another boot"}, {"pid": 2**22 + 1}])
def test_an_owner_is_a_process_and_not_a_number(change: dict[str, object]) -> None:
    assert Owner.this_process("x").is_alive
    assert not Owner.this_process("x").model_copy(update=change).is_alive


def test_an_owner_in_a_container_is_not_taken_for_dead() -> None:
    change = {"pid": 2**22 + 1, "pid_namespace": "pid:[1]"}
    assert Owner.this_process("x").model_copy(update=change).is_alive
    assert not Owner.this_process("x").model_copy(update=change | {"boot_id": "another boot"}).is_alive


def test_a_deep_temporary_directory_has_no_room_for_sockets(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / ("deep" * 20)))
    assert storage.private_root() == Path("/tmp")


def test_the_cache_is_where_the_variable_says(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYRL_CACHE", str(temporary / "cache"))
    assert storage.cache_dir() == temporary / "cache"
    assert storage.cache_dir().is_dir()


def test_only_directories_of_the_dead_are_swept(temporary: Path) -> None:
    living, dead = storage.make_private_directory("living"), storage.make_private_directory("dead")
    (dead / "owner.json").write_text(ended_process().model_dump_json())
    (dead / "files").mkdir()
    (dead / "files/file").write_text("x")
    (temporary / "skyrl-not-ours").mkdir()
    with sweeping_alone():
        swept = (sweep.leftovers(), sweep.sweep())
    for found in swept:
        here = [str(left) for left in found if str(temporary) in str(left)]
        assert here == [f"directory {dead} of launch dead"]
    assert sorted(temporary.iterdir()) == [living, temporary / "skyrl-not-ours"]


def orphan(launcher: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"SKYRL_LAUNCH_ID": "test-sweep", "SKYRL_LAUNCHER_PID": launcher}
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    return process


def test_a_process_without_its_launcher_is_killed() -> None:
    with sweeping_alone():
        process = orphan(str(ended_process().pid))
        mine = [left for left in sweep.sweep() if isinstance(left, sweep.LeftProcess) and left.pid == process.pid]
    process.wait(5)
    assert process.returncode == -9
    assert [left.launch_id for left in mine] == ["test-sweep"]


@pytest.mark.parametrize("launcher", ["this process", "", "none", "1"])
def test_a_process_is_spared_without_proof(launcher: str) -> None:
    process = orphan(launcher.replace("this process", str(os.getpid())))
    try:
        assert process.pid not in [getattr(left, "pid", None) for left in sweep.leftovers()]
    finally:
        process.kill()
        process.wait()


RETITLED = """
import ctypes, sys, time
log = open(sys.argv[1], "w")
start, end = map(int, open("/proc/self/stat").read().rpartition(")")[2].split()[47:49])  # of its environment: proc(5)
ctypes.memset(start, ord("x"), end - start)  # as Ray's processes do to show a long title
print(flush=True)
time.sleep(600)
"""


def test_a_process_that_overwrote_its_environment_is_found_by_its_files(temporary: Path) -> None:
    dead = storage.make_private_directory("dead")
    (dead / "owner.json").write_text(ended_process().model_dump_json())
    environment = os.environ | {"SKYRL_LAUNCH_ID": "dead", "SKYRL_LAUNCHER_PID": str(ended_process().pid)}
    with sweeping_alone():
        process = subprocess.Popen(
            [sys.executable, "-c", RETITLED, str(dead / "log")], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout
        process.stdout.readline()
        assert "SKYRL_LAUNCH_ID" not in Process(process.pid).environment
        assert process.pid in [left.pid for left in sweep.sweep() if isinstance(left, sweep.LeftProcess)]
    assert process.wait(5) == -9
