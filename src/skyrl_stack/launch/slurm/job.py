"""One role as one Slurm job: `python -m skyrl_stack.launch.slurm.job ROLE --run-dir DIR [--resume]`.

The batch script becomes this process, so what Slurm has to say comes here:

    SIGUSR1          `run.notice_s` before the time limit, or of a preemption: the trainer finishes its step and saves
    SIGTERM          cancelled, preempted, requeued: the role has a bounded time to end; Slurm knows which it is

A job that was not meant to end waits in the queue again, under the same launch id, and goes on after the newest
checkpoint (`Profile.goes_on`). Meanwhile the other role keeps its node, or gives it back (`peer.py`).
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skyrl_stack.errors import RunDirectoryError, SetupError, SlurmRefused, SlurmUnreachable, StackError
from skyrl_stack.launch.roles import POLL_S, Interrupted, RoleProcesses, signals_ignored, signals_raise
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.peer import GoesBack, Peer
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.launch.slurm.starts import count_start
from skyrl_stack.node import LAUNCH_VARIABLE
from skyrl_stack.presence import INTERVAL_S, declare_gone, record_failure, write_heartbeat
from skyrl_stack.records import Incarnation
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.site import SlurmLauncher
from skyrl_stack.trainer.ending import EXIT_LEFT, LEAVE_BY_VARIABLE

LEAVE_S = 45.0
"Kept of the time limit for ending the role, and for the way back into the queue."
RETRY_S = 5.0
PEER: dict[Role, Role] = {"runtime": "trainer", "trainer": "runtime"}
LEFT = (EXIT_LEFT, -signal.SIGUSR1)
"Exit codes of a role that is to be started again; the second is of one that had just been started."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.launch.slurm.job", description=__doc__)
    parser.add_argument("role", choices=PEER)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="the trainer: go on after the newest checkpoint")
    arguments = parser.parse_args()
    try:
        directory = RunDirectory(arguments.run_dir)
        directory.await_launch(os.environ.get(LAUNCH_VARIABLE, ""))
        RoleJob(directory, arguments.role).run(resume=arguments.resume)
    except StackError as error:
        print(f"{arguments.role}: {error}", file=sys.stderr)
        return 1
    return 0


class RoleJob:
    """The part of a launch that one Slurm job carries out, from one start of the job to its end."""

    def __init__(self, directory: RunDirectory, role: Role) -> None:
        self.directory = directory
        self.role: Role = role
        self.profile = directory.profile()
        self.launch_id = os.environ.get(LAUNCH_VARIABLE, "")
        self.me = Incarnation.here(self.launch_id)
        self._id, self._name = os.environ["SLURM_JOB_ID"], job_name(role, self.launch_id)
        self._peer = Peer(directory, PEER[role], self.launch_id)
        self._roles = RoleProcesses(directory, self.launch_id)
        self._leave_by = time.monotonic() + self._time_limit_s() - LEAVE_S
        self._asked_to_leave = False
        self._went_back = False
        self._next_beat = 0.0

    def run(self, *, resume: bool) -> None:
        """Carry the role out to its end, or to where the job waits in the queue again.

        Raises:
            StackError: it failed, was told to stop, or its peer is gone; nothing of it is left running.
        """
        signal.signal(signal.SIGUSR1, self._ask_to_leave)
        with (
            signals_raise(),
            self._peer_released(),
            declare_gone(self.directory, self.role, self.me, comes_back=lambda: self._went_back),
            self._back_into_queue(),
            self._roles.nothing_left(),
            self._cause_recorded(),
        ):
            start = count_start(self.directory, self.role, self.me, max_requeues=self.profile.run.max_requeues)
            if self.role == "runtime":
                self._roles.make_tasks(attend=self._show_life_alone)
            os.environ[LEAVE_BY_VARIABLE] = str(time.time() + self._leave_by - time.monotonic())
            resume = self.role == "trainer" and (resume or start.starts > 1)
            self._attend(self._roles.start(self.role, *(["--resume"] if resume else [])))

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        told = False
        while process.poll() is None:
            self._peer.look()
            self._look_at_clock()
            if self._asked_to_leave and self.role == "trainer" and not told:
                process.send_signal(signal.SIGUSR1)  # a runtime has nothing to finish, and serves to the last
                told = True
            time.sleep(POLL_S)
        if process.returncode in LEFT:
            raise GoesBack("the trainer left, before its time limit or without a node that it lost (see above)")
        if process.returncode != 0:
            raise self._roles.failure(self.role, process.returncode)

    def _show_life_alone(self) -> None:
        """While the role itself does not run yet, and so neither shows itself nor watches its peer."""
        if time.monotonic() > self._next_beat:
            write_heartbeat(self.directory, self.role, self.me, "starting")
            self._next_beat = time.monotonic() + INTERVAL_S
        self._peer.require_alive()
        self._look_at_clock()

    def _look_at_clock(self) -> None:
        if time.monotonic() > self._leave_by:
            raise GoesBack(f"the {self.role} is near its time limit")

    def _ask_to_leave(self, *_: object) -> None:
        self._asked_to_leave = True
        self._leave_by = min(self._leave_by, time.monotonic() + self.profile.run.notice_s - LEAVE_S)

    def _time_limit_s(self) -> int:
        assert isinstance(self.profile.launcher, SlurmLauncher)
        return self.profile.launcher.job(self.role).time_limit_s

    @contextmanager
    def _cause_recorded(self) -> Iterator[None]:
        """Say why before the role is stopped: what its peer notices of that is only the consequence.

        Raises:
            GoesBack: Slurm starts the job again, or it is to wait in the queue again.
        """
        try:
            yield
        except GoesBack as why:
            if not self.profile.goes_on:
                self._record(f"{why}; skyrl-stack resume goes on", told_to_stop=True)
                raise Interrupted(str(why)) from why
            raise
        except Interrupted as error:
            if self.profile.goes_on and (why := self._why_interrupted()):
                raise GoesBack(why) from error
            self._record(f"{error} (cancelled, or told to end by Slurm)", told_to_stop=True)
            raise
        except StackError as error:
            self._record(str(error))
            raise
        except OSError as error:
            self._record(str(error))
            raise RunDirectoryError(str(error)) from error

    def _record(self, cause: str, *, told_to_stop: bool = False) -> None:
        record_failure(self.directory, self.me, self.role, cause, told_to_stop=told_to_stop)

    def _why_interrupted(self) -> str | None:
        """Why the run goes on after a SIGTERM; None if it does not. Who sent it, only Slurm knows."""
        try:
            job = client.find(self._id, self._name)
        except SlurmUnreachable:
            return "told to end, and Slurm does not say why"
        if job and job.restarts > self.me.restart:
            return "requeued by Slurm"
        return "at its time limit" if job and job.reason == "TimeLimit" else None

    @contextmanager
    def _back_into_queue(self) -> Iterator[None]:
        try:
            yield
        except GoesBack as why:
            with signals_ignored():
                write_heartbeat(self.directory, self.role, self.me, "left")
                if self._requeue(why.behind):
                    self._went_back = True
                    print(f"{self.role}: {why}; the job waits in the queue again", file=sys.stderr, flush=True)

    def _requeue(self, behind: str | None) -> bool:
        """Ask until there is an answer, which the time limit bounds; returns whether the job waits again."""
        while True:
            try:
                job = client.find(self._id, self._name)
                if job and job.restarts > self.me.restart:
                    return True
                if not job or (job.state != "RUNNING" and job.reason != "TimeLimit"):
                    self._record(f"the {self.role}'s job was cancelled", told_to_stop=True)
                    return False
                client.requeue(job.id, behind=behind)  # our own id may be the whole array's
                return True
            except SlurmUnreachable as error:
                print(f"{self.role}: {error}", file=sys.stderr, flush=True)
                time.sleep(RETRY_S)
            except SlurmRefused as error:
                self._record(f"the {self.role} cannot wait in the queue again ({error}); skyrl-stack resume goes on")
                raise

    @contextmanager
    def _peer_released(self) -> Iterator[None]:
        """What still waits in the queue would only start to find nobody. The loss of one node does not end a run."""
        try:
            yield
        finally:
            if not self._went_back and (self.role == "trainer" or self.directory.failure()):
                with signals_ignored(), suppress(SlurmUnreachable, SlurmRefused, SetupError):
                    client.cancel([job_name(role, self.launch_id) for role in PEER], waiting=True)


if __name__ == "__main__":
    sys.exit(main())
