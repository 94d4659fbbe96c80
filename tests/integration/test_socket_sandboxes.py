"""Sandboxes of a Podman behind a socket end with their runtime, however it ends, and are held to their sizes."""

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from a_runtime import kill_server_of

from lanes import cannot_run, sweeping_alone
from skyrl_stack.errors import SandboxLost, SetupError
from skyrl_stack.node import Process
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint, Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.api import LABEL, PodmanApi
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.storage import private_root
from skyrl_stack.sandbox.sweep import sweep

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]

ROOTFUL = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
exit_command_delay = 1
tmp_dir = "{directory}/tmp"
"""
MEMORY_HOG = "for i in 1 2 3 4; do (head -c 60000000 /dev/zero | tail -c 50000000 | sleep 50) & done; sleep 50"
FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 50"
LEAVES_A_CONTAINER = """
import os, sys
from pathlib import Path
from skyrl_stack.sandbox.api import LABEL, PodmanApi
from skyrl_stack.sandbox.storage import make_private_directory, name_socket
socket, launch, image = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
name_socket(make_private_directory(launch), socket)
PodmanApi(socket).call("POST", "/containers/create", {"image": image, "labels": {LABEL: launch}, "command": ["true"]})
os.kill(os.getpid(), 9)
"""


@dataclass(frozen=True)
class Service:
    """A Podman that listens."""

    socket: Path
    process: subprocess.Popen[bytes]


def containers(socket: Path, launch_id: str) -> list[Any]:
    """Of a launch; its instances have names that begin with its id."""
    with PodmanApi(socket) as api:
        found = api.call("GET", "/containers/json", all="true")
    return [one for one in found if one["Labels"].get(LABEL, "").startswith(launch_id)]


def eventually(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Run:
    """A runtime's process that uses a Podman behind a socket, and one sandbox in which something runs."""

    def __init__(self, root: Path, socket: Path, image: str) -> None:
        profile = {"name": "test", "runtime": {"podman_socket": str(socket)}, "tasks": {"file": "tasks.jsonl"}}
        self.directory = RunDirectory.create(root, Profile.model_validate(profile))
        self.launch = Launch()
        publish(self.directory.launch_file, self.launch)
        self.private = private_root() / f"skyrl-{self.launch.launch_id}-0.0"
        with self.directory.log("runtime").open("wb") as log:
            argv = [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(self.directory.path)]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        self.endpoint: Endpoint = self.directory.await_endpoint("runtime", 60)
        asyncio.run(self.start_something(image))

    async def start_something(self, image: str) -> None:
        async with RuntimeClient(self.endpoint) as client:
            sandbox = await client.start(SandboxSpec(image=image))
            assert (await sandbox.run("setsid sleep 7312 & echo started")).stdout == "started\n"


@pytest.fixture
def run(tmp_path: Path, podman_socket: Path, tiny_image: str) -> Iterator[Run]:
    run = Run(tmp_path, podman_socket, tiny_image)
    assert len(containers(podman_socket, run.launch.launch_id)) == 1
    yield run
    run.process.kill()
    run.process.wait()


def test_killed_it_leaves_no_container_and_a_sweep_the_rest(run: Run, podman_socket: Path) -> None:
    with sweeping_alone():
        run.process.kill()
        run.process.wait()
        eventually(lambda: not containers(podman_socket, run.launch.launch_id))  # by Podman alone
        assert run.private.exists()
        sweep()
        assert not run.private.exists()


def test_stopped_it_leaves_nothing(run: Run, podman_socket: Path) -> None:
    run.process.terminate()
    assert run.process.wait(30) == 0
    assert not containers(podman_socket, run.launch.launch_id)
    assert not run.private.exists()
    said = run.directory.log("runtime").read_text()
    assert f"sandboxes are of the Podman behind {podman_socket}; isolation full; Podman" in said
    assert "which enforces no size and not memory, processes, cpus, disk" in said


def test_the_next_server_begins_without_them(run: Run, podman_socket: Path, tiny_image: str) -> None:
    async def lose() -> None:
        async with RuntimeClient(run.endpoint) as client:
            sandbox = await client.start(SandboxSpec(image=tiny_image))
            kill_server_of(run.process.pid)
            with pytest.raises(SandboxLost):
                await sandbox.run("true")
        await run.start_something(tiny_image)

    asyncio.run(lose())
    assert "0 of its 2 sandboxes live on" in run.directory.log("runtime").read_text()
    assert len(containers(podman_socket, run.launch.launch_id)) == 1
    assert run.private.is_dir()


