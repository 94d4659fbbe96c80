"""Fixtures of the drills on a private Slurm; a registry on loopback, and empty image stores."""

import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import missing, running_cluster
from slurm_site import Site

from lanes import cannot_run
from rootfs import SHELL_PROGRAMS, build_rootfs
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from skyrl_stack.tasks.task import Task

REGISTRY_CONFIG = """\
version: 0.1
log: {level: info}
storage: {inmemory: {}}
http: {addr: "127.0.0.1:%d"}
"""


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


@pytest.fixture
def store(tests_cache: Path) -> Iterator[Path]:
    """The path of an empty store, where its owner in the cell can reach it."""
    path = tests_cache / f"store-{secrets.token_hex(4)}"
    yield path
    remove_private_directory(path)
    path.with_suffix(".lock").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tar = tmp_path_factory.mktemp("rootfs") / "shell.tar"
    build_rootfs(tar)
    return tar


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[str]:
    """Address of a registry that has the image tests/tiny:1."""
    if shutil.which("docker-registry") is None:
        cannot_run("not installed: docker-registry; run `apt-get install docker-registry`")
    from podman import PodmanClient
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    context = tmp_path_factory.mktemp("registry")
    build_rootfs(context / "rootfs.tar", [*SHELL_PROGRAMS, "docker-registry"])
    (context / "registry.yml").write_text(REGISTRY_CONFIG % port)
    (context / "Containerfile").write_text("FROM scratch\nADD rootfs.tar /\nCOPY registry.yml /registry.yml\n")
    directory = make_private_directory(secrets.token_hex(8))
    try:
        with pytest.MonkeyPatch.context() as patch, Cell(directory) as cell:
            patch.setenv("DOCKER_HOST", f"unix://{cell.socket}")
            patch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
            patch.setenv("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
            with cell.client() as client:
                assert isinstance(client, PodmanClient)
                client.images.build(path=str(context), dockerfile="Containerfile", tag="localhost/registry:1")
                server = (
                    DockerContainer("localhost/registry:1")
                    .with_command("docker-registry serve /registry.yml")
                    .with_kwargs(network_mode="host", log_config={"type": "json-file"})
                    .waiting_for(LogMessageWaitStrategy("listening on"))
                )
                with server:
                    reference = f"127.0.0.1:{port}/tests/tiny:1"
                    with rootfs.open("rb") as data:
                        headers = {"Content-Type": "application/x-tar"}
                        parameters = {"reference": reference, "changes": ["WORKDIR /testbed"]}
                        client.api.post("/images/import", params=parameters, data=data, headers=headers)
                    client.images.push(reference, tlsVerify=False)
                    yield f"127.0.0.1:{port}"
    finally:
        remove_private_directory(directory)
