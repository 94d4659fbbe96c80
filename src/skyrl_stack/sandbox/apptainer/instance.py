"""One sandbox of Apptainer: a copy of a tree, and the process that was started for it.

    this process ──lifeline──▶ process 1: starts programs, ends at the end of its input
                 ──named pipes──▶ a program of it, such as a shell

    <directory>/<id>/root       what the sandbox sees, and writes
    <directory>/<id>/shm        its /dev/shm: on disk, where its size holds
    <directory>/<id>/streams    its /.skyrl, which it cannot write: pipes, and what process 1 reads

The lifeline is a socket and no pipe: who opens /proc/1/fd/0 in the sandbox gets no end of it. Whatever ends this
process, the kernel closes the lifeline; process 1 ends, the kernel kills the rest of its pid namespace, and Apptainer,
which waited for it, ends. Where Apptainer is killed, process 1 is with it (PR_SET_PDEATHSIG).
"""

import asyncio
import os
import shlex
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO, Self

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.apptainer.program import Apptainer, environment
from skyrl_stack.sandbox.apptainer.trees import STREAMS, Tree
from skyrl_stack.sandbox.container import Container
from skyrl_stack.sandbox.containers import Exec
from skyrl_stack.sandbox.outside.lifeline import Lifeline
from skyrl_stack.sandbox.pipes import PipeReader
from skyrl_stack.sandbox.storage import remove_tree
from skyrl_stack.sandbox.stream import STDOUT
from skyrl_stack.sandbox.syscalls import open_in_root
from skyrl_stack.sif.apptainer import last

_INIT = (files(__package__) / "init.bash").read_text()
_BASH = ("/bin/bash", "--noprofile", "--norc")
_PIECE = 64 * 1024
_START_TIMEOUT_S, _END_TIMEOUT_S = 120.0, 10.0


@dataclass(frozen=True)
class Program(Exec):
    """A program in a sandbox; `pid` is its id as this process counts, `number` as process 1 does."""

    number: int
    sandbox: str
    far_end: BinaryIO
    "Of its input: without one, what is written before it reads would be refused."

    def close(self) -> None:
        super().close()
        self.far_end.close()


