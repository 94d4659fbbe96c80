"""The containers of a Podman behind a socket: what `Containers` does for a cell, by Podman's API.

    this process ──lifeline──▶ Podman's service ──▶ conmon ──▶ process 1: ends at the end of its input
                 ──attached─▶ Podman's service ──▶ conmon ──▶ a shell

Whatever ends this process or that service, the kernel closes the lifeline; process 1 ends, the kernel kills all else in
the container's pid namespace, and conmon has the container removed, as its `remove` says.
"""

import asyncio
import json
import os
import shutil
import signal
import tarfile
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.containers import Exec
from skyrl_stack.sandbox.contract import FileMissing
from skyrl_stack.sandbox.oci import Description
from skyrl_stack.sandbox.podman_api import Frames, PodmanApi, Refused

PROCESS_1 = ["/bin/bash", "--noprofile", "--norc", "-c", "while builtin read -r _; do :; done"]
"Reaps, and ends with its input. A signal from the sandbox does not reach it: it is process 1 and has no handler."
_KILL = (files(__package__) / "kill.bash").read_text()
_NOT_REGULAR = "not a regular file"
_STAT = "X-Docker-Container-Path-Stat"
_PIECE = 1 << 20
_KILLED = 128 + signal.SIGKILL
_LAST_SIGNS_S = 0.3
"Until the end of a container is seen, after that of its processes."
_GO_LINK = 1 << 27
_GO_TYPE = _GO_LINK | 1 << 31 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19
"Directory, device, pipe, socket, character device, irregular. Source: Go's io/fs.ModeType."


@dataclass(frozen=True)
class _Session(Exec):
    container: str
    name: str
    "By which Podman knows it."


@dataclass(frozen=True)
class _Place:
    """Where a path leads, and what is there: permissions and kind as Go's FileMode; None where nothing is."""

    path: PurePosixPath
    mode: int | None

    @property
    def is_other(self) -> bool:
        return self.mode is not None and bool(self.mode & _GO_TYPE)


