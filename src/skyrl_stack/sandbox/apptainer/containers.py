"""The instances of a launch: what `Containers` does for a cell, by Apptainer. Every method is as there."""

import asyncio
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.apptainer.instance import Instance, Program
from skyrl_stack.sandbox.apptainer.program import Apptainer
from skyrl_stack.sandbox.container import Refused
from skyrl_stack.sandbox.containers import ERRORS, Exec, fill
from skyrl_stack.sandbox.contract import FileMissing
from skyrl_stack.sandbox.oci import Description


class Instances:
    """Those below `directory`."""

    def __init__(self, apptainer: Apptainer, directory: Path) -> None:
        self._apptainer = apptainer
        self._directory = directory
        self._instances: dict[str, Instance] = {}
        self._killing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End every instance that is left."""
        await asyncio.gather(*map(self.remove, list(self._instances)))

    async def create(self, container: str, description: Description) -> tuple[int, str]:
        instance = self._instances[container] = Instance(container, self._directory)
        await instance.begin(self._apptainer, workdir=description.workdir, **description.config)
        return instance.pid, str(instance.directory)

    async def execute(self, container: str, process: Mapping[str, Any]) -> Exec:
        with _said():
            return await self._instance(container).execute_attached(process["args"], process["env"])

    async def exit_code(self, process: Exec) -> int | None:
        assert isinstance(process, Program)
        with suppress(SandboxLost):
            return await self._instance(process.sandbox).ask("wait", str(process.number))
        return None

    async def is_running(self, container: str) -> bool:
        instance = self._instances.get(container)
        return instance is not None and instance.is_running

    async def open_file(self, container: str, path: str) -> int:
        return await self._open(container, path, write=False)

    async def write_from(self, container: str, path: str, data: BinaryIO) -> None:
        try:
            descriptor = await self._open(container, path, write=True)
        except FileMissing as error:
            raise ValueError(str(error)) from error
        await fill(descriptor, path, data)

    async def kill(self, container: str, pid: int, marker: str) -> None:
        instance = self._instance(container)
        with _said():
            await asyncio.to_thread(instance.kill, pid, marker)

    async def signal(self, container: str, number: int) -> None:
        await self._instance(container).ask("signal", str(int(number)))

    async def remove(self, container: str) -> None:
        if instance := self._instances.pop(container, None):
            await instance.end()

    def kill_all(self, container: str) -> None:
        """Soon kill all that runs in a sandbox, as the warden cannot: only its process 1 may do that by one call."""

        async def kill() -> None:
            with suppress(SandboxLost):
                await self.signal(container, signal.SIGKILL)

        killing = asyncio.ensure_future(kill())
        self._killing.add(killing)
        killing.add_done_callback(self._killing.discard)

    async def _open(self, container: str, path: str, *, write: bool) -> int:
        instance = self._instance(container)
        with _said():
            return await asyncio.to_thread(instance.open, path, write=write)

    def _instance(self, container: str) -> Instance:
        if container not in self._instances:
            raise SandboxLost(f"sandbox {container} is gone")
        return self._instances[container]


@contextmanager
def _said() -> Iterator[None]:
    """What a container refuses, in the words of the contract."""
    try:
        yield
    except Refused as error:
        raise ERRORS[error.kind](str(error)) from error
