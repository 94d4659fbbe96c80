"""The runtime's process: however it ends, or the trainer or the launcher does, nothing of the run is left."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from a_runtime import Run, eventually

from lanes import sweeping_alone
from skyrl_stack.launch.runs import look
from skyrl_stack.launch.status import status_lines
from skyrl_stack.records import Launch, publish
from skyrl_stack.sandbox import sweep
from skyrl_stack.sandbox.isolation import LADDER

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]


@pytest.fixture
def run(tmp_path: Path, tests_cache: Path, tiny_image: str) -> Iterator[Run]:
    run = Run(tmp_path, tests_cache)
    asyncio.run(run.start_something(tiny_image))
    assert len(run.processes()) > 3
    assert run.mounts()
    yield run
    run.process.kill()
    run.process.wait()


def test_its_endpoint_is_private_and_its_token_is_nowhere_else(run: Run) -> None:
    assert stat.S_IMODE(run.directory.endpoint_file("runtime").stat().st_mode) == 0o600
    assert stat.S_IMODE(run.private.stat().st_mode) == 0o700
    token = run.endpoint.token.encode()
    assert token not in run.log().encode()
    for pid in run.processes():
        assert token not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert token not in Path(f"/proc/{pid}/environ").read_bytes()


def test_it_says_which_isolation_its_sandboxes_have(run: Run) -> None:
    assert run.endpoint.isolation in LADDER
    assert f"isolation {run.endpoint.isolation}" in run.log()
    assert f"isolation {run.endpoint.isolation}" in "\n".join(status_lines(look([run.directory])[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(run: Run, number: signal.Signals) -> None:
    run.process.send_signal(number)
    assert run.process.wait(20) == 0
    run.require_nothing_left()
    heartbeat = run.directory.heartbeat("runtime")
    assert heartbeat
    assert heartbeat.state == "ended"


def test_kill_9_leaves_files_alone_and_a_sweep_takes_them(run: Run) -> None:
    with sweeping_alone():
        run.process.kill()
        run.process.wait()
        eventually(lambda: run.processes() == [] and run.mounts() == [], 5)
        assert run.private.is_dir()
        assert run.private in [left.path for left in sweep.leftovers() if isinstance(left, sweep.LeftDirectory)]
        sweep.sweep()
    assert not run.private.exists()


def test_sweeping_spares_the_living(run: Run) -> None:
    with sweeping_alone():
        sweep.sweep()
    assert run.private.is_dir()
    assert run.process.poll() is None


def test_the_end_of_the_trainer_is_its_own(run: Run) -> None:
    run.trainer("ended")
    assert run.process.wait(20) == 0
    run.require_nothing_left()


@pytest.mark.parametrize(("state", "age_s", "said"), [("failed", 0, "failed"), ("ready", 60, "silent")])
def test_a_lost_trainer_is_a_failure(run: Run, state: str, age_s: float, said: str) -> None:
    run.trainer(state, age_s=age_s)
    assert run.process.wait(20) == 1
    run.require_nothing_left()
    failure = run.directory.failure()
    assert failure
    assert said in failure.cause
    assert said in run.log().splitlines()[-1]


def test_another_launch_takes_the_directory_over(run: Run) -> None:
    publish(run.directory.launch_file, Launch())
    assert run.process.wait(20) == 1
    eventually(lambda: run.processes() == [])
    assert not run.private.exists()


def kill_podman(run: Run) -> None:
    podman = [pid for pid in run.processes() if Path(f"/proc/{pid}/comm").read_text() == "podman\n"]
    os.kill(podman[0], signal.SIGKILL)


def test_podman_is_started_again_after_its_death(run: Run, tiny_image: str) -> None:
    kill_podman(run)
    eventually(lambda: "it was started again" in run.log(), 30)
    assert "healed: Podman's service died" in run.log()
    asyncio.run(run.start_something(tiny_image))
    assert run.process.poll() is None


def test_podman_that_dies_again_and_again_is_a_failure(run: Run) -> None:
    for number in range(4):
        eventually(lambda number=number: run.log().count("it was started again") == number, 30)
        kill_podman(run)
    assert run.process.wait(30) == 1
    run.require_nothing_left()
    assert "Podman's service died 4 times" in run.log()


def test_what_is_no_run_directory_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == f"runtime: {tmp_path}: not a run directory (it has no profile.json)\n"
