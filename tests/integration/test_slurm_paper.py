"""What is asked of Slurm before a job starts and after it was forgotten, answered by a real one with accounting."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from paper_cluster import PaperCluster, missing, paper_cluster

from lanes import cannot_run
from skyrl_stack.errors import ProfileError, SlurmRefused
from skyrl_stack.launch.launch import launch_profile
from skyrl_stack.launch.plan.plan import plan
from skyrl_stack.launch.plan.survey import survey
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.status import print_status
from skyrl_stack.launch.stop import stop_run
from skyrl_stack.profile import Profile, load_profile
from skyrl_stack.run_directory import RunDirectory

pytestmark = [pytest.mark.slurm]

PROFILES = Path(__file__).parents[2] / "profiles"
DEV, PRODUCTION = PROFILES / "dev.toml", PROFILES / "production.toml"
LARGE = """\
NodeName=cpu[1-8] NodeAddr=127.0.0.[11-18] CPUs=112 RealMemory=1000000
NodeName=gpu[1-4] NodeAddr=127.0.0.[21-24] CPUs=112 RealMemory=2000000 Gres=gpu:h100:8
PartitionName=test Nodes=cpu[1-8] Default=YES MaxTime=7-00:00:00 State=UP
PartitionName=sapphire Nodes=cpu[1-8] MaxTime=7-00:00:00 State=UP
PartitionName=gpu_test Nodes=gpu[1-4] MaxTime=3-00:00:00 State=UP
PartitionName=gpu_h200 Nodes=gpu[1-4] MaxTime=3-00:00:00 State=UP
"""
SMALLER = ["model.path=Qwen/Qwen2.5-0.5B-Instruct", "trainer.steps=10"]
"For the disk of the machine that tests."
LIMITS = """\
add qos grouptwo GrpSubmitJobs=2
add qos fourjobs MaxSubmitJobsPerUser=4
add qos onejob MaxSubmitJobsPerUser=1
add qos short MaxWall=01:00:00
add qos fewgpus MaxTRESPerUser=gres/gpu=0
modify user root set qos=normal,grouptwo,fourjobs,onejob,short,fewgpus
"""


@pytest.fixture(scope="module")
def running() -> Iterator[PaperCluster]:
    if lacking := missing():
        cannot_run(f"a Slurm with accounting needs {', '.join(lacking)}: run scripts/setup-slurm as root")
    with paper_cluster(LARGE) as cluster:
        for line in LIMITS.splitlines():
            cluster.run("sacctmgr", "-i", *line.split())
        yield cluster


@pytest.fixture
def cluster(running: PaperCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PaperCluster]:
    """With an empty queue, and this test as somebody in a directory of their own on the login node."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running.environment[name])
    yield running
    running.run("scancel", "--user=root")
    running.wait_for(lambda: not running.run("squeue", "--noheader"), 60, "empty queue")


def dev(*overrides: str) -> Profile:
    return load_profile(DEV, overrides)


def launch(*overrides: str) -> RunDirectory:
    launch_profile(str(DEV), overrides, resume=False, run_dir=None, dry_run=False, say=print)
    return RunDirectory.latest()


@pytest.mark.usefixtures("cluster")
def test_the_survey_is_what_slurm_says() -> None:
    seen = survey(dev())
    assert seen.partitions
    sizes = {partition.name: (partition.nodes, partition.cpus, partition.gpus) for partition in seen.partitions}
    assert sizes["sapphire"] == (8, 112, {}) and sizes["gpu_h200"] == (4, 112, {"h100": 8})
    assert [limit.name for limit in seen.limits if limit.is_default] == ["root"]
    assert {limit.name: limit.submit for limit in seen.limits if limit.kind == "qos"}["onejob"] == 1


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("qos", "said"),
    [
        ("onejob", "2 jobs, but QOS onejob allows 1 submitted at once"),
        ("short", "is over what QOS short allows: 1:00:00 works"),
        ("fewgpus", "ask for gres/gpu=1, but QOS fewgpus allows 0 at once"),
    ],
)
def test_a_limit_of_accounting_is_found_before_submission(qos: str, said: str) -> None:
    overrides = [f"launcher.{role}.qos={qos}" for role in ("runtime", "trainer")]
    errors = [finding.text for finding in plan(dev(*overrides), survey(dev(*overrides))).findings]
    assert any(said in text for text in errors), errors
    with pytest.raises(ProfileError):
        launch(*overrides)
    assert not Path(".skyrl_jobs").exists()


def test_tasks_of_an_array_that_wait_count_one_by_one(cluster: PaperCluster) -> None:
    cluster.run("sbatch", "--qos=fourjobs", "--array=1-5:2%1", "--wrap=true")
    profile = dev("launcher.runtime.qos=fourjobs", "launcher.trainer.qos=fourjobs")
    seen = survey(profile)
    assert (seen.array_size, [(job.tasks, job.qos) for job in seen.queued]) == (1001, [(3, "fourjobs")])
    [finding] = plan(profile, seen).findings
    assert "QOS fourjobs allows 4 submitted at once and 3 of yours are in the queue" in finding.text
    with pytest.raises(ProfileError, match="3 of yours are in the queue"):
        launch("launcher.runtime.qos=fourjobs", "launcher.trainer.qos=fourjobs")


def test_slurms_own_refusal_of_the_second_job_takes_the_first_back(cluster: PaperCluster) -> None:
    """By a limit of the whole group, of whose other members the plan knows nothing."""
    cluster.run("sbatch", "--qos=grouptwo", "--wrap=true")
    with pytest.raises(SlurmRefused, match=r"trainer's job was refused: sbatch: error: QOSGrpSubmitJobsLimit") as no:
        launch("launcher.runtime.qos=grouptwo", "launcher.trainer.qos=grouptwo")
    assert "what was submitted for runtime is cancelled" in str(no.value)
    cluster.wait_for(
        lambda: cluster.run("squeue", "--noheader").count("\n") == 1, 60, "queue without the runtime's job"
    )


def test_accounting_knows_a_job_that_the_queue_has_forgotten(
    cluster: PaperCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = launch()
    print_status(directory)
    waiting = capsys.readouterr().out
    assert waiting.count("PENDING") == 2 and "state      waiting" in waiting
    stop_run(directory, say=print)
    cluster.wait_for(lambda: not client.jobs(), 60, "queue that has forgotten")
    capsys.readouterr()
    print_status(directory)
    forgotten = capsys.readouterr().out
    assert "runtime    job" in forgotten and "CANCELLED\n" in forgotten and "state      stopped" in forgotten


def test_production_fits_a_cluster_of_its_size(cluster: PaperCluster, capsys: pytest.CaptureFixture[str]) -> None:
    profile = load_profile(PRODUCTION)
    planned = plan(profile, replace(survey(profile), free_bytes=10**12))
    assert planned.findings == []
    needs = {need.what: need for need in planned.needs}
    assert needs["sandboxes at once"].there_is == "512 (4 × 128)"
    launch_profile(str(PRODUCTION), SMALLER, resume=False, run_dir=None, dry_run=True, say=print)
    said = capsys.readouterr().out
    assert cluster.run("squeue", "--noheader") == ""
    directory = RunDirectory.latest()
    assert f"--array=0-3 {directory.batch_script('runtime')}" in said
    trainer = directory.batch_script("trainer").read_text()
    assert "#SBATCH --nodes=4" in trainer and "#SBATCH --gres=gpu:8" in trainer
    for role in ("runtime", "trainer"):
        script = directory.batch_script(role)
        assert script.read_text() in said
        cluster.run("sbatch", "--hold", str(script))  # as it stands, Slurm takes it
