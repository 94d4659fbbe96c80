"""A runtime on several nodes of a real Slurm: they share images, come and go, and none of them is the run."""

import asyncio

import pytest
from slurm_site import Site

from skyrl_stack.presence import Watch
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.tasks.task import read_tasks

pytestmark = [pytest.mark.slurm(cpu_nodes=2), pytest.mark.podman, pytest.mark.timeout(300)]


def ready(directory: RunDirectory) -> dict[int, str]:
    """Node by instance of those that serve."""
    heartbeats = directory.heartbeats("runtime")
    return {instance: beat.host for instance, beat in heartbeats.items() if beat.state == "ready"}


def start_sandbox(site: Site, directory: RunDirectory, instance: int) -> None:
    """In each of the run's images."""
    node = directory.heartbeats("runtime")[instance].host
    endpoint = directory.endpoints("runtime")[instance]
    here = endpoint.model_copy(update={"url": endpoint.url.replace(node, site.cluster.addresses[node])})

    async def start() -> None:
        async with RuntimeClient(here) as client:
            for task in read_tasks(directory.tasks_file):
                await (await client.start(SandboxSpec(image=task.image))).stop()

    asyncio.run(start())


def test_nodes_share_images_join_and_leave(site: Site) -> None:
    somebody_elses = ["--partition=gpu_test", "--mem=63000", "--output=/dev/null", "--wrap=exec sleep 600"]
    site.cluster.run("sbatch", *somebody_elses)  # the trainer waits: nothing here needs it
    directory = site.launch(launcher__runtime__nodes="2", launcher__runtime__memory_gb="40", run__notice_s="60")
    site.wait(lambda: len(ready(directory)) == 2, 200, "two runtimes", directory)
    nodes = ready(directory)
    assert sorted(nodes.values()) == ["cpu1", "cpu2"]
    for instance in nodes:
        start_sandbox(site, directory, instance)
    assert "fetching them from http://cpu" in site.skyrl("logs", "-n", "50").stdout
    assert site.job(directory, "trainer").reason == "Resources"  # not Dependency: one that started is enough

    array = site.job(directory, "runtime").id.partition("_")[0]
    site.cluster.run("scancel", "--signal=USR1", "--batch", f"{array}_1")  # whose own id is that of the whole array
    site.wait(lambda: directory.heartbeats("runtime")[1].restart == 1, 60, "the one asked to leave, again", directory)
    site.wait(lambda: len(ready(directory)) == 2, 90, "two runtimes again", directory)
    assert directory.heartbeats("runtime")[0].restart == 0
    start_sandbox(site, directory, 1)

    watch = Watch(directory, "runtime", 30)
    site.cluster.run("scancel", f"{array}_0")
    site.wait(lambda: list(ready(directory)) == [1], 60, "the end of one node", directory)
    site.wait(lambda: (beat := directory.heartbeats("runtime")[0]).is_over and beat, 30, "its last word", directory)
    assert directory.failure() is None and watch.lost() is None
    assert not site.job(directory, "trainer").has_ended

    assert site.skyrl("join").returncode == 0
    site.wait(lambda: set(ready(directory)) == {1, 2}, 90, "the node that joined", directory)
    start_sandbox(site, directory, 2)
    site.stop(directory)
