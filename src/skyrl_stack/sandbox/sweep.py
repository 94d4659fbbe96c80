"""Sweeping: what launches left whose processes are gone, as after a power cut or a kill -9 of everything.

Nothing is removed or killed without proof. A private directory is a leftover if the process named in its owner.json
is gone. A process is one if it carries a launch's id in its environment and that launch's launcher is gone.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.storage import PREFIX, process_start, read_owner, remove_private_directory

_DEATH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class LeftDirectory:
    """A private directory without an owner."""

    path: Path
    launch_id: str

    def __str__(self) -> str:
        return f"directory {self.path} of launch {self.launch_id}"


@dataclass(frozen=True)
class LeftProcess:
    """A process without a launcher."""

    pid: int
    launch_id: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) of launch {self.launch_id}"


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
            remove_private_directory(directory.path)
            removed.append(directory)
    return removed


def _left_directories() -> Iterator[LeftDirectory]:
    for root in {Path(tempfile.gettempdir()), Path("/tmp")}:
        for path in sorted(root.glob(f"{PREFIX}*")):
            owner = read_owner(path)
            if owner and not owner.is_alive:
                yield LeftDirectory(path, owner.launch_id)


def _left_processes() -> Iterator[LeftProcess]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and (left := _left_process(int(entry.name))):
            yield left


def _left_process(pid: int) -> LeftProcess | None:
    """The process, if its environment names a launch whose launcher is gone."""
    entry = Path(f"/proc/{pid}")
    try:
        variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        command = (entry / "comm").read_text().strip()
        # In another pid namespace the launcher's number would mean another process.
        same_numbers = (entry / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    named = dict(variable.split("=", 1) for variable in variables if variable.startswith("SKYRL_LAUNCH"))
    launch_id, launcher = named.get("SKYRL_LAUNCH_ID"), named.get("SKYRL_LAUNCHER_PID", "")
    started = process_start(pid)
    if not launch_id or not launcher.isdigit() or not same_numbers or started is None:
        return None
    launcher_started = process_start(int(launcher))
    if launcher_started is not None and launcher_started <= started:
        return None
    return LeftProcess(pid, launch_id, command)


def _kill(process: LeftProcess) -> bool:
    """SIGKILL by descriptor, so that a process id given anew in between hits nobody; whether it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        if _left_process(process.pid) != process:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    while process_start(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process_start(process.pid) is None
