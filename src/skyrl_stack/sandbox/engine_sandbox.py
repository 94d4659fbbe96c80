"""One sandbox of any engine: the contract by its requests, with shells, a time to live, and what a next server has."""

import asyncio
import io
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from skyrl_stack.errors import SandboxExpired, SandboxLost
from skyrl_stack.sandbox.contract import READ_LIMIT_MB, CommandResult, FileTooLarge, SandboxSpec
from skyrl_stack.sandbox.engine import Engine, Sizes
from skyrl_stack.sandbox.keeping import UNKEPT, Store
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.shell import KEPT as SHELL
from skyrl_stack.sandbox.shell import KILLED, Shell

LOG = logging.getLogger(__name__)
KEPT = "sandbox"
"Below this key sandboxes are kept for a server after this one, by their ids."


class EngineSandbox:
    """A container. Its process 1 does nothing but reap, so that a `kill -9 -1` in it leaves it alive."""

    def __init__(
        self,
        containers: Engine,
        identifier: str,
        description: Description,
        *,
        limits: Sizes,
        preamble: str,
        output_limit: int,
        store: Store = UNKEPT,
    ) -> None:
        self.id = identifier
        self._containers = containers
        self._description = description
        self._limits = limits
        self._preamble = preamble
        self._output_limit = output_limit
        self._store = store
        self._shells: dict[str, Shell] = {}
        self._expiry: asyncio.Task[None] | None = None
        self._expired = ""

    async def run(
        self, command: str, *, timeout_s: float = 60.0, shell: str = "main", cwd: str | None = None
    ) -> CommandResult:
        """See `Sandbox.run`."""
        if "\0" in f"{command}{cwd}{shell}":
            raise ValueError("a command, its directory and the name of its shell hold no NUL byte")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s = {timeout_s}: must be positive")
        with self._unless_expired():
            try:
                result = await self._shell(shell).run(command, timeout_s=timeout_s, cwd=cwd)
            except RuntimeError as error:
                if excess := await self._limits.excess(self.id):  # the shell was killed with all else, as it began
                    return CommandResult(exit_code=KILLED, stdout="", stderr="", excess=excess)
                await self.stop()  # out of control, it would take what the others need
                raise SandboxLost(f"sandbox {self.id} has no shell any more: {error}") from error
        excess = await self._limits.excess(self.id)
        return result.model_copy(update={"excess": excess}) if excess else result

    async def open(self, spec: SandboxSpec) -> None:
        """Start the container, hold it to its sizes, and start the shell for commands.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        description = vars(self._description.of_processes())
        record = {"spec": spec.model_dump(mode="json"), "description": description}
        self._store.put(f"{KEPT}/{self.id}", record)  # from now on there may be a container of this name
        pid, upper = await self._containers.create(self.id, self._description)
        began = time.monotonic()
        self._store.put(f"{KEPT}/{self.id}", {**record, "pid": pid, "upper": upper, "began": began})
        self._hold(pid, upper, began, spec)
        await self._shell("main").open()

    async def go_on(self, record: Mapping[str, Any]) -> None:
        """Be what a server before this one put away.

        Raises:
            SandboxLost: it is gone, and not because its time is over.
            RuntimeError: it is out of control.
        """
        if "pid" not in record:
            raise SandboxLost(f"sandbox {self.id} was being started")
        spec = SandboxSpec.model_validate(record["spec"])
        self._hold(record["pid"], record["upper"], record["began"], spec)
        if spec.wall_s and time.monotonic() > record["began"] + spec.wall_s:
            return
        if not await self.is_running():
            raise SandboxLost(f"sandbox {self.id} is gone")
        for name, kept in self._store.take_below(f"{SHELL}/{self.id}").items():
            await self._shell(name).go_on(kept)

    def _hold(self, pid: int, upper: str, began: float, spec: SandboxSpec) -> None:
        """Hold the sandbox to its sizes and to its time."""
        self._limits.watch(self.id, pid, upper, spec)
        if spec.wall_s:
            self._expiry = asyncio.create_task(self._expire(began + spec.wall_s, spec.wall_s))

    async def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`."""
        with await self.open_file(path) as file:
            data = await asyncio.to_thread(file.read, (READ_LIMIT_MB << 20) + 1)
        if len(data) > READ_LIMIT_MB << 20:
            raise FileTooLarge(path)
        return data

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        await self.write_from(path, io.BytesIO(data))

    async def open_file(self, path: str) -> BinaryIO:
        """The regular file at the absolute `path`, to be closed.

        Raises:
            FileMissing: no such regular file.
            SandboxLost: the sandbox is gone.
        """
        with self._unless_expired():
            return os.fdopen(await self._containers.open_file(self.id, _absolute(path)), "rb")

    async def write_from(self, path: str, data: BinaryIO) -> None:
        """`write_file` of all that `data` holds, piece by piece."""
        with self._unless_expired():
            await self._containers.write_from(self.id, _absolute(path), data)

    async def pause(self) -> None:
        """Stop every process of the sandbox where it is. By signal: a rootless Podman may lack the freezer."""
        await self._containers.signal(self.id, signal.SIGSTOP)

    async def resume(self) -> None:
        """Let every process of the sandbox go on."""
        await self._containers.signal(self.id, signal.SIGCONT)

    async def is_running(self) -> bool:
        return await self._containers.is_running(self.id)

    async def stop(self) -> None:
        """See `Sandbox.stop`."""
        await self._remove()
        self._store.drop(f"{SHELL}/{self.id}")
        self._store.drop(f"{KEPT}/{self.id}")

    async def _remove(self) -> None:
        try:
            await self._containers.remove(self.id)
        except SandboxLost:
            pass
        except RuntimeError as error:
            LOG.warning("sandbox %s could not be removed; it goes with the run: %s", self.id, error)
        for shell in self._shells.values():
            shell.close()
        self._limits.forget(self.id)
        if self._expiry and not self._expired:
            self._expiry.cancel()

    async def _expire(self, at: float, wall_s: float) -> None:
        await asyncio.sleep(at - time.monotonic())
        self._expired = f"sandbox {self.id} was removed at the end of its {wall_s:g} s"
        await self._remove()

    @contextmanager
    def _unless_expired(self) -> Iterator[None]:
        """A sandbox that is lost because its time is over is said to be that."""
        try:
            yield
        except SandboxLost as error:
            if self._expired:
                raise SandboxExpired(self._expired) from error
            raise

    def _shell(self, name: str) -> Shell:
        if name not in self._shells:
            self._shells[name] = Shell(
                self._containers,
                self.id,
                name,
                description=self._description,
                preamble=self._preamble,
                output_limit=self._output_limit,
                store=self._store,
            )
        return self._shells[name]


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise ValueError(f"{path!r}: not the absolute path of a file")
    return path
