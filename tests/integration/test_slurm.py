"""Two real jobs on a real Slurm: they find each other, live together and end together, whatever ends one of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing, running_cluster

from skyrl_stack.launch import processes
from skyrl_stack.launch.slurm.client import Job, parse_jobs
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.report import read_steps
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.tasks.task import Task, read_tasks
from skyrl_stack.trainer.checkpoints import steps_done

pytestmark = [pytest.mark.slurm, pytest.mark.podman, pytest.mark.timeout(300)]

DEV = Path(__file__).parents[2] / "profiles" / "dev.toml"
COMMAND = str(Path(sys.executable).with_name("skyrl-stack"))
SMALL = {
    "tasks.projects": '["inflection"]',
    "tasks.per_project": "2",
    "runtime.max_sandboxes": "4",
    "agent.max_steps": "8",
    "model.path": "tiny",
    "model.context_tokens": "2048",
    "trainer.device": "cpu",
    "trainer.steps": "2",
    "trainer.tasks_per_step": "2",
    "trainer.concurrent_episodes": "4",
    "trainer.learning_rate": "1e-4",
    "trainer.save_every": "1",
    "launcher.scratch": "/tmp",
    "launcher.runtime.cpus": "4",
    "launcher.runtime.memory_gb": "8",
    "launcher.trainer.cpus": "4",
    "launcher.trainer.memory_gb": "8",
}


@dataclass
class Site:
    """What a person has on a login node: a working directory, the command, and Slurm's own commands."""

    cluster: Cluster
    workplace: Path

    def skyrl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            cwd=self.workplace,
            env=self.cluster.environment,
            text=True,
            capture_output=True,
            timeout=150,
        )

    def launch(self, **overrides: str) -> RunDirectory:
        done = self.try_launch(**overrides)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.newest()

    def try_launch(self, **overrides: str) -> subprocess.CompletedProcess[str]:
        values = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
        sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        return self.skyrl("launch", str(DEV), *sets)

    def newest(self) -> RunDirectory:
        return RunDirectory.latest(self.workplace / ".skyrl_jobs")

    def job(self, directory: RunDirectory, role: Role) -> Job:
        name = job_name(role, directory.launch().launch_id)
        return parse_jobs(self.cluster.run("squeue", "--json", "--states=all"))[name]

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str, directory: RunDirectory) -> float:
        """Wait for `condition`; returns how long that took, and fails with the roles' logs."""
        start = time.monotonic()
        while not condition():
            logs = [f"{log.name}: {log.read_text()[-2000:]}" for role in ROLES for log in directory.role_logs(role)]
            assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {what}\n" + "\n".join(logs)
            time.sleep(0.5)
        return time.monotonic() - start

    def wait_until_both_ended(self, directory: RunDirectory, timeout_s: float = 60) -> None:
        def ended() -> bool:
            return all(self.job(directory, role).has_ended for role in ROLES)

        self.wait(ended, timeout_s, "the end of both jobs", directory)
        self.wait(lambda: not processes.survivors(directory.launch().launch_id), 10, "no process left", directory)
        assert not list(Path("/tmp").glob(f"skyrl-{directory.launch().launch_id}*"))

    def wait_until_ready(
        self, directory: RunDirectory, role: Role, *, state: str = "ready", timeout_s: float = 120
    ) -> None:
        def is_there() -> bool:
            heartbeat = directory.heartbeat(role)
            return bool(heartbeat and heartbeat.state == state)

        self.wait(is_there, timeout_s, f"the {role} {state}", directory)

    def wait_until_started(
        self, directory: RunDirectory, role: Role, *, restart: int = 0, timeout_s: float = 120
    ) -> None:
        """Until the role runs, after so many restarts by Slurm; the runtime, until it serves."""

        def is_there() -> bool:
            heartbeat = directory.heartbeat(role)
            here = heartbeat and heartbeat.is_alive and heartbeat.restart == restart
            return bool(here and (role == "trainer" or heartbeat.state == "ready"))

        self.wait(is_there, timeout_s, f"the {role} after restart {restart}", directory)


ROLES: tuple[Role, Role] = ("runtime", "trainer")


