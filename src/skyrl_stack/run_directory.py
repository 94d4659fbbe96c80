"""Run directory: the one place where the launcher, the runtime and the trainer meet.

    <root>/<timestamp>_<name>/
    ├── profile.json              launcher   resolved profile, written first
    ├── launch.json               launcher   launch id and pid of the launch that owns the directory
    ├── endpoints/<role>-<instance>.json     each role  address and token; mode 0600; removed at its end
    ├── heartbeats/<role>-<instance>.json    each role  its last sign of life, its state and its load
    ├── tasks.jsonl               launcher   the tasks of this run
    ├── upcoming.json             trainer    the images that its next steps will need
    ├── model/                    launcher   link to the policy that training starts from
    ├── episodes/<id>.json        trainer    one finished record each, tokens and events included
    ├── metrics/<start>.jsonl     trainer    verl's own metrics, a line a step; a file for each start of the trainer
    ├── checkpoints/              trainer    verl's own layout
    ├── verl/                     trainer    what verl is given (rows, agent loop), and W&B's files
    ├── api_key                   launcher   of a runtime that serves other launches; mode 0600
    ├── failure.json              any role   why the run stopped, if it did not end well
    ├── .spare                    launcher   room for failure.json on a full file system
    ├── slurm/<role>.sbatch       launcher   what was submitted, byte for byte; mode 0600
    └── logs/                                what the roles printed
        ├── <role>.log            launcher   on one machine
        └── {runtime,training}_<job>.{out,err}    Slurm

Every path is made here. A file appears by write-then-rename, so what can be seen is complete, and has one
writer. That holds on NFS and Lustre: no locks, no sockets, and a reader that waits has a deadline.
The runtime may run on several nodes; each is an *instance* of the role, with files of its own.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from skyrl_stack.errors import PeerLost, RunDirectoryError
from skyrl_stack.profile import Profile, Role
from skyrl_stack.records import (
    Endpoint,
    Failure,
    Heartbeat,
    Incarnation,
    Launch,
    Upcoming,
    publish,
    read,
    read_if_there,
    write_atomic,
)

SPARE_BYTES = 256 << 10
SEEN_WITHIN_S = 90.0
"NFS clients keep attributes of a directory for up to 60 s: acdirmax in nfs(5)."
JOB_LOGS: Mapping[Role, str] = {"runtime": "runtime", "trainer": "training"}
"First part of the names of a job's logs."


class RunDirectory:
    """All paths of one run, and the records in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.profile_file = self.path / "profile.json"
        self.launch_file = self.path / "launch.json"
        self.tasks_file = self.path / "tasks.jsonl"
        self.upcoming_file = self.path / "upcoming.json"
        self.model = self.path / "model"
        self.episodes = self.path / "episodes"
        self.metrics = self.path / "metrics"
        self.checkpoints = self.path / "checkpoints"
        self.verl = self.path / "verl"
        self.api_key_file = self.path / "api_key"
        self.failure_file = self.path / "failure.json"
        self.spare = self.path / ".spare"
        self.logs = self.path / "logs"

    @classmethod
    def create(cls, root: Path, profile: Profile) -> "RunDirectory":
        """Make a new run directory below `root`, with the resolved profile in it.

        Raises:
            RunDirectoryError: `root` cannot be written.
        """
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for attempt in range(100):
            suffix = f"-{attempt}" if attempt else ""
            directory = cls(root / f"{stamp}_{profile.name}{suffix}")
            try:
                directory.path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunDirectoryError(f"{root}: cannot make a run directory: {error.strerror}") from error
            directory.fill(profile)
            return directory
        raise RunDirectoryError(f"{root}: a hundred runs in one second; try again")

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run directory.

        Raises:
            RunDirectoryError: `path` is not a run directory.
        """
        directory = cls(path)
        if not directory.profile_file.is_file():
            raise RunDirectoryError(f"{path}: not a run directory (it has no profile.json)")
        return directory

    @classmethod
    def latest(cls, root: Path = Path(".skyrl_jobs"), name: str | None = None) -> "RunDirectory":
        """The newest run below `root`, of profile `name` if that is given.

        Raises:
            RunDirectoryError: there is none.
        """
        runs = [cls(file.parent) for file in sorted(root.glob("*/profile.json"))]
        runs = [run for run in runs if name is None or run.profile().name == name]
        if not runs:
            raise RunDirectoryError(f"{root}: no run{f' of profile {name}' if name else ''} there; launch one first")
        return runs[-1]

    def fill(self, profile: Profile) -> None:
        """Write the profile, and make the directories that roles write to."""
        for directory in (self.episodes, self.metrics, self.checkpoints, self.verl, self.logs):
            directory.mkdir(exist_ok=True)
        for private in (self.path / "endpoints", self.path / "heartbeats"):
            private.mkdir(mode=0o700, exist_ok=True)
        publish(self.profile_file, profile)

    def keep_spare(self) -> None:
        """Keep some room, so that on a full file system the cause can still be recorded."""
        if not self.spare.is_file():
            write_atomic(self.spare, bytes(SPARE_BYTES))

    def hand_over(self, launch: Launch, profile: Profile) -> None:
        """Let `launch` own the directory from now on, with this profile."""
        publish(self.profile_file, profile)
        publish(self.launch_file, launch.model_copy(update={"profile_digest": self._profile_digest()}))

    def await_launch(self, launch_id: str, timeout_s: float = SEEN_WITHIN_S, poll_s: float = 0.5) -> None:
        """Wait until this node sees what `launch_id` was handed: a shared file system may show none or old files.

        Raises:
            RunDirectoryError: it is no run directory, or belongs to another launch.
        """
        deadline = time.monotonic() + timeout_s
        while not self._shows(launch_id):
            if time.monotonic() > deadline:
                RunDirectory.open(self.path)
                raise RunDirectoryError(f"{self.path}: belongs to another launch than the one of this job")
            time.sleep(poll_s)

    def _shows(self, launch_id: str) -> bool:
        seen = read_if_there(self.launch_file, Launch)
        if seen is None or seen.launch_id != launch_id or not self.profile_file.is_file():
            return False
        return seen.profile_digest in ("", self._profile_digest())

    def _profile_digest(self) -> str:
        return hashlib.sha256(self.profile_file.read_bytes()).hexdigest()

    def keep_api_key(self) -> None:
        """Make the key by which other launches use the runtimes of this run; it stays while the directory does."""
        if not self.api_key_file.is_file():
            write_atomic(self.api_key_file, secrets.token_urlsafe(32).encode(), mode=0o600)

    def profile(self) -> Profile:
        """The resolved profile."""
        return read(self.profile_file, Profile)

    def launch(self) -> Launch:
        """The launch that owns the directory now."""
        return read(self.launch_file, Launch)

    @property
    def metrics_file(self) -> Path:
        """Metrics of this start of the trainer; verl's logger truncates what it opens, hence a file each."""
        launch = self.launch()
        restart = Incarnation.here(launch.launch_id).restart
        return self.metrics / f"{launch.started_at:.0f}-{launch.launch_id}-{restart:03}.jsonl"

    def log(self, role: Role) -> Path:
        return self.logs / f"{role}.log"

    def role_logs(self, role: Role) -> list[Path]:
        """What there is of `role`'s logs, the newest last."""
        logs = [*self.logs.glob(f"{JOB_LOGS[role]}_*.*"), *self.logs.glob(self.log(role).name)]
        return sorted(logs, key=lambda log: log.stat().st_mtime)

    def batch_script(self, role: Role) -> Path:
        return self.path / "slurm" / f"{role}.sbatch"

    def endpoint_file(self, role: Role, instance: int = 0) -> Path:
        return self.path / "endpoints" / f"{role}-{instance}.json"

    def heartbeat_file(self, role: Role, instance: int = 0) -> Path:
        return self.path / "heartbeats" / f"{role}-{instance}.json"

    def episode_file(self, episode_id: str) -> Path:
        return self.episodes / f"{episode_id}.json"

    def failure(self) -> Failure | None:
        """The failure of the current launch, if it has one."""
        failure = read_if_there(self.failure_file, Failure)
        return failure if failure and failure.launch_id == self.launch().launch_id else None

    def upcoming(self) -> tuple[str, ...]:
        """The images that the next steps of the current launch will need, as far as its trainer has said."""
        upcoming = read_if_there(self.upcoming_file, Upcoming)
        return upcoming.images if upcoming and upcoming.launch_id == self.launch().launch_id else ()

    def endpoints(self, role: Role) -> dict[int, Endpoint]:
        """By instance: where `role` answers in the current launch."""
        return self._of_launch(self.path / "endpoints", role, Endpoint)

    def heartbeats(self, role: Role) -> dict[int, Heartbeat]:
        """By instance: the last heartbeat of `role` in the current launch."""
        return self._of_launch(self.path / "heartbeats", role, Heartbeat)

    def endpoint(self, role: Role) -> Endpoint | None:
        """The first endpoint of `role`, if any."""
        return next(iter(self.endpoints(role).values()), None)

    def heartbeat(self, role: Role) -> Heartbeat | None:
        """The heartbeat that speaks for all of `role`: of the instance that got furthest and is not over."""
        rank = ("failed", "ended", "left", "starting", "ready").index
        heartbeats = self.heartbeats(role).values()
        return max(heartbeats, key=lambda heartbeat: (rank(heartbeat.state), heartbeat.at), default=None)

    def await_endpoint(self, role: Role, timeout_s: float, poll_s: float = 0.1) -> Endpoint:
        """Wait until an instance of `role` has published its endpoint.

        Raises:
            PeerLost: all failed, or the deadline passed; names the directory.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if endpoint := self.endpoint(role):
                return endpoint
            heartbeat = self.heartbeat(role)
            if heartbeat and heartbeat.is_over:
                raise PeerLost(f"the {role} {heartbeat.state} before it was ready; see {self.logs}")
            time.sleep(poll_s)
        raise PeerLost(f"{self.path / 'endpoints'}: the {role} did not appear within {timeout_s:.0f} s")

    def _of_launch[R: Incarnation](self, folder: Path, role: Role, kind: type[R]) -> dict[int, R]:
        launch_id, found = self.launch().launch_id, dict[int, R]()
        for file in sorted(folder.glob(f"{role}-*.json")):
            record = read_if_there(file, kind)
            if record and record.launch_id == launch_id:
                found[record.instance] = record
        return dict(sorted(found.items()))
