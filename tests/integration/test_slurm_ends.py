"""Two real jobs on a real Slurm find each other and end together, whatever ends one of them."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_site import ROLES, Site, role_processes

from skyrl_stack.run_directory import Role

pytestmark = [pytest.mark.slurm, pytest.mark.podman, pytest.mark.timeout(300)]


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
    site.wait_until_both_ended(directory, 150)
    failure = directory.failure()
    assert failure and failure.cause == "the runtime is near its time limit; skyrl-stack resume goes on"
    assert site.job(directory, "runtime").state == "FAILED"  # by itself, and not TIMEOUT


@pytest.mark.usefixtures("busy_gpu_node")
def test_daemons_of_slurm_that_are_away_are_no_reason_to_stop(site: Site) -> None:
    directory = site.launch()
    site.wait_until_ready(directory, "runtime")
    site.cluster.wait_until_saved(directory.launch().launch_id)
    site.cluster.kill("slurmctld")
    site.cluster.kill("cpu1")
    away_since = time.monotonic()
    try:
        status = site.skyrl("status").stdout
        assert "state      running" in status and status.count("Slurm does not answer") == 2
        stopped = site.skyrl("stop")
        assert stopped.returncode == 1 and "Unable to contact slurm controller" in stopped.stderr
        time.sleep(max(0, 25 - (time.monotonic() - away_since)))  # the runtime looks into the queue every 20 s
    finally:
        site.cluster.start_controller()
        site.cluster.start_node("cpu1")
    site.cluster.wait_for(lambda: site.job(directory, "runtime").state == "RUNNING", 30, "controller")
    site.stop(directory)


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
    for process in role_processes(directory, victim):
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
    site.wait_until_both_started(directory)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(9 << 20))
    site.wait_until_both_ended(directory)
    [line] = [line for line in site.skyrl("status").stdout.splitlines() if line.startswith("error")]
    assert f"{directory.path}: no room is left; make some, then skyrl-stack resume goes on" in line
    assert not [draft for draft in directory.path.rglob(".*") if draft.name != ".spare"]
    filler.unlink()
    assert site.skyrl("resume").returncode == 0
    site.wait_until_both_started(directory)
    site.stop(directory)


def test_a_killed_batch_job_ends_both(site: Site) -> None:
    directory = site.launch(run__peer_timeout_s="5")
    site.wait_until_both_started(directory)
    [job] = role_processes(directory, "trainer", module="skyrl_stack.launch.slurm.job")
    os.kill(job, signal.SIGKILL)
    site.wait_until_both_ended(directory, 90)
    failure = directory.failure()
    noticed = ("of the trainer is FAILED", "the launcher is gone")  # by the runtime, or by the role if it was quicker
    assert failure and any(cause in failure.cause for cause in noticed)
