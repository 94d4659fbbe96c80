"""Sweeping: what launches left whose processes are gone, as after a power cut or a kill -9 of everything.

Nothing is removed or killed without proof. A private directory is a leftover if the process named in its owner.json
is gone. A process is one if it has files of such a directory open, or carries a launch's id in its environment and that
launch's launcher is gone.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.node import LAUNCH_VARIABLE, LAUNCHER_VARIABLE, Process, other_processes
from skyrl_stack.sandbox.api import PodmanApi, Refused
from skyrl_stack.sandbox.cgroups import remove_launch
from skyrl_stack.sandbox.storage import named_cgroup, named_socket, private_root, remove_private_directory
from skyrl_stack.scratch import PREFIX, read_owner

_DEATH_TIMEOUT_S = 5.0
ROOM = 1 << 30
"Bytes that a runtime should find in the node's temporary directory."
ROOM_INODES = 10_000


@dataclass(frozen=True)
class LeftDirectory:
    """A private directory without an owner."""

    path: Path
    launch_id: str

    def __str__(self) -> str:
        return f"directory {self.path}{_of(self.launch_id)}"


@dataclass(frozen=True)
class LeftProcess:
    """A process without a launcher, or one that still has files of a left directory open."""

    pid: int
    started: int
    launch_id: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}){_of(self.launch_id)}"


def _of(launch_id: str) -> str:
    return f" of launch {launch_id}" if launch_id else ""


Leftover = LeftDirectory | LeftProcess


def leftovers() -> list[Leftover]:
    """What there is to sweep on this machine: processes, then directories."""
    return [*_left_processes(), *_left_directories()]


def sweep() -> list[Leftover]:
    """Kill and remove all leftovers; returns those that are gone now."""
    removed: list[Leftover] = []
    for process in _left_processes():
        if _kill(process):
            removed.append(process)
    for directory in _left_directories():
        with suppress(SetupError):
            _remove(directory)
            removed.append(directory)
    return removed


def make_room() -> str | None:
    """Where the temporary directory is all but full, remove what dead launches left in it; one line if it was.

    Raises:
        SetupError: there is still no room.
    """
    if _has_room():
        return None
    removed = 0
    for directory in _left_directories():
        with suppress(SetupError):
            _remove(directory)
            removed += 1
    if not _has_room():
        raise SetupError(
            f"{private_root()}: less than {ROOM >> 20} MiB or {ROOM_INODES} files are free; make room, or set TMPDIR "
            "(launcher.scratch on Slurm) to another node-local directory"
        )
    return f"healed: {private_root()} was full; removed what {removed} dead launches had left there"


def _remove(directory: LeftDirectory) -> None:
    """Remove a directory, and before it the launch's cgroup and what a Podman elsewhere still has of the launch."""
    if socket := named_socket(directory.path):
        try:
            with PodmanApi(socket) as api:
                api.remove_launch(directory.launch_id)
        except Refused as error:
            raise SetupError(f"{socket}: containers of launch {directory.launch_id} are left: {error}") from error
        except OSError:  # it is gone, and so are its containers
            pass
    if group := named_cgroup(directory.path):
        remove_launch(group)
    remove_private_directory(directory.path)


def _has_room() -> bool:
    state = os.statvfs(private_root())
    counts_inodes = state.f_files > 0  # some file systems do not
    return state.f_bavail * state.f_frsize >= ROOM and (not counts_inodes or state.f_favail >= ROOM_INODES)


def _left_directories() -> Iterator[LeftDirectory]:
    for root in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for path in sorted(root.glob(f"{PREFIX}*")):
            owner = read_owner(path)
            if owner and not owner.is_alive:
                yield LeftDirectory(path, owner.launch_id)


def _left_processes() -> Iterator[LeftProcess]:
    directories = list(_left_directories())
    for process in other_processes():
        launch_id = _orphan_of(process) or _user_of(directories, process)
        if launch_id is not None and (started := process.started) is not None:
            yield LeftProcess(process.pid, started, launch_id, process.command)


def _orphan_of(process: Process) -> str | None:
    """The launch that the process's environment names, if its launcher is gone."""
    launch_id = process.environment.get(LAUNCH_VARIABLE)
    launcher = process.environment.get(LAUNCHER_VARIABLE, "")
    started = process.started
    counts_like_us = process.pid_namespace == Process(os.getpid()).pid_namespace
    if not launch_id or not launcher.isdigit() or not counts_like_us or started is None:
        return None
    launcher_started = Process(int(launcher)).started
    return launch_id if launcher_started is None or launcher_started > started else None


def _user_of(directories: Sequence[LeftDirectory], process: Process) -> str | None:
    """The launch of a left directory in which the process has files open."""
    return next((left.launch_id for left in directories if process.has_open_below(left.path)), None)


def _kill(process: LeftProcess) -> bool:
    """SIGKILL by descriptor, so that a process id given anew in between hits nobody; whether it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if Process(process.pid).started != process.started:
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while Process(process.pid).started is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return Process(process.pid).started is None
