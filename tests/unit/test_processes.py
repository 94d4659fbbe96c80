"""Processes of a launch: what a role starts is found and ended, whatever it did with its session or parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.launch import processes
from skyrl_stack.launch.runs import claim
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch
from skyrl_stack.run_directory import RunDirectory

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)
"""
ESCAPING = "import subprocess, sys; subprocess.Popen(['setsid', '--fork', 'sleep', '600']); print('up', flush=True)"


@pytest.fixture
def launch_id() -> str:
    return f"test-{os.getpid()}-{time.monotonic_ns()}"


def start(tmp_path: Path, launch_id: str, code: str) -> subprocess.Popen[bytes]:
    """A role whose module is `code`, once it printed a line."""
    (tmp_path / "role.py").write_text(code)
    log = tmp_path / "role.log"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        process = processes.start("role", [], launch_id=launch_id, log=log)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    deadline = time.monotonic() + 20
    while not log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_role_that_ignores_sigterm_is_killed_in_bounded_time(tmp_path: Path, launch_id: str) -> None:
    process = start(tmp_path, launch_id, STUBBORN)
    processes.stop(process, grace_s=0.5)
    assert process.returncode == -signal.SIGKILL
    assert processes.survivors(launch_id) == []


def test_a_child_in_a_session_of_its_own_is_found_and_killed(tmp_path: Path, launch_id: str) -> None:
    process = start(tmp_path, launch_id, ESCAPING)
    assert process.wait(20) == 0
    assert len(processes.survivors(launch_id)) == 1
    assert processes.kill_survivors(launch_id) == 1
    assert processes.survivors(launch_id) == []


def test_roles_are_told_when_their_launcher_is_killed(tmp_path: Path, launch_id: str) -> None:
    launcher = (
        "import sys, time, pathlib; from skyrl_stack.launch import processes\n"
        f"processes.start('role', [], launch_id={launch_id!r}, log=pathlib.Path({str(tmp_path / 'role.log')!r}))\n"
        "time.sleep(600)"
    )
    (tmp_path / "role.py").write_text("import time; print('up', flush=True); time.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", launcher], env=os.environ | {"PYTHONPATH": str(tmp_path)})
    deadline = time.monotonic() + 20
    while not processes.survivors(launch_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes.survivors(launch_id)
    parent.kill()
    parent.wait()
    while processes.survivors(launch_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes.survivors(launch_id) == []


def test_a_run_directory_in_use_is_refused_and_keeps_its_owner(tmp_path: Path, launch_id: str) -> None:
    profile = Profile(name="test")
    directory = RunDirectory.create(tmp_path, profile)
    claim(directory, Launch(launch_id=launch_id), profile)
    process = start(tmp_path, launch_id, STUBBORN)
    try:
        with pytest.raises(RunDirectoryError, match="is still running"):
            claim(directory, Launch(), profile)
        assert directory.launch().launch_id == launch_id
    finally:
        processes.stop(process, grace_s=0)
    claim(directory, Launch(), profile)
