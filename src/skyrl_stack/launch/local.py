"""Local launch: tasks, then the runtime and the trainer as two processes that live and die together.

The same two roles that Slurm would start, on this machine; they meet in the run directory and nowhere
else. The launcher only starts them, shows what they record, and makes sure that nothing is left.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from skyrl_stack.errors import PeerLost
from skyrl_stack.launch.roles import POLL_S, RoleProcesses, signals_raise
from skyrl_stack.launch.runs import claim, use_it
from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch
from skyrl_stack.report import read_steps
from skyrl_stack.run_directory import Role, RunDirectory

Say = Callable[[str], None]


@dataclass
class LocalLaunch:
    """One launch of one run directory on this machine."""

    directory: RunDirectory
    profile: Profile
    say: Say
    resume: bool = False
    launch: Launch = field(default_factory=Launch)

    def __post_init__(self) -> None:
        self.roles = RoleProcesses(self.directory, self.launch.launch_id)

    def run(self) -> None:
        """Run to the end.

        Raises:
            StackError: a role failed, or the launch was interrupted; nothing of it is left running.
        """
        claim(self.directory, self.launch, self.profile)
        with signals_raise(), self.roles.nothing_left():
            runtime = self._serve() if "runtime" in self.profile.roles else None
            if "trainer" in self.profile.roles:
                progress = Progress(self.directory, self.say)
                trainer = self._start("trainer", *(["--resume"] if self.resume else []))
                self._watch(runtime, trainer, progress)
            elif runtime:
                self.say(f"another launch uses it by {' '.join(use_it(self.directory))}; Ctrl-C ends it")
                raise self.roles.failure("runtime", runtime.wait())

    def _serve(self) -> subprocess.Popen[bytes]:
        self._make_tasks()
        runtime = self._start("runtime")
        self._await_runtime(runtime)
        return runtime

    def _make_tasks(self) -> None:
        if not self.directory.tasks_file.is_file():
            self.say("tasks: making or finding them")
            self.roles.make_tasks()

    def _start(self, role: Role, *arguments: str) -> subprocess.Popen[bytes]:
        self.say(f"{role}: starting, log in {self.directory.log(role)}")
        return self.roles.start(role, *arguments, log=self.directory.log(role))

    def _await_runtime(self, runtime: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.profile.run.start_timeout_s
        while self.directory.endpoint("runtime") is None:
            if runtime.poll() is not None:
                raise self.roles.failure("runtime", runtime.returncode)
            if time.monotonic() > deadline:
                raise PeerLost(f"the runtime did not start in time; see {self.directory.log('runtime')}")
            time.sleep(POLL_S)

    def _watch(
        self, runtime: subprocess.Popen[bytes] | None, trainer: subprocess.Popen[bytes], progress: "Progress"
    ) -> None:
        while trainer.poll() is None:
            if runtime and runtime.poll() is not None and not self._is_ending("trainer"):
                raise self.roles.failure("runtime", runtime.returncode)
            progress.show()
            time.sleep(POLL_S)
        progress.show()
        if trainer.returncode != 0:
            raise self.roles.failure("trainer", trainer.returncode)

    def _is_ending(self, role: Role) -> bool:
        """Whether the role has said that it is done, so that the other may go before its process does."""
        heartbeat = self.directory.heartbeat(role)
        return heartbeat is not None and heartbeat.state in ("ended", "failed")


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