@pytest.fixture
def site(inflection_tasks: list[Task], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A cluster for each test: it starts in a second, and no test inherits what another did to it.

    Its parameter is the number of GPU nodes. The tasks are in the cache; their making is not what is tested here.
    """
    assert inflection_tasks
    if lacking := missing():
        message = f"a private Slurm needs {', '.join(lacking)}: run scripts/setup-slurm as root"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with running_cluster(gpu_nodes=getattr(request, "param", 1)) as cluster:
        yield Site(cluster, tmp_path)


@pytest.fixture
def busy_gpu_node(site: Site) -> Iterator[None]:
    """Somebody else's job holds the node that the trainer's job would get."""
    argv = ["sbatch", "--parsable", "--partition=gpu_test", "--mem=63000", "--output=/dev/null", "--wrap=sleep 600"]
    job = site.cluster.run(*argv).strip()
    yield
    site.cluster.run("scancel", job)


def test_a_refused_second_job_leaves_none(site: Site) -> None:
    done = site.try_launch(launcher__trainer__constraint="unheard_of")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the trainer's job was refused: sbatch: error: Batch job submission failed: Invalid feature" in done.stderr
    assert "for runtime is cancelled" in done.stderr
    site.cluster.wait_for(lambda: site.job(site.newest(), "runtime").state == "CANCELLED", 40, "cancelled runtime")


@pytest.mark.usefixtures("busy_gpu_node")
def test_a_trainer_cancelled_in_the_queue_ends_the_runtime(site: Site) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    assert site.job(directory, "trainer").state == "PENDING"
    status = site.skyrl("status").stdout
    assert "state      waiting" in status and "PENDING (Resources)" in status and "ready" in status
    site.cluster.run("scancel", site.job(directory, "trainer").id)
    site.wait_until_both_ended(directory)
    failure = directory.failure()
    assert (
        failure and failure.role == "runtime" and "of the trainer is CANCELLED and the role never ran" in failure.cause
    )


@pytest.mark.usefixtures("busy_gpu_node")
def test_a_runtime_that_ends_takes_the_waiting_trainer_out_of_the_queue(site: Site) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    site.cluster.run("scancel", site.job(directory, "runtime").id)
    site.wait_until_both_ended(directory)
    assert site.job(directory, "trainer").state == "CANCELLED"
    failure = directory.failure()
    assert failure and failure.cause.startswith("stopped by SIGTERM")


@pytest.mark.usefixtures("busy_gpu_node")
def test_near_the_time_limit_a_run_without_requeue_ends_in_order(site: Site) -> None:
    limits = {"launcher__runtime__time_limit": "0:02:00", "launcher__trainer__time_limit": "0:02:00"}
    directory = site.launch(run__requeue="false", run__notice_s="60", **limits)
    site.wait_until_ready(directory, "runtime")
    site.wait_until_both_ended(directory, 120)
    failure = directory.failure()
    assert failure and failure.cause == "the runtime is near its time limit; skyrl-stack resume goes on"
    assert site.job(directory, "runtime").state == "FAILED"  # by itself, and not TIMEOUT


@pytest.mark.usefixtures("busy_gpu_node")
def test_daemons_of_slurm_that_are_away_are_no_reason_to_stop(site: Site) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    site.cluster.stop_controller()
    site.cluster.kill("cpu1")
    try:
        time.sleep(25)  # longer than the runtime waits between two looks into the queue
        status = site.skyrl("status").stdout
        assert "state      running" in status and status.count("Slurm does not answer") == 2
        stopped = site.skyrl("stop")
        assert stopped.returncode == 1 and "Unable to contact slurm controller" in stopped.stderr
    finally:
        site.cluster.start_controller()
        site.cluster.start_node("cpu1")
    site.cluster.wait_for(lambda: site.job(directory, "runtime").state == "RUNNING", 30, "controller")
    assert site.skyrl("stop").returncode == 0
    site.wait_until_both_ended(directory)


@pytest.mark.parametrize("victim", ROLES)
def test_a_cancelled_job_ends_the_other(site: Site, victim: Role) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    site.wait_until_ready(directory, "trainer", state="starting")
    site.cluster.run("scancel", site.job(directory, victim).id)
    site.wait_until_both_ended(directory)
    failure = directory.failure()
    assert failure and failure.role == victim and failure.cause.startswith("stopped by SIGTERM")
    assert site.job(directory, victim).state == "CANCELLED"


@pytest.mark.parametrize("victim", ROLES)
def test_a_killed_role_ends_both_jobs(site: Site, victim: Role) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    site.wait_until_ready(directory, "trainer", state="starting")
    for process in _role_processes(directory, victim):
        os.kill(process, signal.SIGKILL)
    site.wait_until_both_ended(directory)
    assert "killed by SIGKILL" in site.skyrl("status").stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The file system of the run directories alone. Made before the cluster, whose nodes are to see it."""
    root = tmp_path / ".skyrl_jobs"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)], check=True)
    yield root
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_a_full_disk_ends_the_run_with_one_line_and_it_can_go_on(small_disk: Path, site: Site) -> None:
    directory = site.launch(run__peer_timeout_s="5")
    site.wait_until_started(directory, "runtime")
    site.wait_until_started(directory, "trainer")
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(9 << 20))
    site.wait_until_both_ended(directory)
    [line] = [line for line in site.skyrl("status").stdout.splitlines() if line.startswith("error")]
    assert f"{directory.path}: no room is left; make some, then skyrl-stack resume goes on" in line
    assert not [draft for draft in directory.path.rglob(".*") if draft.name != ".spare"]
    filler.unlink()
    assert site.skyrl("resume").returncode == 0
    site.wait_until_started(directory, "runtime")
    site.wait_until_started(directory, "trainer")
    assert site.skyrl("stop").returncode == 0
    site.wait_until_both_ended(directory)


