"""Verify: takes a task file through its checks, several tasks at once, and goes on where it was stopped.

task file ─▶ images ─▶ gold = 1, no-op = 0, every tamper = 0 ─▶ a line of the manifest: accepted or quarantined
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from skyrl_stack.errors import GradingFailed, SetupError, StackError, attribute
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.manifest import Verification, digest_of, manifest_of, read_manifest
from skyrl_stack.tasks.task import Task, TaskError, read_tasks
from skyrl_stack.verification.checks import verify_task

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a task file."""

    verifications: list[Verification] = field(default_factory=list)
    undecided: dict[str, str] = field(default_factory=dict)
    "Why it could not be said, by task: these are in no manifest, and a second call tries them again."

    def lines(self) -> Iterator[str]:
        accepted = sum(verification.accepted for verification in self.verifications)
        yield f"{accepted} accepted, {len(self.verifications) - accepted} quarantined, {len(self.undecided)} undecided"
        checks: Counter[tuple[str, bool]] = Counter(
            (check.name, check.resolved) for verification in self.verifications for check in verification.checks
        )
        for name in dict.fromkeys(name for name, _ in checks):
            yield f"  {name:16} resolved {checks[name, True]}, not {checks[name, False]}"
        for verification in self.verifications:
            if not verification.accepted:
                yield f"quarantined: {verification.instance_id}: {verification.why}"
        for name, why in self.undecided.items():
            yield f"undecided: {name}: {why}"


async def verify_tasks(file: Path, *, repeats: int, at_once: int, timeout_s: float, say: Say) -> Outcome:
    """Verify what is not verified yet; each task's line is written when the task is done. An error ends its task alone.

    Raises:
        TaskError: the file is missing, malformed or empty.
        SetupError: an image or Podman is missing, or the manifest cannot be written.
    """
    tasks = list(read_tasks(file))
    if not tasks:
        raise TaskError(f"{file}: no task in it")
    known = read_manifest(file)
    outcome = Outcome([known[digest] for task in tasks if (digest := digest_of(task)) in known])
    rest = [task for task in tasks if digest_of(task) not in known]
    if not rest:
        return outcome
    say(f"{len(rest)} of {len(tasks)} tasks to verify, {at_once} at once")
    limits = RuntimeSection()
    places = asyncio.Semaphore(at_once)
    provider = PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()])
    with _appending(manifest_of(file)) as manifest:
        await ensure_images(rest, say)

        async def one(task: Task) -> None:
            async with places:
                started = time.monotonic()
                try:
                    with attribute(GradingFailed, "its checks failed"):
                        found = await verify_task(task, provider, repeats=repeats, timeout_s=timeout_s, limits=limits)
                except StackError as error:  # whatever it is, the other tasks have no part in it
                    outcome.undecided[task.instance_id] = str(error)
                    say(f"{task.instance_id}: undecided: {error}")
                    return
            manifest.write(f"{found.model_dump_json()}\n")
            manifest.flush()
            outcome.verifications.append(found)
            done = len(outcome.verifications) + len(outcome.undecided)
            word = "accepted" if found.accepted else f"QUARANTINED: {found.why}"
            say(f"{done}/{len(tasks)} {task.instance_id}: {word} ({time.monotonic() - started:.0f} s)")

        async with provider, asyncio.TaskGroup() as group:
            for task in rest:
                group.create_task(one(task))
    return outcome


def _appending(manifest: Path) -> TextIO:
    """The manifest, to be written to. Half a line, which a process may have left that was killed, is ended."""
    try:
        file = manifest.open("a+")
    except OSError as error:
        raise SetupError(f"{manifest}: {error.strerror}; what is found is written beside the task file") from error
    file.seek(0)
    if (text := file.read()) and not text.endswith("\n"):
        file.write("\n")
    return file
