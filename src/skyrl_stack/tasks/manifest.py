"""Manifest: what `tasks verify` found, a line a task, beside the task file. Training asks it before it starts.

    mine.jsonl                tasks
    mine.manifest.jsonl       for each task that was verified, in the order in which they were: accepted or quarantined

A line holds for the row that it was found for: the row's digest is in it, so a changed task is unverified.
"""

import getpass
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skyrl_stack import __version__
from skyrl_stack.errors import ProfileError
from skyrl_stack.tasks.task import Task, read_tasks


class Check(BaseModel):
    """One patch that was graded."""

    model_config = ConfigDict(frozen=True)

    name: str
    resolved: bool
    reason: str
    "That of the grade."
    seconds: float = 0.0


class Verification(BaseModel):
    """What was found of one task."""

    model_config = ConfigDict(frozen=True)

    instance_id: str
    digest: str
    "Of the row."
    accepted: bool
    why: str = ""
    "Why it is quarantined."
    checks: tuple[Check, ...]
    version: str = __version__
    by: str = Field(default_factory=getpass.getuser)
    at: float = Field(default_factory=time.time)


class Standing(NamedTuple):
    """How many tasks of a file are what."""

    accepted: int
    quarantined: int
    unverified: int


def digest_of(task: Task) -> str:
    return hashlib.sha256(task.model_dump_json().encode()).hexdigest()


def manifest_of(tasks_file: Path) -> Path:
    return tasks_file.with_suffix(".manifest.jsonl")


def read_manifest(tasks_file: Path) -> dict[str, Verification]:
    """By the digest of the row, the last line of each. A torn line, which a killed `verify` leaves, counts as none."""
    manifest = manifest_of(tasks_file)
    found: dict[str, Verification] = {}
    for line in manifest.read_text().splitlines() if manifest.is_file() else ():
        try:
            verification = Verification.model_validate_json(line)
        except ValidationError:
            continue
        found[verification.digest] = verification
    return found


def verified_tasks(tasks_file: Path) -> Iterator[tuple[Task, Verification | None]]:
    """Each task, with what was found of it.

    Raises:
        TaskError: the file is missing or malformed.
    """
    found = read_manifest(tasks_file)
    for task in read_tasks(tasks_file):
        yield task, found.get(digest_of(task)) if found else None


def standing(tasks_file: Path) -> Standing:
    """Raises TaskError as `verified_tasks`."""
    accepted = quarantined = unverified = 0
    for _, verification in verified_tasks(tasks_file):
        accepted += bool(verification and verification.accepted)
        quarantined += bool(verification and not verification.accepted)
        unverified += verification is None
    return Standing(accepted, quarantined, unverified)


def require_verified(path: Path, found: Standing, *, unverified: bool) -> None:
    """Refuse a task file that training must not start on.

    Raises:
        ProfileError: says what to do.
    """
    if found.unverified and not unverified:
        raise ProfileError(
            f"tasks.file = {path}: {found.unverified} of {sum(found)} tasks are not verified, so nobody knows what a "
            f"reward of theirs means: run `skyrl-stack tasks verify {path}`, or launch with --unverified"
        )
    if not found.accepted + found.unverified:
        raise ProfileError(f"tasks.file = {path}: no task to train on; {found.quarantined} are quarantined")


def trainable_tasks(path: Path, say: Callable[[str], None], *, unverified: bool) -> list[Task]:
    """The tasks of `path` that may be trained on: without those that are quarantined.

    Raises:
        TaskError: it is missing, or a row is not a task; names the line.
        ProfileError: as `require_verified`.
    """
    found = standing(path)
    require_verified(path, found, unverified=unverified)
    if found.quarantined:
        say(f"{path}: {found.quarantined} quarantined tasks left out")
    return [task for task, verification in verified_tasks(path) if not verification or verification.accepted]
