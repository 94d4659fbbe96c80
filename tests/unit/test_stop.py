"""Stopping a local run from outside: the launcher ends its roles, and what it cannot is ended for it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.launch import processes
from skyrl_stack.launch.runs import look
from skyrl_stack.launch.stop import stop_run
from skyrl_stack.profile import Profile
from skyrl_stack.records import Heartbeat, Launch, publish
from skyrl_stack.run_directory import RunDirectory

LAUNCHER = """
import sys
from pathlib import Path
from skyrl_stack.launch import processes
from skyrl_stack.launch.roles import RoleProcesses, signals_raise
from skyrl_stack.run_directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
roles = RoleProcesses(directory, sys.argv[2])
with signals_raise(), roles.nothing_left():
    roles.started.append(processes.start("role", [], launch_id=sys.argv[2], log=directory.log("runtime")))
    roles.started[0].wait()
"""
ROLE = "import subprocess, time; subprocess.Popen(['setsid', '--fork', 'sleep', '600']); time.sleep(600)"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, Profile(name="test"))


@pytest.fixture
def launcher(directory: RunDirectory) -> subprocess.Popen[bytes]:
    """A launcher whose role has a child that left its session, once all three run."""
    (directory.path / "role.py").write_text(ROLE)
    launch_id = f"stop-{os.getpid()}-{time.monotonic_ns()}"
    path = os.pathsep.join([str(directory.path), os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, "-c", LAUNCHER, str(directory.path), launch_id]
    process = subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    publish(directory.launch_file, Launch(launch_id=launch_id, pid=process.pid))
    until(lambda: len(processes.survivors(launch_id)) == 2)
    return process


def test_a_running_launch_is_told_and_waited_for(directory: RunDirectory, launcher: subprocess.Popen[bytes]) -> None:
    assert look([directory])[0].state == "running"
    stop_run(directory, say=print)
    assert launcher.wait(10) != 0
    assert processes.survivors(directory.launch().launch_id) == []


def test_what_a_killed_launcher_left_is_ended(directory: RunDirectory, launcher: subprocess.Popen[bytes]) -> None:
    launcher.kill()
    launcher.wait()
    launch_id = directory.launch().launch_id
    until(lambda: len(processes.survivors(launch_id)) == 1)  # the role dies with its launcher, its lost child does not
    stop_run(directory, say=print)
    assert processes.survivors(launch_id) == []


def test_a_run_of_another_machine_is_not_stopped_here(directory: RunDirectory) -> None:
    publish(directory.launch_file, Launch(host="elsewhere"))
    publish(directory.heartbeat_file("runtime"), Heartbeat(launch_id=directory.launch().launch_id))
    with pytest.raises(RunDirectoryError, match="the run is one of elsewhere; stop it there"):
        stop_run(directory, say=print)


def test_a_run_that_was_never_launched_is_not_running(directory: RunDirectory) -> None:
    said: list[str] = []
    stop_run(directory, say=said.append)
    assert said == [f"{directory.path}: not running (not started)"]
