"""Node: the processes of this machine, as the kernel shows them. Source: proc(5).

Whoever ends what a launch left asks here: it carries the launch's marks in its environment, or has files of it open.
"""

import ctypes
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAUNCH_VARIABLE = "SKYRL_LAUNCH_ID"
"By which every process of a launch is known."
LAUNCHER_VARIABLE = "SKYRL_LAUNCHER_PID"
"The process that started the role, where it is on the same machine."
PYTHON_VARIABLE = "SKYRL_PYTHON"
"How the role's Python is started from outside of its image, for who starts more of it on other nodes."
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Process:
    """A process id, and what can be read of its process. One that is gone, or is somebody else's, shows nothing."""

    pid: int

    @property
    def entry(self) -> Path:
        return Path(f"/proc/{self.pid}")

    @property
    def started(self) -> int | None:
        """Clock ticks between boot and its start; None if there is no such process, or only its exit code is left.

        A process id is given anew; together with this number it is not.
        """
        fields = self._stat
        return int(fields[19]) if fields and fields[0] not in "ZX" else None

    @property
    def parent(self) -> int | None:
        """The process that it will be, or was, waited for by."""
        return int(self._stat[1]) if self._stat else None

    @property
    def _stat(self) -> list[str]:
        """What follows the command's name in its `stat`; empty where there is no such process."""
        with suppress(OSError):
            return (self.entry / "stat").read_text().rpartition(")")[2].split()
        return []

    @property
    def command(self) -> str:
        with suppress(OSError):
            return (self.entry / "comm").read_text().strip()
        return ""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that it was started with. A process that sets its title (Ray's do) overwrites some of them."""
        try:
            variables = (self.entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return {}
        return dict(variable.split("=", 1) for variable in variables if "=" in variable)

    @property
    def pid_namespace(self) -> str:
        """The namespace in which process ids mean what they mean to it."""
        with suppress(OSError):
            return str((self.entry / "ns/pid").readlink())
        return ""

    def has_open_below(self, directory: Path) -> bool:
        """Whether it has a file open in `directory` or below it."""
        with suppress(OSError):
            return any(_target(link).is_relative_to(directory) for link in (self.entry / "fd").iterdir())
        return False


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """A `preexec_fn`: the kernel sends `by` when the thread dies that forked this process. Source: prctl(2)."""
    _libc.prctl(_PR_SET_PDEATHSIG, by)


def other_processes() -> Iterator[Process]:
    """All processes but this one."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return (Process(pid) for pid in pids if pid != os.getpid())


def _target(link: Path) -> Path:
    try:
        return link.readlink()
    except OSError:  # closed since
        return Path()
