"""The containers of a cell, as the server sees them: requests to the broker, and descriptors that come back."""

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from skyrl_stack.errors import SandboxLost, SetupError
from skyrl_stack.sandbox.cell import START_TIMEOUT_S, Cell
from skyrl_stack.sandbox.contract import FileMissing
from skyrl_stack.sandbox.dependent import Dependent
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.pipes import PipeReader
from skyrl_stack.sandbox.stream import Output

ERRORS: dict[str, type[Exception]] = {"gone": SandboxLost, "missing": FileMissing, "failed": RuntimeError}
"What a container refuses, by its kind, in the words of the contract."
_PIECE = 64 * 1024
_FILE_PIECE = 1 << 20
_DESCRIPTORS = 4


@dataclass(frozen=True)
class Exec:
    """A process in a sandbox, attached."""

    pid: int
    "As the cell counts."
    output: Output
    input: asyncio.WriteTransport
    descriptors: tuple[int, ...]
    "Its stdin, stdout, stderr and a pidfd as they came, for who keeps them; none where no pipes lead to it."

    def close(self) -> None:
        if not self.input.is_closing():
            self.input.abort()
        self.output.close()


class Containers:
    """The containers of a cell that is up; `start` the broker, and `close` it before the cell.

    Every request raises SandboxLost when the container is gone, or the broker with all of them.
    """

    def __init__(self, cell: Cell, cgroup: Path | None = None) -> None:
        """`cgroup` is the launch's, if it has one."""
        self._cell = cell
        self._cgroup = cgroup
        self._socket = str(cell.directory / "broker.sock")
        self.process: Dependent | None = None
        "The broker; one that a server before this one started may be put here in place of `start`."

    def start(self) -> None:
        """Start the broker and wait until it answers.

        Raises:
            SetupError: it did not start; says why.
        """
        argv = [sys.executable, "-m", "skyrl_stack.sandbox.broker", "--helper", str(self._cell.helper)]
        argv += ["--runtime", self._cell.runtime, "--directory", str(self._cell.directory / "sandboxes")]
        argv += ["--socket", self._socket, *(["--cgroup", str(self._cgroup)] if self._cgroup else [])]
        self.process = Dependent.start(argv, log=self._cell.log, environment=self._cell.environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.is_alive:
            with socket.socket(socket.AF_UNIX) as trial, suppress(OSError):
                return trial.connect(self._socket)
            time.sleep(0.01)
        self.close()
        raise SetupError(f"the broker of sandboxes did not start: {self._cell.last_words}")

    def close(self) -> None:
        """End the broker. What it started ends with the cell."""
        process, self.process = self.process, None
        if process:
            process.end()

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    async def create(self, container: str, description: Description) -> tuple[int, str]:
        """Start a container; its process 1, as the cell counts, and the directory that takes what it writes.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        answer, _ = await self._ask("create", id=container, **vars(description))
        return answer["pid"], answer["upper"]

    async def execute(self, container: str, process: Mapping[str, Any]) -> Exec:
        """Start a process, attached.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        answer, descriptors = await self._ask("execute", id=container, process=process)
        return await attach(answer["pid"], descriptors)

    async def exit_code(self, process: Exec) -> int | None:
        """How a process ended, as a shell would say it; None where it is not known."""
        with suppress(SandboxLost):
            return (await self._ask("exit_code", pid=process.pid))[0]["code"]
        return None

    async def is_running(self, container: str) -> bool:
        with suppress(SandboxLost):
            return (await self._ask("is_running", id=container))[0]["running"]
        return False

    async def open_file(self, container: str, path: str) -> int:
        """A descriptor of a regular file.

        Raises:
            FileMissing: there is none, or something else is there.
        """
        return (await self._ask("open", id=container, path=path, write=False))[1][0]

    async def write_from(self, container: str, path: str, data: BinaryIO) -> None:
        """Create or replace a file, with its directories, by all that `data` holds, piece by piece.

        Raises:
            ValueError: something else is there, or it cannot be written.
        """
        try:
            descriptor = (await self._ask("open", id=container, path=path, write=True))[1][0]
        except FileMissing as error:
            raise ValueError(str(error)) from error

        await fill(descriptor, path, data)

    async def kill(self, container: str, pid: int, marker: str) -> None:
        """Kill a shell and all that came of it, which carries `marker` in its environment.

        Raises:
            RuntimeError: it does not let itself be killed.
        """
        await self._ask("kill", id=container, pid=pid, marker=marker)

    async def signal(self, container: str, number: int) -> None:
        """Signal all processes but process 1."""
        await self._ask("signal", id=container, number=number)

    async def remove(self, container: str) -> None:
        """End a container and remove what it wrote. Idempotent."""
        await self._ask("remove", id=container)

    async def _ask(self, call: str, **arguments: object) -> tuple[dict[str, Any], Sequence[int]]:
        """One request: its answer, and the descriptors that came with it."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, self._socket)
                await loop.sock_sendall(connection, json.dumps({"call": call, **arguments}).encode() + b"\n")
                await _readable(connection)
                said, descriptors, _, _ = socket.recv_fds(connection, _PIECE, _DESCRIPTORS)
            except OSError as error:
                raise SandboxLost("the broker is gone, and every sandbox with it") from error
        if not said.endswith(b"\n"):
            raise SandboxLost("the broker is gone, and every sandbox with it")
        answer = json.loads(said)
        if kind := answer.get("error"):
            raise ERRORS[kind](answer["detail"])
        return answer, descriptors


async def attach(pid: int, descriptors: Sequence[int]) -> Exec:
    """The process of `pid`, to which these lead: stdin, stdout, stderr and a pidfd."""
    stdin, stdout, stderr, life = descriptors
    output = PipeReader(stdout, stderr, life)
    try:
        pipe = os.fdopen(stdin, "wb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.Protocol, pipe)
    except BaseException:
        output.close()
        raise
    return Exec(pid, output, transport, tuple(descriptors))


async def fill(descriptor: int, path: str, data: BinaryIO) -> None:
    """Write all that `data` holds to the file of `descriptor`, which is `path`, and close it.

    Raises:
        ValueError: it cannot be written.
    """

    def write() -> None:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.truncate()
            shutil.copyfileobj(data, file, _FILE_PIECE)

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(connection)
