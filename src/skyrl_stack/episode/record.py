"""The record of an episode: what was asked, how it ended, what it was worth and where its time went."""

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from skyrl_stack.agent.events import Event
from skyrl_stack.agent.outcome import Outcome
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.grading.grade import Grade
from skyrl_stack.tasks.task import Task

Stage = Literal["start", "agent", "model", "tools", "patch", "grade"]


class Episode(BaseModel):
    """One rollout of one task, whole, in one file. It has a reward, or an error, or is masked by the profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    "Raised by a change that a reader has to know of."
    id: str
    instance_id: str
    problem_statement: str = ""
    step: int
    "Training step that the episode was made for."
    repetition: int
    "Index in the group of episodes of one task."
    started_at: float
    "Seconds since the epoch."
    outcome: Outcome | None = None
    "How the policy's part ended; None where it did not get that far."
    detail: str = ""
    "What there is to say about the outcome."
    masked: bool = False
    "Whether the profile takes no sample from this outcome."
    turns: int = 0
    "Turns that the policy sampled."
    prompt_tokens: int = 0
    "Of the first prompt."
    response_tokens: int = 0
    "All tokens after the prompt, those of the environment included."
    sampled_tokens: int = 0
    patch: str | None = None
    grade: Grade | None = None
    reward: float | None = None
    error: str | None = None
    "Type and message of what the episode died of; it has no reward then."
    seconds: dict[Stage, float]
    "By stage, without overlap: `agent` is OpenHands' own time."
    events: list[Event] = []
    "What was said and done, for people."
    trajectories: list[Trajectory] = []
    "What the trainer learns from, token by token. More than one where the history was told anew."


class Notes:
    """What is known of an episode that is under way."""

    def __init__(self, task: Task, *, step: int, repetition: int) -> None:
        self.id = episode_id(task.instance_id, step=step, repetition=repetition)
        self.seconds: dict[Stage, float] = {}
        self._facts: dict[str, Any] = {
            "id": self.id,
            "instance_id": task.instance_id,
            "problem_statement": task.problem_statement,
            "step": step,
            "repetition": repetition,
            "started_at": time.time(),
        }

    def add(self, **facts: Any) -> None:
        """Fields of `Episode` that have become known."""
        self._facts |= facts

    def add_missing(self, **facts: Any) -> None:
        """Fields that count where nothing is known yet."""
        self._facts = facts | self._facts

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """The time of the block counts as that of `stage`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started

    def episode(self) -> Episode:
        """The record, as far as it goes."""
        return Episode(**self._facts, seconds=self.seconds)


def episode_id(instance_id: str, *, step: int, repetition: int) -> str:
    """A name for the episode's files, unlike that of any other: a step can be repeated after a resume."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", instance_id)
    return f"{step:05d}-{name}-{repetition}-{secrets.token_hex(3)}"
