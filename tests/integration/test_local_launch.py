"""The product's main job on one machine: launch, two updates, a resume; then every way in which it can be ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lanes import sweeping_alone
from skyrl_stack.launch import processes
from skyrl_stack.report import read_episodes, read_steps
from skyrl_stack.run_directory import RunDirectory

pytestmark = [pytest.mark.podman, pytest.mark.training, pytest.mark.timeout(900)]

COMMAND = str(Path(sys.executable).with_name("skyrl-stack"))
SMALL = ["--set", 'tasks.projects=["inflection"]', "--set", "tasks.per_project=2"]


def launch(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "launch", "local", *SMALL, *arguments],
        cwd=workplace,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], timeout_s: float) -> str:
    try:
        return process.communicate(timeout=timeout_s)[0]
    finally:
        process.kill()


def newest(workplace: Path) -> RunDirectory:
    return RunDirectory.latest(workplace / ".skyrl_jobs")


def test_two_updates_and_a_resume(tmp_path: Path) -> None:
    first = launch(tmp_path)
    printed = finish(first, 800)
    assert first.returncode == 0, printed
    directory = newest(tmp_path)
    steps = read_steps(directory)
    assert [step.number for step in steps] == [1, 2]
    assert any(step.groups[0] > 0 and step.metrics["actor/grad_norm"] > 0 for step in steps), printed
    assert (directory.checkpoints / "latest_checkpointed_iteration.txt").read_text().strip() == "2"
    assert str(directory.path) in printed
    assert_nothing_is_left(directory)

    second = launch(tmp_path, "--resume", "--set", "trainer.steps=3")
    printed = finish(second, 800)
    assert second.returncode == 0, printed
    assert newest(tmp_path).path == directory.path
    assert [step.number for step in read_steps(directory)] == [1, 2, 3]
    episodes = read_episodes(directory)
    assert len({episode.id for episode in episodes}) == len(episodes)
    assert_nothing_is_left(directory)
    a_checkpoint_is_evaluated(directory, tmp_path)


def a_checkpoint_is_evaluated(directory: RunDirectory, workplace: Path) -> None:
    """By the limits of its run, in its own tokens, on the tasks that it was trained on."""
    argv = ["eval", "--tasks", str(directory.tasks_file), "--model", str(directory.checkpoints / "global_step_3")]
    done = subprocess.run([COMMAND, *argv], cwd=workplace, capture_output=True, text=True, timeout=400)
    assert (done.returncode, done.stderr) == (0, "")
    (out,) = (workplace / ".skyrl_evals").iterdir()
    assert out.name == "tasks_global_step_3"
    assert RunDirectory(out).profile().agent == directory.profile().agent
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["attempts"], summary["lost"], summary["model"]) == (2, 0, "global_step_3")
    episodes = [json.loads(file.read_bytes()) for file in RunDirectory(out).episodes.glob("*.json")]
    assert sum(episode["sampled_tokens"] for episode in episodes) == summary["completion_tokens"]


def kill_role(role: str) -> Callable[[subprocess.Popen[str], RunDirectory], None]:
    def kill(_: subprocess.Popen[str], directory: RunDirectory) -> None:
        os.kill(pid_of(directory, role), signal.SIGKILL)

    return kill


def send(number: signal.Signals) -> Callable[[subprocess.Popen[str], RunDirectory], None]:
    return lambda process, _: process.send_signal(number)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(send(signal.SIGINT), id="ctrl-c"),
        pytest.param(send(signal.SIGKILL), id="kill-9-launcher"),
        pytest.param(kill_role("runtime"), id="kill-9-runtime"),
        pytest.param(kill_role("trainer"), id="kill-9-trainer"),
    ],
)
def test_however_it_ends_the_other_side_ends_and_nothing_is_left(
    tmp_path: Path, end: Callable[[subprocess.Popen[str], RunDirectory], None]
) -> None:
    process = launch(tmp_path, "--set", "trainer.steps=50")
    directory = await_first_episode(tmp_path, process)
    end(process, directory)
    finish(process, 90)
    assert process.returncode != 0
    wait_until_gone(directory, 60)
    with sweeping_alone():
        subprocess.run([COMMAND, "sweep"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert_nothing_is_left(directory)


def await_first_episode(workplace: Path, process: subprocess.Popen[str]) -> RunDirectory:
    """The run of `process`, as soon as an episode of it is under way in a real sandbox."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if any(workplace.glob(".skyrl_jobs/*/episodes/*.json")):
            return newest(workplace)
        time.sleep(0.5)
    raise AssertionError("no episode within 300 s")


def pid_of(directory: RunDirectory, role: str) -> int:
    """The process of `role`: the one whose command line names it and the run directory."""
    for pid in processes.survivors(directory.launch().launch_id):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if f"skyrl_stack.{role}" in arguments and str(directory.path) in arguments:
            return pid
    raise AssertionError(f"no process of the {role}")


def wait_until_gone(directory: RunDirectory, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while processes.survivors(directory.launch().launch_id) and time.monotonic() < deadline:
        time.sleep(0.5)


def assert_nothing_is_left(directory: RunDirectory) -> None:
    launch_id = directory.launch().launch_id
    assert [describe(pid) for pid in processes.survivors(launch_id)] == []
    assert launch_id not in Path("/proc/self/mountinfo").read_text()
    assert [path for path in temporary_paths() if launch_id in path.name] == []
    assert json.loads(directory.launch_file.read_text())["launch_id"] == launch_id


def temporary_paths() -> Iterator[Path]:
    for folder in {Path("/tmp"), Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))}:
        yield from folder.iterdir()


def describe(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
