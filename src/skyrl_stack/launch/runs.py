"""Runs: which there are and what state each is in, from run directories and one question to Slurm's queue."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from skyrl_stack.errors import RunDirectoryError, SetupError, SlurmRefused, SlurmUnreachable
from skyrl_stack.launch import processes
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.profile import Profile
from skyrl_stack.records import Failure, Heartbeat, Launch
from skyrl_stack.report import Step, read_steps
from skyrl_stack.run_directory import Role, RunDirectory

ROLES: tuple[Role, Role] = ("runtime", "trainer")
State = Literal["not started", "waiting", "running", "finished", "stopped", "failed", "lost", "unknown"]


@dataclass(frozen=True)
class Run:
    """One run at one moment: what is asked twice is read once."""

    directory: RunDirectory
    profile: Profile
    launch: Launch | None
    "None before the first launch."
    jobs: Mapping[Role, Job] | None
    "What Slurm says of those that it still knows; None where it does not answer, and for a local run."

    @cached_property
    def failure(self) -> Failure | None:
        return self.directory.failure() if self.launch else None

    @cached_property
    def steps(self) -> list[Step]:
        return read_steps(self.directory) if self.launch else []

    @cached_property
    def _heartbeats(self) -> list[Heartbeat | None]:
        """Of each role that the launch started."""
        return [self.directory.heartbeat(role) for role in self.profile.roles]

    @property
    def is_slurm(self) -> bool:
        return self.profile.launcher.kind == "slurm"

    @cached_property
    def state(self) -> State:
        """`lost`: it ended and nobody said why. `unknown`: Slurm does not answer, and the roles are silent."""
        if self.launch is None:
            return "not started"
        if not self.is_slurm:
            return "running" if self._has_processes() else self._outcome()
        if self.jobs is None:
            return self._state_by_heartbeats()
        alive = [job.state for job in self.jobs.values() if not job.has_ended]
        if alive:
            return "waiting" if "PENDING" in alive else "running"
        signs = (*self.jobs, self.failure, *self._heartbeats)
        return self._outcome() if any(signs) else "not started"

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running", "unknown")

    def _state_by_heartbeats(self) -> State:
        if self._shows_life():
            return "running"
        ended = all(heartbeat and heartbeat.is_over for heartbeat in self._heartbeats)
        return self._outcome() if ended else "unknown"

    def _outcome(self) -> State:
        if self.failure:
            return "stopped" if self.failure.told_to_stop else "failed"
        if any(job.state == "CANCELLED" for job in (self.jobs or {}).values()):
            return "stopped"
        last = self._heartbeats[-1]  # the trainer's, where there is one
        if last is None or last.state != "ended":
            return "lost"
        return "finished" if self.steps and self.steps[-1].number >= self.profile.trainer.steps else "stopped"

    def _has_processes(self) -> bool:
        assert self.launch
        here = self.launch.host == Launch().host
        return bool(processes.survivors(self.launch.launch_id)) if here else self._shows_life()

    def _shows_life(self) -> bool:
        return any(
            heartbeat and time.time() - heartbeat.at < self.profile.run.peer_timeout_s and heartbeat.is_alive
            for heartbeat in self._heartbeats
        )


def look(directories: Iterable[RunDirectory]) -> list[Run]:
    """The state of each run; Slurm is asked once, if any of them needs it."""
    profiles = [(directory, directory.profile()) for directory in directories]
    queue = _queue() if any(profile.launcher.kind == "slurm" for _, profile in profiles) else None
    return [_run(directory, profile, queue) for directory, profile in profiles]


def all_runs(root: Path) -> list[RunDirectory]:
    """Run directories below `root`, the oldest first."""
    return [RunDirectory(file.parent) for file in sorted(root.glob("*/profile.json"))]


def use_it(directory: RunDirectory) -> list[str]:
    """Options by which another launch uses the runtimes of this one, as far as they serve by now."""
    urls = [endpoint.url for endpoint in directory.endpoints("runtime").values()]
    return [*(f"--runtime-url {url}" for url in urls), f"--api-key-file {directory.api_key_file}"] if urls else []


def claim(directory: RunDirectory, launch: Launch, profile: Profile) -> None:
    """Make `launch` the owner of the directory; a resumed run may be given a new profile.

    Raises:
        RunDirectoryError: another launch is still running in it, or may be.
    """
    if directory.launch_file.is_file():
        run = look([directory])[0]
        if not run.is_over:
            running = "is still running" if run.state != "unknown" else "may be running: Slurm does not answer"
            owner = directory.launch().launch_id
            raise RunDirectoryError(f"{directory.path}: launch {owner} {running}; skyrl-stack stop {directory.path}")
    directory.keep_spare()
    directory.hand_over(launch, profile)


def _run(directory: RunDirectory, profile: Profile, queue: Mapping[str, Job] | None) -> Run:
    launch = directory.launch() if directory.launch_file.is_file() else None
    jobs: dict[Role, Job] | None = None
    if launch and queue is not None and profile.launcher.kind == "slurm":
        names: dict[Role, str] = {role: job_name(role, launch.launch_id) for role in ROLES}
        jobs = {role: queue[name] for role, name in names.items() if name in queue}
    return Run(directory, profile, launch, jobs)


def _queue() -> Mapping[str, Job] | None:
    try:
        return client.jobs()
    except (SlurmUnreachable, SlurmRefused, SetupError):
        return None
