"""Runs: what state a run is in, from its records and from what Slurm says."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.launch.logs import print_logs
from skyrl_stack.launch.runs import State, all_runs, look
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.launch.status import print_runs, print_status
from skyrl_stack.presence import record_failure
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint, Heartbeat, Incarnation, Launch, Load, publish
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.site import JobSection, LocalLauncher, SlurmLauncher

JOB = JobSection(partition="test", time_limit="1:00:00", cpus=1, memory_gb=8)
SLURM = Profile(name="dev", launcher=SlurmLauncher(runtime=JOB, trainer=JOB))
LOCAL = Profile(name="local", launcher=LocalLauncher())


def launched(root: Path, profile: Profile = SLURM) -> RunDirectory:
    directory = RunDirectory.create(root, profile)
    publish(directory.launch_file, Launch())
    return directory


def beat(directory: RunDirectory, role: Role, state: str, age_s: float = 0) -> None:
    record = {"launch_id": directory.launch().launch_id, "at": time.time() - age_s, "state": state}
    publish(directory.heartbeat_file(role), Heartbeat.model_validate(record))


def queue(slurm: FakeSlurm, directory: RunDirectory, **states: str) -> None:
    """Let squeue say these states, of jobs of `directory`; `launch=` is another launch's id."""
    launch_id = states.pop("launch", directory.launch().launch_id)
    jobs = [
        {
            "job_id": 100 + number,
            "name": job_name("runtime" if role == "runtime" else "trainer", launch_id),
            "job_state": state,
            "state_reason": "Priority" if state == "PENDING" else "None",
            "nodes": "" if state == "PENDING" else "holy01",
            "start_time": int(time.time()) + (7200 if state == "PENDING" else -60),
            "time_limit": 60,
        }
        for number, (role, state) in enumerate(states.items())
    ]
    slurm.answers("squeue", f"cat <<'END'\n{json.dumps({'jobs': jobs})}\nEND")


def state(directory: RunDirectory) -> State:
    return look([directory])[0].state


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ({"runtime": "PENDING", "trainer": "PENDING"}, "waiting"),
        ({"runtime": "RUNNING", "trainer": "PENDING"}, "waiting"),
        ({"runtime": "RUNNING", "trainer": "RUNNING"}, "running"),
        ({"runtime": "COMPLETING", "trainer": "COMPLETED"}, "running"),
        ({"runtime": "CANCELLED", "trainer": "CANCELLED"}, "stopped"),
        ({"runtime": "NODE_FAIL", "trainer": "NODE_FAIL"}, "lost"),
        ({}, "not started"),
        ({"runtime": "RUNNING", "trainer": "RUNNING", "launch": "anothers"}, "not started"),
    ],
)
def test_state_by_the_queue(slurm: FakeSlurm, tmp_path: Path, jobs: dict[str, str], expected: State) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory, **jobs)
    assert state(directory) == expected


def test_state_when_the_queue_has_forgotten_the_jobs(slurm: FakeSlurm, tmp_path: Path) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory)
    beat(directory, "trainer", "ready")
    assert state(directory) == "lost"
    beat(directory, "trainer", "ended")
    assert state(directory) == "stopped"
    steps = [{"step": step, "data": {"timing_s/step": 1.0}} for step in (1, 2)]
    directory.metrics_file.write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert state(directory) == "finished"
    record_failure(directory, Incarnation.here(directory.launch().launch_id), "runtime", "the disk is full")
    assert state(directory) == "failed"


def test_a_run_that_was_told_to_stop_has_not_failed(slurm: FakeSlurm, tmp_path: Path) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory)
    record_failure(
        directory, Incarnation.here(directory.launch().launch_id), "runtime", "stopped by SIGTERM", told_to_stop=True
    )
    assert state(directory) == "stopped"


