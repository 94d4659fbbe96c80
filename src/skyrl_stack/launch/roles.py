"""Roles as processes of this machine: both of them in a local launch, one of them in a Slurm job.

Whoever starts roles makes sure that nothing of them is left, whatever ends it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from skyrl_stack.errors import StackError, TrainingStopped
from skyrl_stack.launch import processes
from skyrl_stack.launch.frozen import interpreter
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.sandbox.sweep import sweep

STOP_GRACE_S = 20.0
POLL_S = 0.25


class Interrupted(StackError):
    """The user or the machine asked the launch to stop."""


@dataclass
class RoleProcesses:
    """The processes that this one started for a launch, in the order of their start."""

    directory: RunDirectory
    launch_id: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, role: Role, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start `role`; it prints to `log`, or where we print."""
        return self._spawn(role, f"skyrl_stack.{role}", *arguments, log=log)

    def make_tasks(self, attend: Callable[[], None] = lambda: None) -> None:
        """Make the tasks of the run where the runtime will be, since both need Podman; calls `attend` meanwhile.

        Raises:
            TrainingStopped: they could not be made.
        """
        factory = self._spawn("runtime", "skyrl_stack.factory", log=None)
        while factory.poll() is None:
            attend()
            time.sleep(POLL_S)
        if factory.returncode != 0:
            raise TrainingStopped("the tasks could not be made (above)")

    def failure(self, role: Role, code: int) -> StackError:
        """Why the run stopped: what a role left as its cause, or how `role` died."""
        failure = self.directory.failure()
        cause = failure.cause if failure else _how_it_died(code)
        return TrainingStopped(f"the {failure.role if failure else role} stopped: {cause}; see {self.directory.logs}")

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """Whatever happens inside: all stopped, the last first, and then every process that they left."""
        try:
            yield
        finally:
            with signals_ignored():
                for process in reversed(self.started):
                    processes.stop(process, grace_s=STOP_GRACE_S)
                processes.kill_survivors(self.launch_id, launcher=os.getpid())
                for image in self.directory.profile().images.files:
                    processes.kill_adopted(holding=image)
                sweep()

    def _spawn(self, role: Role, module: str, *arguments: str, log: Path | None) -> subprocess.Popen[bytes]:
        arguments = ("--run-dir", str(self.directory.path), *arguments)
        process = processes.start(
            module, arguments, launch_id=self.launch_id, log=log, python=interpreter(self.directory, role)
        )
        self.started.append(process)
        return process


def _how_it_died(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the block by `Interrupted`."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handlers(interrupt):
        yield


@contextmanager
def signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not cut the clean-up short; it is bounded in time."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