def test_what_is_taken_away_comes_back_to_the_other_that_was_held(site: Site) -> None:
    directory = site.launch(run__max_requeues="2")
    site.wait_until_started(directory, "runtime")
    site.wait_until_started(directory, "trainer")
    [trainer] = _role_processes(directory, "trainer")
    site.cluster.run("scontrol", "requeue", site.job(directory, "runtime").id)
    site.wait_until_started(directory, "runtime", restart=1)
    [runtime] = _role_processes(directory, "runtime")
    assert _role_processes(directory, "trainer") == [trainer]

    site.cluster.lose_gpu_node()
    try:
        site.wait(lambda: site.job(directory, "trainer").state == "PENDING", 60, "the trainer in the queue", directory)
    finally:
        site.cluster.start_node("gpu1")
    site.wait_until_started(directory, "trainer", restart=1)
    for _ in range(2):
        assert directory.failure() is None
        assert _role_processes(directory, "runtime") == [runtime]
        site.cluster.run("scontrol", "requeue", site.job(directory, "trainer").id)
        if site.job(directory, "trainer").restarts == 2:
            site.wait_until_started(directory, "trainer", restart=2)
    site.wait_until_both_ended(directory)
    failure = directory.failure()
    assert failure and failure.cause.startswith("the trainer was requeued 3 times in a row and step 1 was not finished")


def test_a_preempted_trainer_is_waited_for_and_then_waited_for_in_the_queue(site: Site) -> None:
    directory = site.launch(run__hold_s="5")
    site.wait_until_started(directory, "runtime")
    site.wait_until_started(directory, "trainer")
    urgent = ["sbatch", "--parsable", "--partition=gpu_urgent", "--mem=63000", "--output=/dev/null", "--wrap=sleep 600"]
    job = site.cluster.run(*urgent).strip()
    site.wait(lambda: site.job(directory, "runtime").state == "PENDING", 60, "the runtime in the queue", directory)
    assert site.job(directory, "trainer").state == "PENDING"
    site.cluster.run("scancel", job)
    site.wait_until_started(directory, "trainer", restart=1)
    site.wait_until_started(directory, "runtime", restart=1)
    assert directory.failure() is None
    assert site.skyrl("stop").returncode == 0
    site.wait_until_both_ended(directory)
    assert {site.job(directory, role).state for role in ROLES} == {"CANCELLED"}


def test_a_killed_batch_job_ends_both(site: Site) -> None:
    directory = site.launch()
    site.wait_until_started(directory, "runtime")
    site.wait_until_started(directory, "trainer")
    [job] = _role_processes(directory, "trainer", module="skyrl_stack.launch.slurm.job")
    os.kill(job, signal.SIGKILL)
    site.wait_until_both_ended(directory, 90)
    failure = directory.failure()
    assert failure and "of the trainer is FAILED" in failure.cause


def _role_processes(directory: RunDirectory, role: Role, module: str = "") -> list[int]:
    """The processes of `role` itself, or of its `module`: not its batch script, nor what it started."""
    named = [b"-m", (module or f"skyrl_stack.{role}").encode(), *([role.encode()] if module else [])]
    commands = {
        process: Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        for process in processes.survivors(directory.launch().launch_id)
    }
    found = [process for process, command in commands.items() if command[1 : 1 + len(named)] == named]
    assert found
    return found


TWO_NODES = {
    "launcher__trainer__nodes": "2",
    "launcher__network__fabric": "tcp",
    "launcher__network__interface": "eth0",
}


def _processes_named(site: Site, node: str, name: str) -> list[int]:
    """Processes of a GPU node that have `name` at the start of their title."""
    return [
        process
        for process in site.cluster.processes_of(node)
        if _command(process).startswith(name) or _command(process).endswith(f"/{name}")
    ]


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")[0]
    return ""


