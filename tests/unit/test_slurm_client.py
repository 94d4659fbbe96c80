"""Slurm's answers, recorded from real ones, and how its refusals and its silence are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from skyrl_stack.errors import SetupError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.client import Partition
from skyrl_stack.launch.slurm.jobs import Job, by_name, read_jobs

RECORDED = Path(__file__).parent / "slurm"


def jobs_of(answer: str) -> dict[str, Job]:
    return by_name(read_jobs(answer))


@pytest.mark.parametrize("version", ["22.05", "24.11"])
def test_the_queue_in_both_shapes_of_json(version: str) -> None:
    jobs = jobs_of((RECORDED / f"squeue-{version}.json").read_text())
    running, pending = jobs["runtime-abc"], jobs["trainer-abc"]
    assert (running.id, running.state, running.node, running.reason) == ("1", "RUNNING", "cpu1", "")
    assert (running.time_limit_s, running.starts_at > 1.7e9, running.has_ended) == (3600, True, False)
    assert (pending.state, pending.reason, pending.node, pending.starts_at) == ("PENDING", "Dependency", "", 0)
    assert (jobs["done-abc"].state, jobs["done-abc"].reason) == ("FAILED", "NonZeroExitCode")
    assert [job.name for job in jobs.values() if job.has_ended] == ["done-abc", "cancelled-abc"]


def test_a_job_is_found_by_id_and_name(slurm: FakeSlurm) -> None:
    text = (RECORDED / "squeue-24.11.json").read_text().replace('"restart_cnt": 0', '"restart_cnt": 2')
    (slurm.folder / "answer").write_text(text)
    slurm.answers("squeue", f"/bin/cat {slurm.folder}/answer")
    job = client.find("1", "runtime-abc")
    assert job and (job.state, job.restarts) == ("RUNNING", 2)
    assert client.find("1", "runtime-of-another-launch") is None
    assert client.find("7", "runtime-abc") is None
    slurm.answers("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert client.find("1", "runtime-abc") is None


def test_a_requeue_goes_behind_the_other_job(slurm: FakeSlurm) -> None:
    slurm.answers("scontrol", "exit 0")
    client.requeue("7", behind="8")
    assert slurm.calls == ["scontrol requeue 7", "scontrol update JobId=7 Dependency=after:8"]
    slurm.answers("scontrol", "echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    with pytest.raises(SlurmRefused, match="presently disabled"):
        client.requeue("7")


def test_no_controller_is_not_an_empty_queue() -> None:
    with pytest.raises(SlurmUnreachable, match="Failed while looking for jobs"):
        read_jobs((RECORDED / "squeue-22.05-no-controller.json").read_text())


def test_of_several_jobs_of_a_name_one_that_lives_counts_or_the_newest() -> None:
    text = (RECORDED / "squeue-22.05.json").read_text()
    assert jobs_of(text.replace("done-abc", "runtime-abc"))["runtime-abc"].id == "1"
    assert jobs_of(text.replace("done-abc", "cancelled-abc"))["cancelled-abc"].id == "4"


@pytest.mark.parametrize(
    ("task", "waiting", "expected"),
    [
        (None, "", "7"),
        (3, "", "5_3"),
        (None, "1-2", "7_[1-2]"),
        ({"set": True, "infinite": False, "number": 0}, "", "5_0"),
        ({"set": False, "infinite": False, "number": 0}, "1-2", "7_[1-2]"),
    ],
)
def test_tasks_of_an_array_are_named_as_slurm_names_them(task: Any, waiting: str, expected: str) -> None:
    job = {"job_id": 7, "name": "n", "job_state": "RUNNING", "state_reason": "None", "nodes": "", "start_time": 0}
    array = {"time_limit": 60, "array_job_id": 5, "array_task_id": task, "array_task_string": waiting}
    assert jobs_of(json.dumps({"jobs": [job | array]}))["n"].id == expected


def test_tasks_that_wait_are_told_with_one_that_runs_and_each_counts() -> None:
    record = {"name": "n", "state_reason": "None", "nodes": "", "start_time": 0, "time_limit": 60}
    running = record | {"job_id": 8, "job_state": "RUNNING", "array_job_id": 7, "array_task_id": 0}
    again = record | {"job_id": 9, "job_state": "PENDING", "array_job_id": 7, "array_task_id": 1}
    waiting = record | {"job_id": 7, "job_state": "PENDING", "array_job_id": 7, "array_task_string": "2-6,8,10-20:5%2"}
    answer = json.dumps({"jobs": [running, again, waiting]})
    assert [job.tasks for job in read_jobs(answer)] == [9, 1, 1]
    assert (jobs_of(answer)["n"].id, jobs_of(answer)["n"].more_waiting) == ("7_0", 10)
    assert jobs_of(json.dumps({"jobs": [waiting]}))["n"].more_waiting == 0  # its id says which


def test_an_array_of_which_some_tasks_wait_as_slurm_24_tells_it() -> None:
    answer = (RECORDED / "squeue-24.11-array.json").read_text()
    assert {job.id: job.tasks for job in read_jobs(answer)} == {
        "1_[4-5]": 2,
        "1_0": 1,
        "1_1": 1,
        "1_2": 1,
        "1_3": 1,
    }
    job = jobs_of(answer)["runtime-abc"]
    assert (job.state, job.number, job.more_waiting) == ("RUNNING", "7", 2)


def test_the_size_of_an_array_is_what_the_site_allows(slurm: FakeSlurm) -> None:
    slurm.answers("scontrol", "printf 'MaxArraySize            = 1001\\nMaxJobCount             = 10000\\n'")
    assert client.array_size() == 1001
    slurm.answers("scontrol", "exit 1")
    assert client.array_size() is None


def test_partitions(slurm: FakeSlurm) -> None:
    lines = "gpu|3-00:00:00|64|1031000+|gpu:nvidia_a100-sxm4-80gb:4(S:0-3)|12\\ntest|30:00|48|192000|(null)|3"
    slurm.answers("sinfo", f"printf '{lines}\\nmine|infinite|4|8000|gpu:2,gpu:a100:1|1\\n'")
    rules = (
        "PartitionName=gpu AllowQos=ALL QoS=N/A MaxNodes=UNLIMITED\\nPartitionName=test QoS=short MaxNodes=2 Nodes=x"
    )
    slurm.answers("scontrol", f"printf '{rules}\\n'")
    assert client.partitions() == [
        Partition("gpu", 259200, 64, 1031000, {"nvidia_a100-sxm4-80gb": 4}, nodes=12),
        Partition("test", 1800, 48, 192000, {}, nodes=3, nodes_per_job=2, qos="short"),
        Partition("mine", None, 4, 8000, {"": 2, "a100": 1}),
    ]


def test_a_refusal_is_in_slurms_words(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.answers("sbatch", "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    with pytest.raises(SlurmRefused, match=r"^sbatch: error: QOSMaxSubmitJobPerUserLimit$"):
        client.submit(tmp_path / "script", tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    ],
)
def test_a_controller_that_does_not_answer_is_not_a_refusal(slurm: FakeSlurm, said: str) -> None:
    slurm.answers("squeue", f"echo '{said}' >&2; exit 1")
    with pytest.raises(SlurmUnreachable):
        client.jobs()


def test_a_command_that_hangs_is_given_up(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", 0.2)
    slurm.answers("squeue", "exec sleep 30")
    with pytest.raises(SlurmUnreachable, match="no answer"):
        client.jobs()


def test_an_answer_that_is_no_json_says_nothing_about_jobs(slurm: FakeSlurm) -> None:
    slurm.answers("squeue", "echo '{}'")
    with pytest.raises(SlurmUnreachable, match="unexpected answer"):
        client.jobs()


def test_without_slurm_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="squeue not found"):
        client.jobs()


def test_the_shells_own_slurm_variables_do_not_win_over_the_script(
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SLURM_CONF", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "here")
    slurm.answers("sbatch", f"env > {tmp_path}/seen; echo '42;cluster'")
    assert client.submit(tmp_path / "script", tmp_path, after=["41"]) == "42"
    seen = {line.split("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert {"SLURM_CONF", "WANDB_API_KEY"} <= seen
    assert not {"SBATCH_PARTITION", "SLURM_JOB_ID"} & seen
    assert slurm.calls == [
        f"sbatch --parsable --chdir={tmp_path} --dependency=after:41 --kill-on-invalid-dep=yes {tmp_path}/script"
    ]


def test_accounting(slurm: FakeSlurm) -> None:
    slurm.answers("sacct", "echo '7|runtime-x|CANCELLED by 1000|holy01'")
    job = client.accounted(["runtime-x"])["runtime-x"]
    assert (job.id, job.state, job.node, job.has_ended) == ("7", "CANCELLED", "holy01", True)
    slurm.answers("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert client.accounted(["runtime-x"]) == {}
