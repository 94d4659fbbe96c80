"""The containers of a Podman behind a socket: what `Containers` and `Limits` do for a cell, by Podman's API.

    this process ──lifeline──▶ Podman's service ──▶ conmon ──▶ process 1: ends at the end of its input
                 ──attached──▶ Podman's service ──▶ conmon ──▶ a shell

Whatever ends this process or that service, the kernel closes the lifeline; process 1 ends, the kernel kills all else in
the container's pid namespace, and conmon has the container removed, as its `remove` says.
"""

import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.api import PodmanApi, Refused
from skyrl_stack.sandbox.containers import Exec
from skyrl_stack.sandbox.contract import Excess, FileMissing, SandboxSpec
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.outside.files import SocketFiles
from skyrl_stack.sandbox.outside.lifeline import Lifeline

_LAST_SIGNS_S = 0.5
"Until it is known why all processes of a container ended."


@dataclass(frozen=True)
class _Session(Exec):
    name: str
    "By which Podman knows it."


class SocketContainers:
    """The containers that were made through `api`. Every request raises SandboxLost when the container is gone."""

    def __init__(self, api: PodmanApi) -> None:
        self._api = api
        self._files = SocketFiles(api)
        self._lifelines: dict[str, Lifeline] = {}
        self._specs: dict[str, SandboxSpec] = {}

    async def create(self, container: str, description: Description) -> tuple[int, str]:
        """Start a container; `description.config` is what Podman is asked for.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        await self._api.ask("POST", "/containers/create", description.config)
        streams = dict.fromkeys(("stream", "stdin", "stdout", "stderr"), "true")
        frames = await self._api.attach(f"/containers/{container}/attach", **streams)  # before there is a process
        self._lifelines[container] = Lifeline(container, frames)
        await self._api.ask("POST", f"/containers/{container}/start")
        return 0, ""

    async def execute(self, container: str, process: Mapping[str, Any]) -> Exec:
        """Start a process, attached; `process` is what Podman is asked for.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        self._lifeline(container)
        try:
            session = (await self._api.ask("POST", f"/containers/{container}/exec", dict(process)))["Id"]
            frames = await self._api.attach(f"/exec/{session}/start", {"Detach": False, "Tty": False})
        except Refused as error:
            if await self.is_running(container):
                raise
            raise SandboxLost(f"sandbox {container} is gone") from error
        return _Session(0, frames, frames.transport, (), session)

    async def exit_code(self, process: Exec) -> int | None:
        """How a process ended, as a shell would say it; None where it is not known."""
        assert isinstance(process, _Session)
        with suppress(SandboxLost, Refused):
            said = await self._api.ask("GET", f"/exec/{process.name}/json")
            return None if said["Running"] else said["ExitCode"]
        return None

    async def is_running(self, container: str) -> bool:
        """Whether it is, asked where something in it ended: the news of why may be on their way."""
        if lifeline := self._lifelines.get(container):
            await lifeline.await_news(_LAST_SIGNS_S)
        return await self._exists(container)

    async def kill(self, container: str, pid: int, marker: str) -> None:
        """Kill a shell and all that came of it, which carries `marker` in its environment.

        Raises:
            RuntimeError: it does not let itself be killed.
        """
        if await self._lifeline(container).ask("kill", marker):
            raise RuntimeError("its processes are not to be killed")

    async def signal(self, container: str, number: int) -> None:
        """Signal all processes but process 1."""
        await self._lifeline(container).ask("signal", str(signal.Signals(number).value))

    async def open_file(self, container: str, path: str) -> int:
        """A descriptor of a copy of the regular file at `path`.

        Raises:
            FileMissing: there is none, or something else is there.
        """
        return await self._about_files(container, lambda: self._files.read(container, path))

    async def write_from(self, container: str, path: str, data: BinaryIO) -> None:
        """Create or replace a file by all that `data` holds.

        Raises:
            ValueError: something else is there, or it cannot be written.
        """
        try:
            await self._about_files(container, lambda: self._files.write(container, path, data))
        except FileMissing as error:
            raise ValueError(str(error)) from error

    async def remove(self, container: str) -> None:
        """End a container and remove what it wrote. Idempotent."""
        lifeline = self._lifelines.pop(container, None)
        try:
            await self._api.in_thread(lambda: self._api.remove(container))
        finally:
            if lifeline:
                lifeline.close()

    def watch(self, identifier: str, pid: int, upper: str, spec: SandboxSpec) -> None:
        """See `Limits`: it is process 1 that watches, and tells over the lifeline."""
        self._specs[identifier] = spec

    def forget(self, identifier: str) -> None:
        self._specs.pop(identifier, None)

    async def excess(self, identifier: str) -> Excess | None:
        """What the sandbox used too much of since this was asked last; no more than it may, as the kernel saw to."""
        lifeline = self._lifelines.get(identifier)
        size = lifeline.take_excess() if lifeline else None
        if size is None:
            return None
        spec = self._specs[identifier]
        allowed = (spec.memory_mb if size == "memory" else spec.pids) or 0
        return Excess(resource=size, used=allowed, allowed=allowed)

    def _lifeline(self, container: str) -> Lifeline:
        """That of a container that lives. Podman takes a while to remove one, and hands out its files meanwhile."""
        lifeline = self._lifelines.get(container)
        if lifeline is None or lifeline.has_ended:
            raise SandboxLost(f"sandbox {container} is gone")
        return lifeline

    async def _exists(self, container: str) -> bool:
        lifeline = self._lifelines.get(container)
        if lifeline is None or lifeline.has_ended:
            return False
        with suppress(SandboxLost, Refused):
            if (await self._api.ask("GET", f"/containers/{container}/json"))["State"]["Running"]:
                return True
        lifeline.has_lost()
        return False

    async def _about_files[T](self, container: str, function: Callable[[], T]) -> T:
        """`function`, to which Podman answers of a container that is gone as of a file that is not there."""
        self._lifeline(container)
        try:
            return await self._api.in_thread(function)
        except FileMissing as error:
            if not await self._exists(container):
                raise SandboxLost(f"sandbox {container} is gone") from error
            raise


def attached(argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What Podman is asked for, for a process of which all streams are ours."""
    streams = dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), True)
    return {"Cmd": argv, "Env": [f"{name}={value}" for name, value in environment.items()], **streams}
