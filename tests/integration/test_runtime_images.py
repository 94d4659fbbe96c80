"""The image store: built, imported, and pulled from a real registry, which runs in a container of its own."""

import asyncio
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lanes import cannot_run
from rootfs import SHELL_PROGRAMS, build_rootfs
from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]

REGISTRY_CONFIG = """\
version: 0.1
log: {level: info}
storage: {inmemory: {}}
http: {addr: "127.0.0.1:%d"}
"""


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


def test_a_pulled_image_starts(registry: str, store: Path) -> None:
    reference = f"{registry}/tests/tiny:1"

    async def pull_and_start() -> str:
        async with ImageStore(store) as images:
            assert not await images.has(reference)
            await images.pull(reference, tls_verify=False)
            assert await images.has(reference)
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=reference))
            return (await sandbox.run("pwd; echo $BASH_VERSION | wc -l")).stdout

    assert asyncio.run(pull_and_start()) == "/testbed\n1\n"


def test_what_a_registry_does_not_have_is_an_error(registry: str, store: Path) -> None:
    async def pull() -> None:
        async with ImageStore(store) as images:
            await images.pull(f"{registry}/tests/none:1", tls_verify=False)

    with pytest.raises(SetupError, match=r"cannot pull .*/tests/none:1: .*unknown"):
        asyncio.run(pull())


def test_a_build_has_no_network_and_fails_in_one_line(store: Path, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("good day")
    (tmp_path / "good").write_text("FROM localhost/base:1\nCOPY greeting /greeting\nRUN cat /proc/net/dev > /devices\n")
    (tmp_path / "bad").write_text("FROM localhost/base:1\nRUN echo 'the cause' && false\n")

    async def build() -> str:
        async with ImageStore(store) as images:
            await images.import_rootfs(rootfs, "localhost/base:1", changes=("WORKDIR /tmp",))
            await images.build(tmp_path, "localhost/good:1", containerfile="good")
            with pytest.raises(SetupError, match=r"cannot build localhost/bad:1: .*the cause") as failed:
                await images.build(tmp_path, "localhost/bad:1", containerfile="bad")
            assert "\n" not in str(failed.value)
            assert not await images.has("localhost/bad:1")
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image="localhost/good:1", workdir=None))
            return (await sandbox.run("pwd; cat /greeting /devices")).stdout

    printed = asyncio.run(build())
    assert printed.startswith("/tmp\ngood day")
    assert [line.split(":")[0].strip() for line in printed.splitlines() if ":" in line] == ["lo"]


def test_two_writers_take_turns_and_a_reader_sees_new_images(store: Path, rootfs: Path) -> None:
    async def write(reference: str) -> None:
        async with ImageStore(store) as images:
            await images.import_rootfs(rootfs, reference)

    async def run() -> None:
        await write("localhost/first:1")
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
            await asyncio.gather(write("localhost/second:1"), write("localhost/third:1"))
            for name in ("first", "second", "third"):
                sandbox = await sandboxes.start(SandboxSpec(image=f"localhost/{name}:1", workdir="/"))
                assert (await sandbox.run("echo up")).stdout == "up\n"

    asyncio.run(run())
