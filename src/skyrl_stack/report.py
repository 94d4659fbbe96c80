"""Report: what a run did, step by step, computed from nothing but the records in its run directory."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from skyrl_stack.run_directory import RunDirectory

WIDTH_OF_A_FILE = 160
STAGES = {"rollout": "gen", "log-prob": "old_log_prob", "update": "update_actor", "save": "save_checkpoint"}
"What a step's wall time is shown by, and verl's names of it."
EPISODE_STAGES = ("start", "model", "tools", "agent", "patch", "grade")


class EpisodeRow(BaseModel):
    """The part of an episode's record that the report needs (see `episode/record.py` for the whole)."""

    model_config = ConfigDict(frozen=True)

    id: str
    instance_id: str
    step: int
    outcome: str | None = None
    reward: float | None = None
    "None where an infrastructure failure left no reward, or the profile masks the outcome."
    masked: bool = False
    prompt_tokens: int = 0
    response_tokens: int = 0
    seconds: dict[str, float] = {}
    error: str | None = None


@dataclass(frozen=True)
class Step:
    """One GRPO update and the episodes that it learnt from."""

    number: int
    episodes: list[EpisodeRow]
    metrics: dict[str, float] = field(default_factory=dict)
    "verl's own."

    @property
    def rewards(self) -> list[float]:
        return [episode.reward for episode in self.episodes if episode.reward is not None]

    @property
    def reward_mean(self) -> float:
        return statistics.fmean(self.rewards) if self.rewards else float("nan")

    @property
    def reward_spread(self) -> float:
        """Standard deviation over the step's episodes."""
        return statistics.pstdev(self.rewards) if self.rewards else float("nan")

    @property
    def solved(self) -> int:
        return sum(reward > 0 for reward in self.rewards)

    @property
    def failures(self) -> int:
        """Episodes lost to infrastructure: no sample, and no reward. Not those that the profile masks."""
        return sum(episode.reward is None and not episode.masked for episode in self.episodes)

    @property
    def groups(self) -> tuple[int, int]:
        """Tasks whose episodes differ in reward (only they give a gradient), and all tasks."""
        rewards: dict[str, set[float]] = defaultdict(set)
        for episode in self.episodes:
            if episode.reward is not None:
                rewards[episode.instance_id].add(episode.reward)
        return sum(len(seen) > 1 for seen in rewards.values()), len(rewards)

    @property
    def tokens(self) -> int:
        return sum(episode.prompt_tokens + episode.response_tokens for episode in self.episodes)

    def seconds(self, stage: str) -> float:
        """Wall seconds that verl spent in `stage` of this step."""
        return self.metrics.get(f"timing_s/{stage}", float("nan"))

    def one_line(self) -> str:
        return (
            f"reward {self.reward_mean:.2f} ± {self.reward_spread:.2f}, solved {self.solved}/{len(self.rewards)}, "
            f"failed {self.failures}, grad norm {self.metrics.get('actor/grad_norm', float('nan')):.3g}, "
            f"{self.seconds('step'):.0f} s"
        )


def read_episodes(directory: RunDirectory) -> list[EpisodeRow]:
    """All episodes of a run, oldest step first; a file that is not an episode is left out."""
    rows = []
    for file in sorted(directory.episodes.glob("*.json")):
        try:
            rows.append(EpisodeRow.model_validate_json(file.read_bytes()))
        except ValidationError:
            continue
    return sorted(rows, key=lambda row: (row.step, row.instance_id, row.id))


def read_metrics(directory: RunDirectory) -> dict[int, dict[str, float]]:
    """verl's metrics by step; where a resumed launch did a step again, the later one counts."""
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for file in sorted(directory.metrics.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            step, values = _metrics_line(line)
            metrics[step] |= values
    return metrics


def _metrics_line(line: str) -> tuple[int, dict[str, float]]:
    """Step and numbers of one line; the last line of a killed run may be cut, and counts for nothing."""
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return 0, {}
    return record["step"], {key: value for key, value in record["data"].items() if isinstance(value, int | float)}


def read_steps(directory: RunDirectory) -> list[Step]:
    """The updates that were made, in order."""
    episodes: dict[int, list[EpisodeRow]] = defaultdict(list)
    for episode in read_episodes(directory):
        episodes[episode.step].append(episode)
    metrics = read_metrics(directory)
    updated = sorted(step for step, values in metrics.items() if "timing_s/step" in values)
    return [Step(step, episodes[step], metrics[step]) for step in updated]


def print_report(directory: RunDirectory, *, episodes: bool = False) -> None:
    """Print the table of steps, and a line per episode if asked for."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_A_FILE)
    console.print(steps_table(read_steps(directory)))
    if episodes:
        console.print(episodes_table(read_episodes(directory)))
    if failure := directory.failure():
        console.print(f"stopped by the {failure.role}: {failure.cause}", style="red", markup=False)


def steps_table(steps: Iterable[Step]) -> Table:
    """Reward, solved, failures, tokens, gradient and seconds by stage; a row a step."""
    table = _table(
        "reward: mean ± spread of the episodes; differ: tasks whose episodes differ in it; lost: to infrastructure",
        *("step", "reward", "solved", "differ", "lost", "tokens", "grad norm"),
        *(f"{stage} s" for stage in STAGES),
        "step s",
    )
    for step in steps:
        differing, groups = step.groups
        table.add_row(
            str(step.number),
            f"{step.reward_mean:.2f} ± {step.reward_spread:.2f}",
            f"{step.solved}/{len(step.rewards)}",
            f"{differing}/{groups}",
            str(step.failures),
            str(step.tokens),
            f"{step.metrics.get('actor/grad_norm', float('nan')):.3g}",
            *(f"{step.seconds(key):.1f}" for key in STAGES.values()),
            f"{step.seconds('step'):.1f}",
        )
    return table


def episodes_table(rows: Iterable[EpisodeRow]) -> Table:
    """A row an episode, with where its seconds went."""
    table = _table("tokens: prompt + response", "episode", "outcome", "reward", "tokens", *EPISODE_STAGES)
    for row in rows:
        table.add_row(
            row.id,
            row.error or row.outcome,
            "-" if row.reward is None else f"{row.reward:g}",
            f"{row.prompt_tokens}+{row.response_tokens}",
            *(f"{row.seconds.get(stage, 0):.1f}" for stage in EPISODE_STAGES),
        )
    return table


def _table(caption: str, *columns: str) -> Table:
    table = Table(box=SIMPLE, caption=caption, caption_justify="left", pad_edge=False)
    for column in columns:
        words = column in ("episode", "outcome")
        table.add_column(column, justify="left" if words else "right", no_wrap=True, overflow="ellipsis")
    return table
