"""A whole training on a real Slurm, with verl on the CPU of two nodes, over several starts."""

import contextlib
from pathlib import Path

import pytest
from slurm_site import ROLES, WITH_VERL, Site

from skyrl_stack.report import read_steps
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import read_tasks
from skyrl_stack.trainer.checkpoints import steps_done

pytestmark = [pytest.mark.slurm(gpu_nodes=2), pytest.mark.podman, pytest.mark.training, pytest.mark.timeout(2400)]

TWO_NODES = {
    "launcher__trainer__nodes": "2",
    "launcher__network__fabric": "tcp",
    "launcher__network__interface": "eth0",
}


def test_a_run_that_needs_three_starts_is_the_run_that_needs_one(site: Site) -> None:
    """The first ends by Slurm's notice, which it gets before a step has ended, the second by the loss of a node.

    There may be a fourth: Slurm may end what it has started on a node that is just back, for the start before.
    """
    limit = {"launcher__runtime__time_limit": "2:00:00", "launcher__trainer__time_limit": "2:00:00"}
    how = {"trainer__steps": "4", "trainer__tasks_per_step": "1", "trainer__save_every": "2", "run__notice_s": "1500"}
    directory = site.launch(**WITH_VERL, **TWO_NODES, **limit, **how)
    launch_id, trainer = directory.launch().launch_id, site.job(directory, "trainer").id
    site.wait_until_ready(directory, "trainer", timeout_s=600)
    for node in ("gpu1", "gpu2"):
        site.wait(lambda node=node: _works(site, node), 600, f"Ray on {node}", directory)
    site.cluster.run("scancel", "--signal=USR1", "--batch", trainer)
    site.wait_until_started(directory, "trainer", restart=1, timeout_s=900)
    assert steps_done(directory.checkpoints) == 1
    site.wait(lambda: len(read_steps(directory)) == 2, 900, "step 2, which is told after it is saved", directory)
    assert steps_done(directory.checkpoints) == 2
    site.cluster.lose_gpu_node("gpu2")
    site.wait(lambda: site.job(directory, "trainer").restarts >= 2, 120, "the trainer in the queue", directory)
    site.cluster.start_node("gpu2")
    site.wait_until_both_ended(directory, 1200)

    jobs = {role: site.job(directory, role) for role in ROLES}
    assert [job.state for job in jobs.values()] == ["COMPLETED", "COMPLETED"], site.skyrl("logs", "-n", "60").stdout
    assert (jobs["trainer"].id, jobs["runtime"].restarts) == (trainer, 0)
    assert jobs["trainer"].restarts in (2, 3)
    assert directory.launch().launch_id == launch_id
    steps = read_steps(directory)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    for step, tasks in zip(steps, _tasks_in_order(directory, 4), strict=True):
        assert step.metrics["actor/grad_norm"] >= 0
        played = [episode.instance_id for episode in step.episodes if episode.error is None]
        if step.number > 2:  # what was played before the node was lost, and to replace what was lost, stays on record
            assert tasks <= set(played) and len(played) >= 4
        else:
            assert (set(played), len(played)) == (tasks, 4)
    wandb = {file.name.rpartition("-")[2] for file in (directory.verl / "wandb").glob("offline-run-*")}
    assert len(wandb) == 1
    shards = {file.name for file in directory.checkpoints.glob("global_step_4/actor/model_world_size_*")}
    assert shards == {"model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"}
    status = site.skyrl("status").stdout
    assert "state      finished" in status and "steps      4 of 4" in status, status
    assert " finished " in site.skyrl("list").stdout


def _works(site: Site, node: str) -> bool:
    """Whether processes of Ray, which rename themselves, are on a node."""
    return any(_command(process).startswith("ray::") for process in site.cluster.processes_of(node))


def _command(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    return ""


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
