"""What Slurm takes away comes back to the other role, which is held meanwhile, and the run goes on."""

import os
import signal
import time
from pathlib import Path

import pytest
from lagging import lagging
from slurm_site import ROLES, Site, role_processes

pytestmark = [pytest.mark.slurm, pytest.mark.podman, pytest.mark.timeout(300)]


def test_what_is_taken_away_comes_back_to_the_other_that_was_held(site: Site) -> None:
    directory = site.launch(run__max_requeues="2")
    site.wait_until_both_started(directory)
    [trainer] = role_processes(directory, "trainer")
    site.cluster.run("scontrol", "requeue", site.job(directory, "runtime").id)
    site.wait_until_started(directory, "runtime", restart=1)
    [runtime] = role_processes(directory, "runtime")
    assert role_processes(directory, "trainer") == [trainer]

    site.cluster.lose_gpu_node()
    try:
        site.wait(lambda: site.job(directory, "trainer").state == "PENDING", 60, "the trainer in the queue", directory)
    finally:
        site.cluster.start_node("gpu1")
    site.wait_until_started(directory, "trainer", restart=1)
    for _ in range(2):
        assert directory.failure() is None
        assert role_processes(directory, "runtime") == [runtime]
        site.cluster.run("scontrol", "requeue", site.job(directory, "trainer").id)
        if site.job(directory, "trainer").restarts == 2:
            site.wait_until_started(directory, "trainer", restart=2)
    site.wait_until_both_ended(directory)
    failure = directory.failure()
    assert failure and failure.cause.startswith("the trainer was requeued 3 times in a row and step 1 was not finished")


def test_a_preempted_trainer_is_waited_for_and_then_waited_for_in_the_queue(site: Site) -> None:
    directory = site.launch(run__hold_s="5")
    site.wait_until_both_started(directory)
    urgent = ["sbatch", "--parsable", "--partition=gpu_urgent", "--mem=63000", "--output=/dev/null", "--wrap=sleep 600"]
    job = site.cluster.run(*urgent).strip()
    site.wait(lambda: site.job(directory, "runtime").state == "PENDING", 60, "the runtime in the queue", directory)
    assert site.job(directory, "trainer").state == "PENDING"
    site.cluster.run("scancel", job)
    site.wait_until_started(directory, "trainer", restart=1)
    site.wait_until_started(directory, "runtime", restart=1)
    assert directory.failure() is None
    site.stop(directory)
    assert {site.job(directory, role).state for role in ROLES} == {"CANCELLED"}


def test_a_preempted_trainer_leaves_by_itself_where_the_site_gives_notice(site: Site) -> None:
    site.cluster.run("scontrol", "update", "PartitionName=gpu_test", "GraceTime=120")
    directory = site.launch()
    site.wait_until_both_started(directory)
    [runtime] = role_processes(directory, "runtime")
    urgent = ["sbatch", "--parsable", "--partition=gpu_urgent", "--mem=63000", "--output=/dev/null", "--wrap=sleep 600"]
    job = site.cluster.run(*urgent).strip()
    site.wait(lambda: site.job(directory, "trainer").restarts == 1, 60, "the trainer in the queue", directory)
    site.cluster.wait_for(lambda: site.cluster.state_of(job) == "RUNNING", 30, "urgent job on the node")
    assert "the trainer left, before its time limit" in site.skyrl("logs", "-n", "50").stdout
    site.cluster.run("scancel", job)
    site.wait_until_started(directory, "trainer", restart=1)
    assert role_processes(directory, "runtime") == [runtime]
    assert directory.failure() is None
    site.stop(directory)


def test_a_role_that_hangs_is_killed_by_slurm_at_the_time_limit_and_comes_back(site: Site) -> None:
    directory = site.launch()
    site.wait_until_both_started(directory)
    [hanging] = role_processes(directory, "trainer")
    os.kill(hanging, signal.SIGSTOP)
    job = site.job(directory, "trainer").id
    site.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    site.wait_until_started(directory, "trainer", restart=1, timeout_s=200)
    assert role_processes(directory, "trainer") != [hanging]
    assert "at its time limit; the job waits in the queue again" in site.skyrl("logs", "-n", "50").stdout
    site.stop(directory)


def test_daemons_of_a_node_that_are_killed_cost_at_most_a_start(site: Site) -> None:
    directory = site.launch()
    site.wait_until_both_started(directory)
    [trainer] = role_processes(directory, "trainer")
    [runtime] = role_processes(directory, "runtime")
    [batch_job] = role_processes(directory, "runtime", module="skyrl_stack.launch.slurm.job")
    step_daemon = int(Path(f"/proc/{batch_job}/stat").read_text().rpartition(")")[2].split()[1])
    site.cluster.kill("cpu1")
    site.cluster.start_node("cpu1")
    site.cluster.wait_for(lambda: "down" not in site.cluster.run("sinfo", "--Node"), 30, "node that answers")
    assert site.job(directory, "runtime").restarts == 0 and role_processes(directory, "runtime") == [runtime]

    os.kill(step_daemon, signal.SIGKILL)  # what it held lives on, and nobody can tell it anything
    site.cluster.kill("cpu1")
    site.cluster.start_node("cpu1")
    site.wait_until_started(directory, "runtime", restart=1, timeout_s=200)  # Slurm waits 120 s
    site.wait(lambda: runtime not in role_processes(directory, "runtime"), 60, "the end of the first", directory)
    assert role_processes(directory, "trainer") == [trainer]
    assert directory.failure() is None
    site.stop(directory)


def test_a_file_system_that_shows_changes_late_ends_nothing(site: Site) -> None:
    """Up to 15 s late, each file by another time, and with the default `run.peer_timeout_s` of 30 s."""
    root, seen_by_gpu1 = site.workplace / ".skyrl_jobs", site.workplace / "seen-by-gpu1"
    root.mkdir()
    seen_by_gpu1.mkdir()
    site.cluster.show("gpu1", seen_by_gpu1, at=root)
    with lagging(root, seen_by_gpu1) as lag:
        directory = site.launch()
        lag.up_to_s = 15
        site.wait_until_both_started(directory)
        [trainer] = role_processes(directory, "trainer")
        site.cluster.run("scontrol", "requeue", site.job(directory, "runtime").id)
        site.wait_until_started(directory, "runtime", restart=1)
        time.sleep(2 * lag.up_to_s)
        assert directory.failure() is None
        assert role_processes(directory, "trainer") == [trainer]
        site.stop(directory)

        assert site.skyrl("resume", "--set", "trainer.steps=3").returncode == 0
        site.wait_until_started(directory, "trainer")  # it does not take the last launch, or its profile, for its own
        assert directory.failure() is None
        site.cluster.run("scancel", site.job(directory, "trainer").id)
        site.wait_until_both_ended(directory)
        site.wait(directory.failure, 2 * lag.up_to_s, "the failure's record", directory)
        failure = directory.failure()
        assert failure and failure.role == "trainer" and failure.cause.startswith("stopped by SIGTERM")
