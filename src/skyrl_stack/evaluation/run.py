"""Run: K episodes of a model on each task, the very episodes and grades of training, without a trainer.

<directory>/                 a run directory, so `report`, `show` and people find episodes where they always are
├── subject.json             which model is evaluated
├── tasks.jsonl              on what
├── attempts.jsonl           a line for each episode that ended, with what the endpoint says that it cost
├── predictions-<i>.jsonl    the i-th patch of every task, as SWE-bench takes predictions
└── summary.json             the estimates
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from skyrl_stack.episode.episode import run_episode
from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import InfrastructureError, ProfileError, StackError
from skyrl_stack.evaluation.endpoint import Endpoint, open_client
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.profile import Profile
from skyrl_stack.records import publish, read_if_there
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.contract import SandboxProvider
from skyrl_stack.sandbox.providers import sandboxes_of
from skyrl_stack.tasks.task import Task, TaskError, read_tasks

Say = Callable[[str], None]
LOST_IN_A_ROW = 8
"Episodes lost to infrastructure one after the other, after which no more are begun."


class Subject(BaseModel):
    """The model that is evaluated. A server may move; a directory is that directory."""

    model_config = ConfigDict(frozen=True)

    name: str
    directory: str = ""


class Attempt(BaseModel):
    """One episode of an evaluation."""

    model_config = ConfigDict(frozen=True)

    instance_id: str
    repetition: int
    episode: str = ""
    "Its id; empty where it was lost to infrastructure."
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Evaluation:
    """An evaluation in its directory."""

    def __init__(self, directory: RunDirectory, subject: Subject) -> None:
        self.directory = directory
        self.model = subject.name
        self.attempts_file = directory.path / "attempts.jsonl"

    @classmethod
    def open(cls, path: Path, profile: Profile, tasks_file: Path, subject: Subject) -> "Evaluation":
        """A new one, or the one that is there, with what it has.

        Raises:
            ProfileError: the one that is there is of other tasks or of another model.
            TaskError: the task file is missing, malformed or empty.
        """
        directory = RunDirectory(path)
        given = "".join(f"{task.model_dump_json()}\n" for task in read_tasks(tasks_file))
        if not given:
            raise TaskError(f"{tasks_file}: no task in it")
        if directory.tasks_file.is_file() and directory.tasks_file.read_text() != given:
            raise ProfileError(f"{path}: an evaluation of other tasks is there; name another --out")
        subject_file = path / "subject.json"
        if (there := read_if_there(subject_file, Subject)) and there != subject:
            raise ProfileError(f"{path}: an evaluation of {there.directory or there.name} is there; name another --out")
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.fill(profile)
        directory.tasks_file.write_text(given)
        publish(subject_file, subject)
        return cls(directory, subject)

    def attempts(self) -> list[Attempt]:
        """Those that ended, the lost ones last tried included; a torn line counts as none."""
        found: dict[tuple[str, int], Attempt] = {}
        for line in self.attempts_file.read_text().splitlines() if self.attempts_file.is_file() else ():
            try:
                attempt = Attempt.model_validate_json(line)
            except ValidationError:
                continue
            found[attempt.instance_id, attempt.repetition] = attempt
        return list(found.values())

    def episode(self, attempt: Attempt) -> Episode:
        return Episode.model_validate_json(self.directory.episode_file(attempt.episode).read_bytes())

    async def run(self, endpoint: Endpoint, profile: Profile, *, repetitions: int, at_once: int, say: Say) -> None:
        """Play what is missing. An episode that infrastructure lost is played again by the next call.

        Raises:
            SetupError: an image or Podman is missing.
            InfrastructureError: too many episodes in a row were lost.
            ToolFailed: a tool of the agent cannot run.
        """
        tasks = list(read_tasks(self.directory.tasks_file))
        done = {(one.instance_id, one.repetition) for one in self.attempts() if not one.error}
        rest = [(task, i) for i in range(repetitions) for task in tasks if (task.instance_id, i) not in done]
        if not rest:
            return
        say(f"{len(rest)} of {len(tasks) * repetitions} episodes to play, {at_once} at once; in {self.directory.path}")
        await ensure_images((task for task, _ in rest), say, podman_socket=profile.runtime.podman_socket)
        provider = sandboxes_of(profile.runtime, secrets.token_hex(8), run_directory=str(self.directory.path))
        async with provider as sandboxes, open_client(endpoint) as http:
            await _Players(self, endpoint, profile, sandboxes, http, say).play(rest, at_once)

    def record(self, attempt: Attempt) -> None:
        text = self.attempts_file.read_bytes() if self.attempts_file.is_file() else b""
        with self.attempts_file.open("a") as file:
            file.write(("\n" if text and not text.endswith(b"\n") else "") + f"{attempt.model_dump_json()}\n")

    def write_predictions(self) -> list[Path]:
        """A file for each repetition, of those attempts that were not lost."""
        lines: dict[int, list[str]] = {}
        for attempt in sorted(self.attempts(), key=lambda one: one.instance_id):
            if not attempt.error:
                patch = self.episode(attempt).patch or ""
                prediction = {
                    "instance_id": attempt.instance_id,
                    "model_name_or_path": self.model,
                    "model_patch": patch,
                }
                lines.setdefault(attempt.repetition, []).append(f"{json.dumps(prediction)}\n")
        files = []
        for repetition, predictions in sorted(lines.items()):
            files.append(self.directory.path / f"predictions-{repetition}.jsonl")
            files[-1].write_text("".join(predictions))
        return files


class _Players:
    """What the episodes of one call share."""

    def __init__(
        self,
        evaluation: Evaluation,
        endpoint: Endpoint,
        profile: Profile,
        sandboxes: SandboxProvider,
        http: httpx.AsyncClient,
        say: Say,
    ) -> None:
        self.evaluation = evaluation
        self.endpoint = endpoint
        self.profile = profile
        self.sandboxes = sandboxes
        self.http = http
        self.say = say
        self.lost_in_a_row = 0

    async def play(self, rest: Sequence[tuple[Task, int]], at_once: int) -> None:
        places = asyncio.Semaphore(at_once)

        async def one(number: int, task: Task, repetition: int) -> None:
            async with places:
                if self.lost_in_a_row >= LOST_IN_A_ROW:
                    raise InfrastructureError(f"{self.lost_in_a_row} episodes in a row were lost, see above")
                what = await self._episode(task, repetition)
                self.say(f"{number}/{len(rest)} {task.instance_id} #{repetition}: {what}")

        try:
            async with asyncio.TaskGroup() as group:
                for number, (task, repetition) in enumerate(rest, 1):
                    group.create_task(one(number, task, repetition))
        except* StackError as errors:
            raise errors.exceptions[0] from None

    async def _episode(self, task: Task, repetition: int) -> str:
        policy = self.endpoint.policy(self.http)
        key = {"instance_id": task.instance_id, "repetition": repetition}
        try:
            episode = await run_episode(
                task,
                policy=policy,
                tokenizer=policy.tokenizer,
                sandboxes=self.sandboxes,
                profile=self.profile,
                directory=self.evaluation.directory,
                step=0,
                repetition=repetition,
            )
        except InfrastructureError as error:
            self.lost_in_a_row += 1
            self.evaluation.record(Attempt(**key, error=str(error)))
            return f"lost: {error}"
        self.lost_in_a_row = 0
        usage = policy.usage
        self.evaluation.record(
            Attempt(
                **key,
                episode=episode.id,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
            )
        )
        reason = episode.grade.reason if episode.grade else "not graded"
        return f"{episode.outcome}, {reason}, {episode.turns} turns"