class _Line:
    """What process 1 says, and is told, on one socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transport = writer.transport
        self._reader = reader
        self._writer = writer  # one that nobody holds closes its connection

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def read(self) -> tuple[int, bytes] | None:
        with suppress(ConnectionError):
            if data := await self._reader.read(_PIECE):
                return STDOUT, data
        return None

    def close(self) -> None:
        self.transport.abort()


class Instance(Container):
    """A sandbox below `directory`."""

    def __init__(self, identifier: str, directory: Path) -> None:
        super().__init__(identifier, ())
        self.directory = directory / identifier
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline: Lifeline | None = None

    async def begin(
        self, apptainer: Apptainer, *, tree: Tree, variables: Mapping[str, str], workdir: str, own_network: bool
    ) -> None:
        """Copy the tree and start process 1 in it, with `variables` as its environment.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        root, streams, shm = (self.directory / name for name in ("root", "streams", "shm"))
        for place in (streams, shm):
            place.mkdir(parents=True)
        shm.chmod(0o1777)
        init = shlex.join([*_BASH, "-c", _INIT, "init"])
        (streams / "init.sh").write_text(f"{_exports(variables)}\nexec {init}\n")
        await _copy(tree.root, root)
        await self._start_process_1(
            apptainer.command(
                root,
                *(*_BASH, "-c", f"exec -c {shlex.join(_BASH)} {STREAMS}/init.sh"),
                name=self.id,
                binds={STREAMS: f"{streams}:ro", "/dev/shm": str(shm)},
                own_network=own_network,
            )
        )
        try:
            os.close(open_in_root(self._root, workdir, os.O_PATH | os.O_DIRECTORY))
        except OSError as error:
            raise RuntimeError(f"working directory {workdir}: {error.strerror}") from error

    async def execute_attached(self, argv: Sequence[str], variables: Mapping[str, str]) -> Program:
        """Have process 1 start a program, with `variables` beside its own; both streams and the input are ours.

        Raises:
            SandboxLost: the sandbox is gone.
            RuntimeError: it ended at once.
        """
        self.require_running()
        pipes = self.directory / f"streams/{next(self._calls)}"
        pipes.with_suffix(".sh").write_text(f"{_exports(variables)}\nexec {shlex.join(argv)}\n")
        with ExitStack() as undo:
            far_end = undo.enter_context(os.fdopen(_pipe(pipes.with_suffix(".in"), os.O_RDONLY), "rb", buffering=0))
            # For writing, too: so they do not seem to have ended before somebody writes. They end with the program.
            stdout, stderr = (_pipe(pipes.with_suffix(suffix), os.O_RDWR) for suffix in (".out", ".err"))
            undo.callback(os.close, stdout)
            undo.callback(os.close, stderr)
            number = await self.ask("start", pipes.name)
            try:
                pid = descendant(self.pid, number)
                life = os.pidfd_open(pid)
            except OSError as error:
                self.require_running()
                raise RuntimeError(f"{argv[0]} ended as it began") from error
            undo.callback(os.close, life)
            file = os.fdopen(os.open(pipes.with_suffix(".in"), os.O_WRONLY | os.O_NONBLOCK), "wb", buffering=0)
            transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.Protocol, file)
            undo.pop_all()
        return Program(pid, PipeReader(stdout, stderr, life), transport, (), number, self.id, far_end)

    async def ask(self, what: str, argument: str) -> int:
        """Ask process 1.

        Raises:
            SandboxLost: it has ended.
        """
        if self._lifeline is None:
            raise SandboxLost(f"sandbox {self.id} is gone")
        return await asyncio.shield(self._lifeline.ask(what, argument))  # its answer would be taken for the next one

    async def end(self) -> None:
        """End every process and remove all that was written."""
        if self._life >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._life, signal.SIGKILL)
        elif self._process and self._process.returncode is None:
            self._process.kill()
        if self._lifeline:
            self._lifeline.close()
        if self._process:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_TIMEOUT_S):
                    await self._process.wait()
        for descriptor in (self._life, self._root):
            if descriptor >= 0:
                os.close(descriptor)
        self._life = self._root = -1
        await asyncio.to_thread(remove_tree, self.directory)

    async def _start_process_1(self, command: Sequence[str]) -> None:
        log = self.directory / "log"
        ours, its = socket.socketpair()
        with its, log.open("wb") as said:
            self._lifeline = Lifeline(self.id, await _Line.over(ours))
            ends, variables = its.fileno(), environment(self.directory)
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=ends, stdout=ends, stderr=said, env=variables, start_new_session=True
            )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self.ask("signal", "0")  # it answers once it is there
            self.pid = descendant(self._process.pid, 1)
            self._life = os.pidfd_open(self.pid)
            self._root = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except TimeoutError as error:
            raise RuntimeError(f"apptainer does not start it within {_START_TIMEOUT_S:g} s") from error
        except (SandboxLost, OSError) as error:
            raise RuntimeError(f"apptainer: {last(log.read_text(errors='replace').splitlines())}") from error


async def _copy(source: Path, place: Path) -> None:
    """Copy a directory: where the file system can, without its blocks."""
    command = ("cp", "--archive", "--reflink=auto", "--no-target-directory", str(source), str(place))
    copying = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        _, said = await copying.communicate()
    finally:
        if copying.returncode is None:
            copying.kill()
            await copying.wait()
    if copying.returncode:
        raise RuntimeError(f"its image cannot be copied: {last(said.decode(errors='replace').splitlines())}")


def _pipe(path: Path, flags: int) -> int:
    """Make a named pipe, and open it."""
    os.mkfifo(path, 0o600)
    return os.open(path, flags | os.O_NONBLOCK)


def descendant(ancestor: int, number: int) -> int:
    """The process below `ancestor` that counts itself as `number`, in its pid namespace.

    Raises:
        ProcessLookupError: there is none.
    """
    waiting = deque(_children(ancestor))
    while waiting:
        pid = waiting.popleft()
        with suppress(OSError):  # ended meanwhile
            numbers = Path(f"/proc/{pid}/status").read_text().partition("\nNSpid:")[2].partition("\n")[0].split()
            if int(numbers[-1]) == number:
                return pid
            waiting.extend(_children(pid))
    raise ProcessLookupError(f"no process {number} below {ancestor}")


def _children(pid: int) -> list[int]:
    """Source: proc_pid_task(5)."""
    lists = [(thread / "children").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return [int(word) for text in lists for word in text.split()]


def _exports(variables: Mapping[str, str]) -> str:
    """Bash that exports all of `variables` that it can name."""
    named = {name: value for name, value in variables.items() if name.isidentifier() and name.isascii()}
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in named.items())