def test_half_a_line_to_process_1_is_not_lost(podman_socket: Path, tiny_image: str) -> None:
    async def ask_in_halves() -> list[int | None]:
        async with SocketSandboxes(secrets.token_hex(8), podman_socket) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=tiny_image))
            lifeline = sandboxes._containers._lifelines[sandbox.id]
            lifeline._frames.transport.write(b"signal:0\nsig")
            await asyncio.sleep(0.5)
            lifeline._frames.transport.write(b"nal:0\n")
            return [await lifeline._answers.get() for _ in range(2)]

    assert asyncio.run(ask_in_halves()) == [0, 0]


def test_killed_in_the_middle_of_a_start_it_leaves_what_a_sweep_finds(podman_socket: Path, tiny_image: str) -> None:
    launch_id = secrets.token_hex(8)
    argv = [sys.executable, "-c", LEAVES_A_CONTAINER, str(podman_socket), launch_id, tiny_image]
    with sweeping_alone():
        subprocess.run(argv, check=False)
        assert len(containers(podman_socket, launch_id)) == 1
        assert any(launch_id in str(left) for left in sweep())
    assert not containers(podman_socket, launch_id)


def test_where_nobody_answers_it_says_how_to_start_podman(tmp_path: Path) -> None:
    async def start() -> None:
        async with SocketSandboxes("none", tmp_path / "podman.sock"):
            pass

    with pytest.raises(SetupError, match=r"no Podman answers \(No such file.*start it by `podman system service"):
        asyncio.run(start())


@pytest.fixture
def rootful(tests_cache: Path) -> Iterator[Service]:
    """The socket and the process of a Podman that may make cgroups."""
    if os.geteuid() or not os.access("/sys/fs/cgroup/pids", os.W_OK):
        cannot_run("needs root and cgroups")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is longer than Podman takes
        yield from rootful_podman(Path(directory), f"overlay.imagestore={image_store_path(tests_cache)}")


def rootful_podman(directory: Path, store: str) -> Iterator[Service]:
    config, socket = directory / "containers.conf", directory / "podman.sock"
    config.write_text(ROOTFUL.format(directory=directory))
    options = ["--root", str(directory / "root"), "--runroot", str(directory / "run"), "--storage-driver", "overlay"]
    podman = ["podman", *options, "--storage-opt", store]
    environment = os.environ | {"CONTAINERS_CONF": str(config), "TMPDIR": str(directory)}
    argv = [*podman, "system", "service", "--time=0", f"unix://{socket}"]
    service = subprocess.Popen(
        argv, env=environment, cwd=directory, stderr=subprocess.DEVNULL
    )  # conmon leaves `oom` there
    try:
        eventually(socket.exists)
        yield Service(socket, service)
    finally:
        service.kill()
        service.wait()
        left = [*podman, "ps", "--all", "--quiet"]
        eventually(lambda: not subprocess.run(left, env=environment, capture_output=True, check=True).stdout)
        unmount = ["umount", str(directory / "root/overlay")]  # Podman's own mount of it; busy while conmon cleans up
        eventually(lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0)


@pytest.mark.parametrize(
    ("hog", "resource", "sizes"), [(MEMORY_HOG, "memory", {"memory_mb": 100}), (FORK_BOMB, "processes", {"pids": 50})]
)
def test_going_over_a_size_is_a_result(
    rootful: Service, tiny_image: str, hog: str, resource: str, sizes: dict[str, int]
) -> None:
    async def go_over() -> None:
        async with SocketSandboxes(secrets.token_hex(8), rootful.socket) as sandboxes:
            assert "this Podman runs as root" in str(sandboxes.rung)
            sandbox = await sandboxes.start(SandboxSpec.model_validate({"image": tiny_image, **sizes}))
            await sandbox.run("cd /tmp; export KEPT=yes")
            result = await sandbox.run(hog, timeout_s=60)
            assert (result.exit_code, result.timed_out) == (137, False)
            assert result.excess is not None
            assert (result.excess.resource, result.excess.allowed) == (resource, next(iter(sizes.values())))
            after = await sandbox.run("pwd; echo $KEPT")
            assert (after.exit_code, after.stdout, after.excess) == (0, "/tmp\nyes\n", None)

    asyncio.run(go_over())


def test_when_podman_dies_so_do_the_sandboxes(rootful: Service, tiny_image: str) -> None:
    async def lose_podman() -> None:
        async with SocketSandboxes(secrets.token_hex(8), rootful.socket) as sandboxes:
            sandbox = await sandboxes.start(SandboxSpec(image=tiny_image))
            asked = await asyncio.to_thread(PodmanApi(rootful.socket).call, "GET", f"/containers/{sandbox.id}/json")
            rootful.process.kill()
            rootful.process.wait()
            with pytest.raises(SandboxLost):
                await sandbox.run("sleep 600")
            assert not sandboxes.is_alive
            await asyncio.to_thread(eventually, lambda: Process(asked["State"]["Pid"]).started is None)

    asyncio.run(lose_podman())
