"""One role as one Slurm job: `python -m skyrl_stack.launch.slurm.job ROLE --run-dir DIR [--resume]`.

The batch script becomes this process, so Slurm's SIGTERM (cancelled, or two minutes before the time limit) comes
here and goes on to the role, which has a bounded time to end. Between two roles that have met, heartbeats say who
is gone. Before that there are none: a peer may wait in the queue for days, or be cancelled there, and only Slurm knows.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skyrl_stack.errors import PeerLost, RunDirectoryError, SetupError, SlurmRefused, SlurmUnreachable, StackError
from skyrl_stack.launch.processes import LAUNCH_VARIABLE
from skyrl_stack.launch.roles import POLL_S, Interrupted, RoleProcesses, signals_ignored, signals_raise
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.presence import INTERVAL_S, Watch, declare_gone, record_failure, write_heartbeat
from skyrl_stack.records import Incarnation
from skyrl_stack.run_directory import Role, RunDirectory

QUEUE_POLL_S = 20.0
SUBMISSION_GRACE_S = 120.0
"The runtime's job can start before the launcher has submitted the trainer's."
PEER: dict[Role, Role] = {"runtime": "trainer", "trainer": "runtime"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.launch.slurm.job", description=__doc__)
    parser.add_argument("role", choices=PEER)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="the trainer: go on after the newest checkpoint")
    arguments = parser.parse_args()
    try:
        RoleJob(RunDirectory.open(arguments.run_dir), arguments.role).run(resume=arguments.resume)
    except StackError as error:
        print(f"{arguments.role}: {error}", file=sys.stderr)
        return 1
    return 0


class RoleJob:
    """The part of a launch that one Slurm job carries out."""

    def __init__(self, directory: RunDirectory, role: Role) -> None:
        self.directory = directory
        self.role: Role = role
        self.peer: Role = PEER[role]
        self.launch_id = os.environ.get(LAUNCH_VARIABLE, "")
        self.me = Incarnation.here(self.launch_id)
        self._watch = Watch(directory, self.peer, directory.profile().run.peer_timeout_s)
        self._roles = RoleProcesses(directory, self.launch_id)
        self._started = time.monotonic()
        self._next_look = self._started + QUEUE_POLL_S
        self._has_met_peer = False
        self._next_beat = 0.0

    def run(self, *, resume: bool) -> None:
        """Carry the role out to its end.

        Raises:
            StackError: it failed, was told to stop, or its peer is gone; nothing of it is left running.
        """
        if self.directory.launch().launch_id != self.launch_id:
            raise RunDirectoryError(f"{self.directory.path}: belongs to another launch than the one of this job")
        with (
            signals_raise(),
            self._peer_released(),
            declare_gone(self.directory, self.role, self.me),
            self._roles.nothing_left(),
            self._cause_recorded(),
        ):
            if self.role == "runtime":
                self._roles.make_tasks(attend=self._show_life_alone)
            process = self._roles.start(self.role, *(["--resume"] if resume else []))
            self._attend(process)

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            self._look_for_peer()
            time.sleep(POLL_S)
        if process.returncode != 0:
            raise self._roles.failure(self.role, process.returncode)

    def _show_life_alone(self) -> None:
        """While the role itself does not run yet, and so neither shows itself nor watches its peer."""
        if time.monotonic() > self._next_beat:
            write_heartbeat(self.directory, self.role, self.me, "starting")
            self._next_beat = time.monotonic() + INTERVAL_S
        self._look_for_peer()
        if self._has_met_peer and (reason := self._watch.lost()):
            raise PeerLost(reason)

    def _look_for_peer(self) -> None:
        """Until the peer shows itself, see that its job still exists.

        Raises:
            PeerLost: it does not.
        """
        if self._has_met_peer or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + QUEUE_POLL_S
        self._has_met_peer = self.directory.heartbeat(self.peer) is not None
        if not self._has_met_peer and (reason := self._why_never()):
            raise PeerLost(reason)

    def _why_never(self) -> str | None:
        """Why the peer will never show itself; None while it may."""
        try:
            job = client.jobs().get(job_name(self.peer, self.launch_id))
        except (SlurmUnreachable, SlurmRefused, SetupError):
            return None  # not an answer; the time limit bounds the wait
        if job is None:
            waited_s = time.monotonic() - self._started
            return f"the {self.peer} has no job" if waited_s > SUBMISSION_GRACE_S else None
        if not job.has_ended or self.directory.heartbeat(self.peer):
            return None
        return f"job {job.id} of the {self.peer} is {job.state} and the role never ran"

    @contextmanager
    def _cause_recorded(self) -> Iterator[None]:
        """Say why before the role is stopped: what its peer notices of that is only the consequence."""
        try:
            yield
        except Interrupted as error:
            cause = f"{error} (cancelled, or near its time limit)"
            record_failure(self.directory, self.me, self.role, cause, told_to_stop=True)
            raise
        except StackError as error:
            record_failure(self.directory, self.me, self.role, str(error))
            raise

    @contextmanager
    def _peer_released(self) -> Iterator[None]:
        """What still waits in the queue would only start to find nobody. The loss of one node does not end a run."""
        try:
            yield
        finally:
            if self.role == "trainer" or self.directory.failure():
                with signals_ignored(), suppress(SlurmUnreachable, SlurmRefused, SetupError):
                    client.cancel([job_name(role, self.launch_id) for role in PEER], waiting=True)


if __name__ == "__main__":
    sys.exit(main())
