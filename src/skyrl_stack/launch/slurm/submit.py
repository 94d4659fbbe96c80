"""Slurm launch: two jobs that find each other in the run directory, submitted together or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import join

from skyrl_stack.errors import RunDirectoryError, SlurmRefused, StackError
from skyrl_stack.launch.roles import signals_ignored, signals_raise
from skyrl_stack.launch.runs import claim, look
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.render import job_name, render
from skyrl_stack.profile import Profile, override_profile
from skyrl_stack.records import Launch, write_atomic
from skyrl_stack.run_directory import Role, RunDirectory
from skyrl_stack.site import SlurmLauncher

Say = Callable[[str], None]


@dataclass
class SlurmLaunch:
    """One launch of one run directory as a Slurm job for each role."""

    directory: RunDirectory
    profile: Profile
    launcher: SlurmLauncher
    say: Say
    resume: bool = False
    launch: Launch = field(default_factory=Launch)
    _in_queue: list[Role] = field(default_factory=list)

    def run(self) -> None:
        """Submit the jobs and return.

        Raises:
            SlurmRefused: one was refused; none is left in the queue.
            StackError: see the line.
        """
        self._write()
        with signals_raise():
            try:
                after: list[str] = []
                for role in self.profile.roles:
                    after = self._starts(role, self._submit(role, after=after))
            except BaseException as error:
                outcome = self._take_back()
                if isinstance(error, StackError):
                    raise type(error)(f"{error}{outcome}") from error
                raise

    def rehearse(self) -> None:
        """Write what would be submitted, and print it."""
        self._write()
        for role in self.profile.roles:
            script = self.directory.batch_script(role)
            self.say(f"# {script}\n{script.read_text()}")
        after: list[str] = []
        for role in self.profile.roles:
            script, tasks = self.directory.batch_script(role), self._tasks(role)
            self.say(join(client.submit_command(script, self.directory.path, after=after, tasks=tasks)))
            after = self._starts(role, f"{role.upper()}_JOB_ID")

    def _write(self) -> None:
        claim(self.directory, self.launch, self.profile)
        self.directory.batch_script("runtime").parent.mkdir(exist_ok=True)
        for role in self.profile.roles:
            text = render(
                role,
                self.launcher,
                self.profile.run,
                launch_id=self.launch.launch_id,
                run_directory=self.directory.path,
                workdir=Path.cwd(),
                resume=self.resume,
            )
            # Its environment may name a proxy with a password.
            write_atomic(self.directory.batch_script(role), text.encode(), mode=0o600)

    def _tasks(self, role: Role) -> range | None:
        """The runtime's nodes are jobs of their own: each starts, is lost and is cancelled by itself."""
        nodes = self.launcher.runtime.nodes
        return range(nodes) if role == "runtime" and nodes > 1 else None

    def _starts(self, role: Role, job_id: str) -> list[str]:
        """The jobs of `role`, of which the first to start lets the next role start."""
        tasks = self._tasks(role)
        return [f"{job_id}_{task}" for task in tasks] if tasks else [job_id]

    def _submit(self, role: Role, after: Sequence[str] = ()) -> str:
        self._in_queue.append(role)  # until it is known that it is not
        try:
            script, tasks = self.directory.batch_script(role), self._tasks(role)
            job_id = client.submit(script, self.directory.path, after=after, tasks=tasks)
        except SlurmRefused as error:
            self._in_queue.remove(role)
            raise SlurmRefused(f"the {role}'s job was refused: {error}") from error
        job = self.launcher.job(role)
        nodes = f" on {job.nodes} nodes" if job.nodes > 1 else ""
        self.say(f"{role}: job {job_id} in partition {job.partition}{nodes}, time limit {job.time_limit}")
        return job_id

    def _take_back(self) -> str:
        """Cancel what was submitted, or may have been; returns what to add to the error's line."""
        if not self._in_queue:
            return ""
        roles = " and ".join(self._in_queue)
        with signals_ignored():
            try:
                client.cancel([job_name(role, self.launch.launch_id) for role in self._in_queue])
            except StackError as error:
                return f"; what was submitted for {roles} could not be cancelled ({error}): see squeue --me"
        return f"; what was submitted for {roles} is cancelled"


def join_run(directory: RunDirectory, nodes: int, say: Say) -> None:
    """Give a run that is under way more nodes for its runtime; its `launcher.runtime.nodes` grows by as many.

    Raises:
        RunDirectoryError: the run is over, or not on Slurm.
        SlurmRefused: no node was added.
    """
    run = look([directory])[0]
    launcher = run.profile.launcher
    if not isinstance(launcher, SlurmLauncher) or run.is_over:
        state = "is local" if not isinstance(launcher, SlurmLauncher) else f"is {run.state}"
        raise RunDirectoryError(f"{directory.path}: nodes can join a run on Slurm while it lasts, and this one {state}")
    had = launcher.runtime.nodes
    more = range(had, had + nodes)
    job_id = client.submit(directory.batch_script("runtime"), directory.path, tasks=more)
    directory.hand_over(directory.launch(), override_profile(run.profile, [f"launcher.runtime.nodes={had + nodes}"]))
    say(f"runtime: job {job_id}_[{more[0]}-{more[-1]}] in partition {launcher.runtime.partition}")
