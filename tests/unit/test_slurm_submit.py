"""Submission: two jobs or none, and a dry run that leaves exactly what would be submitted."""

import json
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, profile_of_two_jobs

from skyrl_stack.errors import RunDirectoryError, SlurmRefused, SlurmUnreachable, StackError
from skyrl_stack.launch.launch import launch_profile, resume_run
from skyrl_stack.launch.slurm.submit import join_run
from skyrl_stack.launch.stop import stop_run
from skyrl_stack.run_directory import RunDirectory

REFUSES_TRAINER = "case $* in *trainer.sbatch) echo QOSMaxSubmitJobPerUserLimit >&2; exit 1;; esac; echo 11"


@pytest.fixture(autouse=True)
def site(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(profile_of_two_jobs("two"))
    slurm.is_idle()
    slurm.answers("scancel", "exit 0")
    slurm.answers("sbatch", "case $* in *trainer.sbatch) echo 12;; *) echo 11;; esac")


def launch(*overrides: str, dry_run: bool = False) -> list[str]:
    said: list[str] = []
    launch_profile("two.toml", overrides, resume=False, run_dir=None, dry_run=dry_run, say=said.append)
    return said


def commands(slurm: FakeSlurm, program: str) -> list[str]:
    return [call for call in slurm.calls if call.startswith(program)]


def test_the_trainer_is_submitted_to_start_after_the_runtime(slurm: FakeSlurm) -> None:
    said = launch()
    assert said[1:3] == [
        "runtime: job 11 in partition test, time limit 1:00:00",
        "trainer: job 12 in partition test, time limit 1:00:00",
    ]
    first, second = commands(slurm, "sbatch")
    assert first.endswith("slurm/runtime.sbatch") and "--dependency" not in first
    assert second.endswith("slurm/trainer.sbatch") and "--dependency=after:11 --kill-on-invalid-dep=yes" in second
    assert commands(slurm, "scancel") == []


def test_nodes_of_the_runtime_are_jobs_of_their_own_and_the_first_to_start_is_enough(slurm: FakeSlurm) -> None:
    said = launch("launcher.runtime.nodes=3")
    assert "runtime: job 11 in partition test on 3 nodes, time limit 1:00:00" in said
    first, second = commands(slurm, "sbatch")
    assert " --array=0-2 " in first and " --nodes=" not in first
    assert " --array" not in second and "--dependency=after:11_0?after:11_1?after:11_2 " in second


def test_nodes_that_join_go_on_counting(slurm: FakeSlurm) -> None:
    launch("launcher.runtime.nodes=2")
    run, said = RunDirectory.latest(), list[str]()
    running = {"name": f"runtime-{run.launch().launch_id}", "job_state": "RUNNING", "job_id": 11, "nodes": "n1"}
    running |= {"state_reason": "None", "start_time": 0, "time_limit": 60}
    slurm.answers("squeue", f"echo '{json.dumps({'jobs': [running]})}'")
    join_run(run, 1, said.append)
    join_run(run, 2, said.append)
    assert [call.split()[3] for call in commands(slurm, "sbatch")[2:]] == ["--array=2-2", "--array=3-4"]
    assert run.profile().runtime_nodes == 5
    assert said[1] == "runtime: job 11_[3-4] in partition test"


def test_nobody_joins_a_run_that_is_over(slurm: FakeSlurm) -> None:
    launch()
    with pytest.raises(RunDirectoryError, match="while it lasts, and this one is not started"):
        join_run(RunDirectory.latest(), 1, print)
    assert len(commands(slurm, "sbatch")) == 2


def test_a_refused_second_job_takes_the_first_back(slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", REFUSES_TRAINER)
    with pytest.raises(SlurmRefused, match=r"^the trainer's job was refused: .*QOSMax.*for runtime is cancelled$"):
        launch()
    launch_id = RunDirectory.latest().launch().launch_id
    assert commands(slurm, "scancel") == [f"scancel --me --name=runtime-{launch_id}"]


def test_of_an_unanswered_submission_both_are_taken_back(slurm: FakeSlurm) -> None:
    """Nobody knows whether the second was taken."""
    slurm.answers("sbatch", "case $* in *trainer.sbatch) echo 'Socket timed out' >&2; exit 1;; esac; echo 11")
    with pytest.raises(SlurmUnreachable, match="for runtime and trainer is cancelled"):
        launch()
    assert len(commands(slurm, "scancel")) == 2


def test_what_could_not_be_taken_back_is_said(slurm: FakeSlurm) -> None:
    slurm.answers("sbatch", REFUSES_TRAINER)
    slurm.answers("scancel", "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmRefused, match=r"could not be cancelled .*see squeue --me"):
        launch()


def test_a_profile_that_can_never_start_is_not_submitted(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.answers("sinfo", "echo 'test|30:00|16|64000|(null)|1'")
    with pytest.raises(StackError, match="over what test allows: 0:30:00 works"):
        launch()
    assert commands(slurm, "sbatch") == []
    assert not (tmp_path / ".skyrl_jobs").exists()


def test_a_dry_run_prints_what_it_wrote_and_submits_nothing(slurm: FakeSlurm) -> None:
    said = "\n".join(launch(dry_run=True))
    directory = RunDirectory.latest()
    for role in ("runtime", "trainer"):
        script = directory.batch_script(role)
        assert script.read_text() in said
        assert script.stat().st_mode & 0o777 == 0o600
    launch()
    really = [
        call.replace(str(RunDirectory.latest().path), "DIR").replace(":11 ", ":RUNTIME_JOB_ID ")
        for call in commands(slurm, "sbatch")
    ]
    assert [line.replace(str(directory.path), "DIR") for line in said.splitlines()[-2:]] == really


def test_a_run_that_slurm_still_has_is_not_resumed(slurm: FakeSlurm) -> None:
    launch()
    directory = RunDirectory.latest()
    job = (
        '{"job_id": 12, "name": "trainer-%s", "job_state": "PENDING", "state_reason": "Priority", "nodes": "",'
        ' "start_time": 0, "time_limit": 60}'
    )
    slurm.answers("squeue", f"echo '{{\"jobs\": [{job % directory.launch().launch_id}]}}'")
    with pytest.raises(RunDirectoryError, match="is still running; skyrl-stack stop"):
        resume_run(directory, [], say=print)
    slurm.answers("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RunDirectoryError, match="may be running: Slurm does not answer"):
        resume_run(directory, [], say=print)


def test_resume_submits_both_roles_again_under_a_new_launch(slurm: FakeSlurm) -> None:
    launch()
    directory = RunDirectory.latest()
    first = directory.launch().launch_id
    resume_run(directory, ["trainer.steps=9"], say=print)
    assert directory.launch().launch_id != first
    assert directory.profile().trainer.steps == 9
    script = directory.batch_script("trainer").read_text()
    assert script.rstrip().endswith("--resume") and first not in script
    assert len(commands(slurm, "sbatch")) == 4


def test_stop_of_a_run_that_is_over_says_so(slurm: FakeSlurm) -> None:
    launch()
    said: list[str] = []
    stop_run(RunDirectory.latest(), say=said.append)
    assert said[0].endswith("not running (not started)")
    assert commands(slurm, "scancel") == []