@pytest.mark.parametrize("site", [2], indirect=True)
@pytest.mark.timeout(600)
def test_a_killed_ray_on_another_node_of_the_trainer_ends_both_jobs(site: Site) -> None:
    directory = site.launch(**TWO_NODES)
    site.wait(lambda: _processes_named(site, "gpu2", "raylet"), 300, "the model, then Ray on gpu2", directory)
    os.kill(_processes_named(site, "gpu2", "raylet")[0], signal.SIGKILL)
    site.wait_until_both_ended(directory)
    failure = directory.failure()
    assert failure and failure.role == "trainer" and "gpu2" in failure.cause
    assert not list(Path("/tmp").glob(f"skyrl-{directory.launch().launch_id}*"))


@pytest.mark.training
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("site", [2], indirect=True)
def test_an_update_on_two_nodes_of_the_trainer_and_a_resume(site: Site) -> None:
    directory = site.launch(**TWO_NODES, trainer__steps="1")
    for node in ("gpu1", "gpu2"):
        site.wait(lambda node=node: _processes_named(site, node, "ray::"), 300, f"ranks on {node}", directory)
    site.wait_until_both_ended(directory, 800)
    states = [site.job(directory, role).state for role in ROLES]
    assert states == ["COMPLETED", "COMPLETED"], site.skyrl("logs", "-n", "60").stdout
    status = site.skyrl("status").stdout
    assert "state      finished" in status and "steps      1 of 1" in status, status
    shards = {file.name for file in directory.checkpoints.glob("global_step_1/actor/model_world_size_*")}
    assert shards == {"model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"}
    assert site.skyrl("resume", "--set", "trainer.steps=2").returncode == 0
    site.wait_until_both_ended(directory, 600)
    assert "steps      2 of 2" in site.skyrl("status").stdout
    assert " finished " in site.skyrl("list").stdout
    assert not list(Path("/tmp").glob(f"skyrl-{directory.launch().launch_id}*"))


@pytest.mark.training
@pytest.mark.timeout(1500)
def test_a_run_that_needs_three_time_limits_is_the_run_that_needs_one(site: Site) -> None:
    """The first ends by Slurm's notice before the limit, the second by the same signal as preemption sends it."""
    limit = {"launcher__runtime__time_limit": "1:00:00", "launcher__trainer__time_limit": "1:00:00"}
    how = {"trainer__steps": "4", "trainer__tasks_per_step": "1", "trainer__save_every": "99", "run__notice_s": "600"}
    directory = site.launch(**limit, **how)
    launch_id, trainer = directory.launch().launch_id, site.job(directory, "trainer").id
    site.wait_until_ready(directory, "trainer", timeout_s=300)
    minutes = int(time.time() - site.job(directory, "trainer").starts_at) // 60 + 10
    site.cluster.run("scontrol", "update", f"JobId={trainer}", f"TimeLimit={minutes}")
    site.wait_until_started(directory, "trainer", restart=1, timeout_s=500)
    assert steps_done(directory.checkpoints) == 1
    site.cluster.run("scontrol", "update", f"JobId={trainer}", "TimeLimit=60")
    site.wait_until_ready(directory, "trainer")
    site.cluster.run("scancel", "--signal=USR1", "--batch", trainer)
    site.wait_until_started(directory, "trainer", restart=2, timeout_s=500)
    assert steps_done(directory.checkpoints) == 2
    site.wait_until_both_ended(directory, 500)

    jobs = {role: site.job(directory, role) for role in ROLES}
    assert [job.state for job in jobs.values()] == ["COMPLETED", "COMPLETED"], site.skyrl("logs", "-n", "60").stdout
    assert (jobs["trainer"].id, jobs["trainer"].restarts, jobs["runtime"].restarts) == (trainer, 2, 0)
    assert directory.launch().launch_id == launch_id
    steps = read_steps(directory)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert all(step.metrics["actor/grad_norm"] >= 0 and len(step.episodes) == 4 for step in steps)
    assert [{episode.instance_id for episode in step.episodes} for step in steps] == _tasks_in_order(directory, 4)
    wandb = {file.name.rpartition("-")[2] for file in (directory.verl / "wandb").glob("offline-run-*")}
    assert len(wandb) == 1
    status = site.skyrl("status").stdout
    assert "state      finished" in status and "steps      4 of 4" in status, status
    assert " finished " in site.skyrl("list").stdout


def _tasks_in_order(directory: RunDirectory, steps: int) -> list[set[str]]:
    """The tasks of each step of a run that is never interrupted, a task a step, by verl's own sampler."""
    from omegaconf import OmegaConf
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.utils import create_rl_sampler

    names = [task.instance_id for task in read_tasks(directory.tasks_file)]
    order = OmegaConf.create({"shuffle": True, "seed": directory.profile().trainer.seed})
    loader = StatefulDataLoader(names, batch_size=1, sampler=create_rl_sampler(order, names))
    epochs = [set(batch) for _ in range(steps) for batch in loader]
    return epochs[:steps]