class SocketContainers:
    """The containers that were made through `api`. Every request raises SandboxLost when the container is gone."""

    def __init__(self, api: PodmanApi) -> None:
        self._api = api
        self._lifelines: dict[str, tuple[Frames, asyncio.Task[None]]] = {}

    async def create(self, container: str, description: Description) -> tuple[int, str]:
        """Start a container; `description.config` is what Podman is asked for.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        await self._api.ask("POST", "/containers/create", description.config)
        streams = dict.fromkeys(("stream", "stdin", "stdout", "stderr"), "true")
        lifeline = await self._api.attach(f"/containers/{container}/attach", **streams)  # before there is a process
        self._lifelines[container] = lifeline, asyncio.create_task(_end_of(lifeline))
        await self._api.ask("POST", f"/containers/{container}/start")
        return 0, ""

    async def execute(self, container: str, process: Mapping[str, Any]) -> Exec:
        """Start a process, attached; `process` is what Podman is asked for.

        Raises:
            RuntimeError: it cannot be started; says why.
        """
        try:
            session = (await self._api.ask("POST", f"/containers/{container}/exec", dict(process)))["Id"]
            frames = await self._api.attach(f"/exec/{session}/start", {"Detach": False, "Tty": False})
        except Refused as error:
            if await self.is_running(container):
                raise
            raise SandboxLost(f"sandbox {container} is gone") from error
        return _Session(0, frames, frames.transport, container, session)

    async def exit_code(self, process: Exec) -> int | None:
        """How a process ended, as a shell would say it; None where it is not known."""
        assert isinstance(process, _Session)
        with suppress(SandboxLost, Refused):
            said = await self._api.ask("GET", f"/exec/{process.name}/json")
            if said["ExitCode"] == _KILLED and process.container in self._lifelines:  # it, or everything?
                await asyncio.wait({self._lifelines[process.container][1]}, timeout=_LAST_SIGNS_S)
            return None if said["Running"] else said["ExitCode"]
        return None

    async def is_running(self, container: str) -> bool:
        if container not in self._lifelines or self._lifelines[container][1].done():
            return False
        with suppress(SandboxLost, Refused):
            return (await self._api.ask("GET", f"/containers/{container}/json"))["State"]["Running"]
        return False

    async def kill(self, container: str, pid: int, marker: str) -> None:
        """Kill a shell and all that came of it, which carries `marker` in its environment.

        Raises:
            RuntimeError: it does not let itself be killed.
        """
        await self._as_root(container, "-c", _KILL, "kill", marker)

    async def signal(self, container: str, number: int) -> None:
        """Signal all processes but process 1."""
        await self._as_root(container, "-c", f"builtin kill -{signal.Signals(number).value} -1; :")

    async def open_file(self, container: str, path: str) -> int:
        """A descriptor of a copy of the regular file at `path`.

        Raises:
            FileMissing: there is none, or something else is there.
        """

        def read() -> int:
            place = self._find(container, path)
            if place.mode is None or place.is_other:
                raise FileMissing(f"{path}: {'no such file' if place.mode is None else _NOT_REGULAR}")
            with self._api.stream("GET", _archive(container), path=str(place.path)) as answer:
                return _unpack(answer)

        try:
            return await self._about_files(container, read)
        except (Refused, tarfile.TarError) as error:
            raise FileMissing(f"{path}: {error}") from error

    async def write_from(self, container: str, path: str, data: BinaryIO) -> None:
        """Create or replace a file by all that `data` holds; Podman makes root its owner.

        Raises:
            ValueError: something else is there, or it cannot be written.
        """

        def write() -> None:
            place = self._find(container, path)
            if place.is_other:
                raise ValueError(f"{path}: {_NOT_REGULAR}")
            with tempfile.TemporaryFile() as archive:
                _pack(data, place, archive)
                self._api.call("PUT", _archive(container), archive, path=str(place.path.parent), pause="false")

        try:
            await self._about_files(container, write)
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error

    async def remove(self, container: str) -> None:
        """End a container and remove what it wrote. Idempotent."""
        lifeline, _ = self._lifelines.pop(container, (None, None))
        try:
            await self._api.in_thread(lambda: self._api.remove(container))
        finally:
            if lifeline:
                lifeline.close()

    async def _as_root(self, container: str, *arguments: str) -> None:
        """Run bash in the sandbox to its end; what it does there it does as the sandbox's root.

        Raises:
            RuntimeError: it failed.
        """
        argv = ["/bin/bash", "--noprofile", "--norc", *arguments]
        process = await self.execute(container, {**attached(argv, {}), "User": "0"})
        said = b""
        while piece := await process.output.read():
            said = piece[1]
        process.close()
        if code := await self.exit_code(process):
            raise RuntimeError(f"bash in the sandbox ended with {code}: {said.decode(errors='replace')}")

    async def _about_files[T](self, container: str, function: Callable[[], T]) -> T:
        """`function`, to which Podman answers of a container that is gone as of a file that is not there."""
        try:
            return await self._api.in_thread(function)
        except (Refused, FileMissing) as error:
            if not await self.is_running(container):
                raise SandboxLost(f"sandbox {container} is gone") from error
            raise

    def _find(self, container: str, path: str) -> _Place:
        """Where `path` leads; Podman follows links in the container's mount namespace."""
        target = PurePosixPath(path)
        found = self._stat(container, target)
        if found.mode is not None and found.mode & _GO_LINK:  # which is there, whatever is where it leads
            return self._stat(container, found.path)
        return found

    def _stat(self, container: str, path: PurePosixPath) -> _Place:
        """What is at `path`. Of a link: where it leads in the end, and the mode of the link."""
        try:
            with self._api.stream("HEAD", _archive(container), path=str(path)) as answer:
                said = answer.headers[_STAT]
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            said = error.headers.get(_STAT)
        if said is None:
            return _Place(path, None)
        found = json.loads(b64decode(said))
        return _Place(PurePosixPath(found["linkTarget"]), found["mode"])


def attached(argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What Podman is asked for, for a process of which all streams are ours."""
    streams = dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr"), True)
    return {"Cmd": argv, "Env": [f"{name}={value}" for name, value in environment.items()], **streams}


async def _end_of(lifeline: Frames) -> None:
    """Process 1 says nothing, until its end."""
    while await lifeline.read():
        pass


def _archive(container: str) -> str:
    return f"/containers/{container}/archive"


def _unpack(archive: IO[bytes]) -> int:
    """A descriptor of the one file of an archive.

    Raises:
        TarError: there is none.
    """
    with tarfile.open(fileobj=archive, mode="r|") as tar, tempfile.TemporaryFile() as copy:
        member = tar.next()
        content = tar.extractfile(member) if member else None
        if content is None:
            raise tarfile.ReadError("Podman's answer holds no file")
        shutil.copyfileobj(content, copy, _PIECE)
        copy.seek(0)
        return os.dup(copy.fileno())


def _pack(data: BinaryIO, place: _Place, archive: IO[bytes]) -> None:
    """Make of `data` an archive of one file."""
    entry = tarfile.TarInfo(place.path.name)
    entry.mode = 0o644 if place.mode is None else place.mode & 0o777
    entry.mtime = time.time()
    begin = data.tell()
    entry.size = data.seek(0, os.SEEK_END) - begin
    data.seek(begin)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry, data)
    archive.seek(0)
