"""Records: what the launcher and the roles tell each other in files of the run directory, and how those are written.

A record appears by write-then-rename and has one writer, so what can be seen is complete.
"""

import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skyrl_stack.errors import RunDirectoryError


class Record(BaseModel):
    """Base of what is written into a run directory."""

    model_config = ConfigDict(frozen=True)


class Launch(Record):
    """One launch of a run directory; a resumed run has had several."""

    launch_id: str = Field(default_factory=lambda: secrets.token_hex(8))
    pid: int = Field(default_factory=os.getpid)
    host: str = Field(default_factory=lambda: os.uname().nodename)
    started_at: float = Field(default_factory=time.time)
    profile_digest: str = ""
    "SHA-256 of the profile's file, by which a node sees whether it sees this launch's."


class Incarnation(Record):
    """One process of a role, as its records name it."""

    launch_id: str
    instance: int = Field(default=0, ge=0)
    "Which of the role's processes; the trainer has one."
    restart: int = Field(default=0, ge=0)
    "How often Slurm has started this instance again; the job keeps its id."

    @classmethod
    def here(cls, launch_id: str) -> "Incarnation":
        """Of this process: what Slurm says of its job, or the first and only one."""
        instance, restart = (int(os.environ.get(name, "0")) for name in ("SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"))
        return Incarnation(launch_id=launch_id, instance=instance, restart=restart)


class Endpoint(Incarnation):
    """Where an instance answers. Keyed by the launch id: an earlier launch's endpoint is not an endpoint."""

    url: str
    token: str = Field(repr=False)
    isolation: str = ""
    "Of a runtime: what keeps its sandboxes apart from the node."
    client: str | None = None
    "What we call ourselves there, where the runtime is one of another launch."


class Load(Record):
    """What a runtime has to do."""

    capacity: int
    "Sandboxes that may be alive at once."
    alive: int
    waiting: int
    "Starts that wait for a place."


class Upcoming(Record):
    """What the trainer's next steps will need, the nearest first, for runtimes to have ready."""

    launch_id: str
    images: tuple[str, ...]


class Heartbeat(Incarnation):
    """An instance's last sign of life."""

    at: float = Field(default_factory=time.time)
    "Seconds since the epoch, by the clock of its node: for people. Silence is judged by `presence.Watch`."
    state: Literal["starting", "ready", "left", "ended", "failed"] = "ready"
    "`left`: its process is gone, and its job may be back."
    host: str = Field(default_factory=lambda: os.uname().nodename)
    load: Load | None = None
    "Of a runtime that is ready."

    @property
    def is_alive(self) -> bool:
        return self.state in ("starting", "ready")

    @property
    def is_over(self) -> bool:
        """Whether it has said that it will not be back."""
        return self.state in ("ended", "failed")


class Failure(Record):
    """Why a run stopped."""

    launch_id: str
    role: str
    cause: str
    told_to_stop: bool = False
    "From outside: by a person, or by Slurm near a time limit."


def publish(path: Path, record: BaseModel, *, mode: int = 0o644) -> None:
    """Write `record` as JSON by rename: a file that can be seen is complete, and never wider than `mode`."""
    write_atomic(path, record.model_dump_json(indent=1).encode(), mode=mode)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a draft beside `path`, flush it to disk, rename it into place."""
    with draft_of(path, mode=mode) as draft:
        draft.write(data)


@contextmanager
def draft_of(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when the block has ended well, and is gone otherwise."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read[R: BaseModel](path: Path, kind: type[R]) -> R:
    """The record at `path`.

    Raises:
        RunDirectoryError: it is missing or damaged.
    """
    if record := read_if_there(path, kind):
        return record
    raise RunDirectoryError(f"{path}: missing")


def read_if_there[R: BaseModel](path: Path, kind: type[R]) -> R | None:
    """The record at `path`, None where there is none, or no longer: a file replaced under an NFS client is stale."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    except (ValidationError, json.JSONDecodeError) as error:
        raise RunDirectoryError(f"{path}: damaged: {str(error).splitlines()[0]}") from error
