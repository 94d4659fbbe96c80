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

from skyrl_stack.errors import GradingFailed, SetupError, StackError, attribute
from skyrl_stack.factory.obtain import fetch
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
        SetupError: Podman is missing, or the manifest cannot be written.
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
    manifest = _ready(manifest_of(file))
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as provider:
        verifier = Verifier(provider, outcome, manifest, say, repeats=repeats, timeout_s=timeout_s)
        await verifier.verify(rest, at_once)
    return outcome


class Verifier:
    """What the tasks of one call share."""

    def __init__(
        self, provider: PodmanSandboxes, outcome: Outcome, manifest: Path, say: Say, *, repeats: int, timeout_s: float
    ) -> None:
        self.provider = provider
        self.outcome = outcome
        self.manifest = manifest
        self.say = say
        self.repeats = repeats
        self.timeout_s = timeout_s

    async def verify(self, tasks: list[Task], at_once: int) -> None:
        """All of `tasks`, `at_once` at once."""
        places = asyncio.Semaphore(at_once)
        lacking = await self.provider.lacking_images(list(dict.fromkeys(task.image for task in tasks)))
        total = len(self.outcome.verifications) + len(tasks)

        async def one(task: Task) -> None:
            async with places:
                started = time.monotonic()
                said = await self._verify(task, lacking)
            done = len(self.outcome.verifications) + len(self.outcome.undecided)
            self.say(f"{done}/{total} {task.instance_id}: {said} ({time.monotonic() - started:.0f} s)")

        try:
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(one(task))
        except* OSError as errors:
            raise _unwritable(self.manifest, errors.exceptions[0]) from None

    async def _verify(self, task: Task, lacking: list[str]) -> str:
        """Write down what comes of a task; returns what to say of it."""
        try:
            if task.image in lacking:
                await fetch(task.image, self.say)
            with attribute(GradingFailed, "its checks failed"):
                found = await verify_task(
                    task, self.provider, repeats=self.repeats, timeout_s=self.timeout_s, limits=RuntimeSection()
                )
        except StackError as error:  # whatever it is, the other tasks have no part in it
            self.outcome.undecided[task.instance_id] = str(error)
            return f"undecided: {error}"
        with self.manifest.open("a") as file:
            file.write(f"{found.model_dump_json()}\n")
        self.outcome.verifications.append(found)
        return "accepted" if found.accepted else f"QUARANTINED: {found.why}"


def _ready(manifest: Path) -> Path:
    """The manifest, to be appended to. Half a line, which a process may have left that was killed, is ended."""
    try:
        with manifest.open("a+") as file:
            file.seek(0)
            if (text := file.read()) and not text.endswith("\n"):
                file.write("\n")
    except OSError as error:
        raise _unwritable(manifest, error) from error
    return manifest


def _unwritable(manifest: Path, error: BaseException) -> SetupError:
    why = error.strerror if isinstance(error, OSError) else error
    return SetupError(f"{manifest}: {why}; what is found is written beside the task file")
