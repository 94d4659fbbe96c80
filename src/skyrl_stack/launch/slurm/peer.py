"""The other role, as a role's job sees it: by heartbeats, and where those say nothing, by the queue.

    it lives                      nothing is asked
    it has not appeared yet       its job must exist; it may wait in the queue for days
    it left, or fell silent       it may be back (`Profile.goes_on`): its job must exist, and is waited for `run.hold_s`

Slurm is asked rarely, and no answer is not an answer.
"""

import time

from skyrl_stack.errors import PeerLost, SetupError, SlurmRefused, SlurmUnreachable, StackError
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.jobs import Job
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.presence import Watch
from skyrl_stack.run_directory import Role, RunDirectory

QUEUE_POLL_S = 20.0
SUBMISSION_GRACE_S = 120.0
"The runtime's job can start before the launcher has submitted the trainer's."


class GoesBack(StackError):
    """This job is to wait in the queue again, behind job `behind` if that is given."""

    def __init__(self, reason: str, behind: str | None = None) -> None:
        super().__init__(reason)
        self.behind = behind


class Peer:
    """The other role of the launch. To be looked at every few seconds."""

    def __init__(self, directory: RunDirectory, role: Role, launch_id: str) -> None:
        profile = directory.profile()
        self.directory = directory
        self.role: Role = role
        self._name = job_name(role, launch_id)
        self._is_of_launch = profile.is_coupled
        self._may_return = profile.goes_on
        # Until both have met, which takes as long as Slurm needs to start them, there is nothing to hold.
        self._patience_s = max(profile.run.start_timeout_s, profile.run.hold_s)
        self._hold_s = profile.run.hold_s
        self._watch = Watch(directory, role, profile.run.peer_timeout_s, may_return=self._may_return)
        self._started = time.monotonic()
        self._next_question = self._started + QUEUE_POLL_S
        self._away_since: float | None = None
        self._ended_before = False

    def require_alive(self) -> None:
        """As `look`, for a role that does not run yet, and so does not watch the other by itself."""
        if reason := self._watch.lost():
            raise PeerLost(reason)
        self.look()

    def look(self) -> None:
        """See whether it is there, or may be back.

        Raises:
            PeerLost: it will not be back.
            GoesBack: it may be back, but not soon.
        """
        if not self._is_of_launch:  # a runtime of another launch is the trainer's own business
            return
        was_there = bool(self.directory.heartbeats(self.role))
        if living := self._watch.living():
            self._patience_s = self._hold_s
        if living or (was_there and not self._may_return):
            self._away_since, self._ended_before = None, False
            return
        now = time.monotonic()
        if was_there and self._away_since is None:
            self._away_since = now
        hold_is_over = self._away_since is not None and now > self._away_since + self._patience_s
        if now > self._next_question or hold_is_over:
            self._next_question = now + QUEUE_POLL_S
            self._ask(was_there=was_there, hold_is_over=hold_is_over)

    def _ask(self, *, was_there: bool, hold_is_over: bool) -> None:
        try:
            job = client.jobs().get(self._name)
        except (SlurmUnreachable, SlurmRefused, SetupError):
            return
        if reason := self._why_never(job, was_there=was_there):
            raise PeerLost(reason)
        if hold_is_over and job and not job.has_ended:
            reason = f"the {self.role} has been away for {self._patience_s:.0f} s"
            raise GoesBack(reason, behind=job.id)

    def _why_never(self, job: Job | None, *, was_there: bool) -> str | None:
        """Why it will not show itself (again); None while it may."""
        if job is None:
            waited_s = time.monotonic() - self._started
            return f"the {self.role} has no job" if waited_s > SUBMISSION_GRACE_S else None
        if not was_there:
            return f"job {job.id} of the {self.role} is {job.state} and the role never ran" if job.has_ended else None
        ended_before, self._ended_before = self._ended_before, job.has_ended
        # Of a job that it is about to start again, Slurm says for a moment that it has ended.
        return f"job {job.id} of the {self.role} is {job.state}" if job.has_ended and ended_before else None