def test_a_silent_slurm_says_nothing_of_a_run(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.answers("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    directory = launched(tmp_path)
    assert state(directory) == "unknown"
    beat(directory, "runtime", "ready")
    assert state(directory) == "running"
    beat(directory, "runtime", "ready", age_s=100)
    assert state(directory) == "unknown"
    beat(directory, "runtime", "ended")
    assert state(directory) == "unknown"
    beat(directory, "trainer", "ended")
    assert state(directory) == "stopped"


def test_slurm_is_asked_once_for_all_runs_and_not_for_local_ones(slurm: FakeSlurm, tmp_path: Path) -> None:
    for profile in (SLURM, LOCAL, SLURM):
        queue(slurm, launched(tmp_path, profile))
    assert len(look(all_runs(tmp_path))) == 3
    assert len(slurm.calls) == 1
    look([launched(tmp_path, LOCAL)])
    assert len(slurm.calls) == 1


def test_status_says_what_a_person_asks(slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory, runtime="RUNNING", trainer="PENDING")
    beat(directory, "runtime", "ready")
    endpoint = Endpoint(launch_id=directory.launch().launch_id, url="http://holy01:4711", token="s3cret")
    publish(directory.endpoint_file("runtime"), endpoint)
    print_status(directory)
    said = capsys.readouterr().out
    assert "job 100 RUNNING on holy01, 0:01:0" in said and "at http://holy01:4711" in said
    assert "job 101 PENDING (Priority), expected to start" in said
    assert "steps      0 of 2" in said
    assert "s3cret" not in said
    print_runs(tmp_path)
    assert "100:RUNNING 101:PENDING" in capsys.readouterr().out
    with pytest.raises(RunDirectoryError, match="no run there"):
        print_runs(tmp_path / "absent")


def test_status_of_several_nodes_has_a_line_for_each(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory, runtime="RUNNING", trainer="PENDING")
    launch_id = directory.launch().launch_id
    for instance, alive in enumerate((3, 128)):
        load = Load(capacity=128, alive=alive, waiting=alive // 64)
        sign = Heartbeat(launch_id=launch_id, instance=instance, restart=instance, host=f"holy0{instance}", load=load)
        publish(directory.heartbeat_file("runtime", instance), sign)
    print_status(directory)
    said = capsys.readouterr().out
    assert "2 of 2 nodes ready" in said
    assert "  node 0    on holy00, ready 0 s ago, 3 of 128 sandboxes in use\n" in said
    assert "on holy01, ready 0 s ago, started again 1 times, 128 of 128 sandboxes in use, 2 wait for one\n" in said


def test_status_is_live_in_a_terminal_until_the_run_is_over(slurm: FakeSlurm, tmp_path: Path) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory, runtime="RUNNING", trainer="RUNNING")
    controller, terminal = pty.openpty()
    command = [str(Path(sys.executable).with_name("skyrl-stack")), "status", "--watch", str(directory.path)]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=dict(os.environ)) as watching:
        os.close(terminal)
        assert "state      running" in read_until(controller, "steps ")
        queue(slurm, directory, runtime="COMPLETED", trainer="COMPLETED")
        beat(directory, "trainer", "ended")
        assert "state      stopped" in read_until(controller, "state      stopped")
        assert watching.wait(30) == 0
    os.close(controller)


def read_until(terminal: int, text: str) -> str:
    """What a person sees until `text` has come."""
    seen = ""
    while text not in seen:
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 65536).decode()
    return seen


def test_accounting_is_asked_for_jobs_that_the_queue_has_forgotten(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory)
    beat(directory, "trainer", "ended")
    launch_id = directory.launch().launch_id
    slurm.answers("sacct", f"echo '9|trainer-{launch_id}|OUT_OF_MEMORY|holy02'")
    print_status(directory)
    assert "job 9 OUT_OF_MEMORY on holy02" in capsys.readouterr().out


def test_logs_of_both_roles_are_merged(slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = launched(tmp_path)
    queue(slurm, directory, runtime="COMPLETED", trainer="COMPLETED")
    (directory.logs / "runtime_7.err").write_text("one\ntwo\nthree\n")
    (directory.logs / "training_8.out").write_text("step 1\nno end")
    print_logs(directory, last=2, follow=False)
    assert capsys.readouterr().out == "runtime | two\nruntime | three\ntrainer | step 1\ntrainer | no end\n"
    print_logs(directory, last=1, follow=True)
    assert capsys.readouterr().out == "runtime | three\ntrainer | no end\n"
