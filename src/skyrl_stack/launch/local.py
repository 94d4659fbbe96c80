"""Local launch: tasks, then the runtime and the trainer as two processes that live and die together.

The same two roles that Slurm would start, on this machine; they meet in the run directory and nowhere
else. The launcher only starts them, shows what they record, and makes sure that nothing is left.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from skyrl_stack.errors import PeerLost, RunDirectoryError, StackError, TrainingStopped
from skyrl_stack.launch import processes
from skyrl_stack.profile import Profile
from skyrl_stack.report import read_steps
from skyrl_stack.run_directory import Launch, Role, RunDirectory, publish
from skyrl_stack.sandbox.sweep import sweep

Say = Callable[[str], None]
STOP_GRACE_S = 20.0
POLL_S = 0.25


class Interrupted(StackError):
    """The user or the machine asked the launch to stop."""


@dataclass
class LocalLaunch:
    """One launch of one run directory on this machine."""

    directory: RunDirectory
    profile: Profile
    say: Say
    resume: bool = False
    launch: Launch = field(default_factory=Launch)
    roles: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self) -> None:
        """Run to the end.

        Raises:
            StackError: a role failed, or the launch was interrupted; nothing of it is left running.
        """
        claim(self.directory, self.launch)
        publish(self.directory.profile_file, self.profile)  # a resumed run may be given new values
        with _signals_raise(), self._nothing_left():
            self._prepare_tasks()
            runtime = self._start("runtime")
            self._await_runtime(runtime)
            progress = Progress(self.directory, self.say)
            trainer = self._start("trainer", *(["--resume"] if self.resume else []))
            self._watch(runtime, trainer, progress)

    def _prepare_tasks(self) -> None:
        if self.directory.tasks_file.is_file():
            return
        self.say("tasks: making or finding them")
        if self._spawn("skyrl_stack.factory", log=None).wait() != 0:
            raise TrainingStopped("the tasks could not be made (above)")

    def _start(self, role: Role, *arguments: str) -> subprocess.Popen[bytes]:
        self.say(f"{role}: starting, log in {self.directory.log(role)}")
        return self._spawn(f"skyrl_stack.{role}", *arguments, log=self.directory.log(role))

    def _spawn(self, module: str, *arguments: str, log: Path | None) -> subprocess.Popen[bytes]:
        arguments = ("--run-dir", str(self.directory.path), *arguments)
        process = processes.start(module, arguments, launch_id=self.launch.launch_id, log=log)
        self.roles.append(process)
        return process

    def _await_runtime(self, runtime: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.profile.run.start_timeout_s
        while self.directory.endpoint("runtime") is None:
            if runtime.poll() is not None:
                raise self._failure("runtime", runtime.returncode)
            if time.monotonic() > deadline:
                raise PeerLost(f"the runtime did not start in time; see {self.directory.log('runtime')}")
            time.sleep(POLL_S)

    def _watch(self, runtime: subprocess.Popen[bytes], trainer: subprocess.Popen[bytes], progress: "Progress") -> None:
        while trainer.poll() is None:
            if runtime.poll() is not None and not self._is_ending("trainer"):
                raise self._failure("runtime", runtime.returncode)
            progress.show()
            time.sleep(POLL_S)
        progress.show()
        if trainer.returncode != 0:
            raise self._failure("trainer", trainer.returncode)

    def _is_ending(self, role: Role) -> bool:
        """Whether the role has said that it is done, so that the other may go before its process does."""
        heartbeat = self.directory.heartbeat(role)
        return heartbeat is not None and heartbeat.state in ("ended", "failed")

    def _failure(self, role: Role, code: int) -> StackError:
        """What a role left as its cause, or how it died."""
        failure = self.directory.failure()
        cause = failure.cause if failure else _how_it_died(code)
        return TrainingStopped(f"the {failure.role if failure else role} stopped: {cause}; see {self.directory.logs}")

    @contextmanager
    def _nothing_left(self) -> Iterator[None]:
        """Whatever happens inside: both roles stopped, the trainer first, and then every process that they left."""
        try:
            yield
        finally:
            with _signals_ignored():
                for process in reversed(self.roles):
                    processes.stop(process, grace_s=STOP_GRACE_S)
                processes.kill_survivors(self.launch.launch_id)
                sweep()


@dataclass
class Progress:
    """Says what is new in the run directory, once."""

    directory: RunDirectory
    say: Say
    episodes: int = 0
    steps: int = 0
    read_to: int = 0

    def __post_init__(self) -> None:
        self.episodes, self.steps = self._count_episodes(), len(read_steps(self.directory))
        log = self.directory.log("trainer")
        self.read_to = log.stat().st_size if log.is_file() else 0

    def show(self) -> None:
        self._show_log()
        self._show_episodes()
        self._show_steps()

    def _show_log(self) -> None:
        """The trainer's own lines, out of all that verl and Ray print."""
        with self.directory.log("trainer").open("rb") as log:
            log.seek(self.read_to)
            *lines, _unfinished = log.read().split(b"\n")
        self.read_to += sum(len(line) + 1 for line in lines)
        for line in lines:
            if line.startswith((b"trainer: ", b"model: ")):
                self.say(line.decode(errors="replace"))

    def _show_episodes(self) -> None:
        if (episodes := self._count_episodes()) != self.episodes:
            self.episodes = episodes
            self.say(f"trainer: {episodes} episodes finished")

    def _show_steps(self) -> None:
        if self.directory.metrics_file.is_file():
            steps = read_steps(self.directory)
            for step in steps[self.steps :]:
                self.say(f"step {step.number}: {step.one_line()}")
            self.steps = len(steps)

    def _count_episodes(self) -> int:
        return sum(1 for _ in self.directory.episodes.glob("*.json"))


def claim(directory: RunDirectory, launch: Launch) -> None:
    """Make `launch` the owner of the directory.

    Raises:
        RunDirectoryError: another launch on this machine is still running in it.
    """
    if directory.launch_file.is_file():
        owner = directory.launch()
        if owner.host == launch.host and processes.survivors(owner.launch_id):
            raise RunDirectoryError(f"{directory.path}: launch {owner.launch_id} is still running here; stop it first")
    publish(directory.launch_file, launch)


def _how_it_died(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the block by `Interrupted`."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    with _handlers(interrupt):
        yield


@contextmanager
def _signals_ignored() -> Iterator[None]:
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
