"""Fixtures of the drills on a private Slurm."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import missing, running_cluster
from slurm_site import Site

from lanes import cannot_run
from skyrl_stack.tasks.task import Task


@pytest.fixture
def site(inflection_tasks: list[Task], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A cluster for each test: it starts in a second, and no test inherits what another did to it.

    `pytest.mark.slurm(gpu_nodes=2)` says how large. The tasks are in the cache: their making is not tested here.
    """
    assert inflection_tasks
    if lacking := missing():
        cannot_run(f"a private Slurm needs {', '.join(lacking)}: run scripts/setup-slurm as root")
    marker = request.node.get_closest_marker("slurm")
    assert marker
    with running_cluster(**marker.kwargs) as cluster:
        yield Site(cluster, tmp_path)


@pytest.fixture
def busy_gpu_node(site: Site) -> Iterator[None]:
    """Somebody else's job holds the node that the trainer's job would get."""
    argv = ["sbatch", "--parsable", "--partition=gpu_test", "--mem=63000", "--output=/dev/null", "--wrap=sleep 600"]
    job = site.cluster.run(*argv).strip()
    yield
    site.cluster.run("scancel", job)
