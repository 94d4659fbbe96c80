"""A run directory, and the process of a runtime in it: a keeper, and one server after the other."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from skyrl_stack.node import Process
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint, Heartbeat, Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.storage import private_root


class Run:
    """A runtime's process."""

    def __init__(self, root: Path, cache: Path, *, places: int = 8) -> None:
        sections = {"run": {"peer_timeout_s": 5}, "runtime": {"max_sandboxes": places}}
        self.directory = RunDirectory.create(root, Profile.model_validate({"name": "test", **sections}))
        self.launch = Launch()
        publish(self.directory.launch_file, self.launch)
        self.private = private_root() / f"skyrl-{self.launch.launch_id}-0.0"
        environment = os.environ | {"SKYRL_CACHE": str(cache), "SKYRL_LAUNCH_ID": self.launch.launch_id}
        with self.directory.log("runtime").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "skyrl_stack.runtime", "--run-dir", str(self.directory.path)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.endpoint: Endpoint = self.directory.await_endpoint("runtime", 60)

    async def start_something(self, image: str) -> None:
        """A sandbox in which something runs."""
        async with RuntimeClient(self.endpoint) as client:
            sandbox = await client.start(SandboxSpec(image=image))
            await sandbox.run("setsid sleep 600 & echo")

    def log(self) -> str:
        return self.directory.log("runtime").read_text()

    def trainer(self, state: str, *, age_s: float = 0) -> None:
        record = {"launch_id": self.launch.launch_id, "at": time.time() - age_s, "state": state}
        publish(self.directory.heartbeat_file("trainer"), Heartbeat.model_validate(record))

    def processes(self) -> list[int]:
        """Those whose environment or command line names the launch: the runtime's, Podman's and conmon's."""
        name, found = self.launch.launch_id.encode(), []
        for entry in Path("/proc").iterdir():
            try:
                described = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if entry.name.isdigit() and name in described and Process(int(entry.name)).started is not None:
                found.append(int(entry.name))
        return found

    def mounts(self) -> list[str]:
        """Mounts of the launch in any mount namespace."""
        found = []
        for file in Path("/proc").glob("[0-9]*/mountinfo"):
            try:
                found += [line for line in file.read_text().splitlines() if self.launch.launch_id in line]
            except OSError:
                continue
        return found

    def require_nothing_left(self) -> None:
        assert (self.processes(), self.mounts(), self.private.exists()) == ([], [], False)
        assert self.directory.endpoint("runtime") is None


def server_of(keeper: int) -> int:
    """The process of the server that is there now, or will soon be."""
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    while not (living := [int(child) for child in children.read_text().split() if Process(int(child)).started]):
        time.sleep(0.01)
    return living[0]


def kill_server_of(keeper: int) -> int:
    """By SIGKILL; returns the process that it was, once that is dead."""
    server = server_of(keeper)
    life = os.pidfd_open(server)
    os.kill(server, signal.SIGKILL)
    select.select([life], [], [])
    os.close(life)
    return server


def eventually(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
