"""GRPO groups that lost episodes to infrastructure: what verl's replay buffers do with them.

An episode that raised leaves no trajectory, so it can be neither rewarded nor averaged over. Its group

    keeps two or more trajectories    is trained on: they are compared with each other alone
    keeps one or none                 is dropped and a fresh task takes its place: nothing is left to compare with,
                                      and verl would take the one reward as an advantage as it stands

and `trainer.max_consecutive_failures` episodes lost in a row stop the run, so that a dead server cannot
refill for ever. An episode that the profile masks leaves no trajectory either, but is not lost. One that died of
what is no infrastructure, as a tool that cannot run, has left the run's failure behind, and stops it at once.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from skyrl_stack.episode.record import Episode
from skyrl_stack.errors import TrainingStopped
from skyrl_stack.run_directory import RunDirectory

POLL_S = 0.25


class _Groups(ReplayBuffer):
    """What both of verl's buffers do, as `trainer.v1.sampler.custom_sampler`."""

    def __init__(self, *, sampler_kwargs: Any, **kwargs: Any) -> None:
        super().__init__(sampler_kwargs=sampler_kwargs, poll_interval=POLL_S, **kwargs)
        self.directory = RunDirectory(Path(sampler_kwargs.run_directory))
        self.trainer = self.directory.profile().trainer
        self.lost_in_a_row = 0
        self._counted: set[str] = set()

    def _terminal_eviction_reasons(
        self, global_steps: int, partition_id: str
    ) -> tuple[set[str], set[str], set[str], Counter]:
        stale, filtered, failed, counts = super()._terminal_eviction_reasons(global_steps, partition_id)
        if partition_id == "train":
            failed = self._without_baseline()
        return stale, filtered, failed, counts

    def _without_baseline(self) -> set[str]:
        """Ended groups with nothing to compare.

        Raises:
            TrainingStopped: too many episodes were lost in a row, or one said that no other would fare better.
        """
        sessions = {tuple(key.split("_")[:2]) for key in self.partitions["train"]}  # of one or more trajectories each
        kept = Counter(group for group, _ in sessions)
        ended = self.finished_keys["train"] | self.failure_keys["train"]
        if self.failure_keys["train"] - self._counted and (failure := self.directory.failure()):
            raise TrainingStopped(failure.cause)
        for group in ended - self._counted:
            self.lost_in_a_row = 0 if kept[group] else self.lost_in_a_row + self.trainer.rollouts_per_task
        self._counted = ended
        if self.lost_in_a_row >= self.trainer.max_consecutive_failures:
            errors = [episode.error for episode in self._newest(self.trainer.max_consecutive_failures)]
            if None not in errors:
                last = errors[0] if errors else f"see {self.directory.log('trainer')}"
                raise TrainingStopped(f"{self.lost_in_a_row} episodes in a row failed; the last: {last}")
        return {group for group in ended if kept[group] < 2}

    def _newest(self, count: int) -> list[Episode]:
        """The last episodes of this launch, the newest first."""
        newest_first = sorted(self.directory.episodes.glob("*.json"), key=lambda file: -file.stat().st_mtime)
        started = self.directory.launch().started_at
        episodes = (Episode.model_validate_json(file.read_bytes()) for file in newest_first[:count])
        return [episode for episode in episodes if episode.started_at >= started]


class GroupBuffer(_Groups):
    """For the trainer that waits for all episodes of a step: `trainer.mode = "sync"`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(sync_refill_failed_groups=True, gen_batch_size=1, **kwargs)


class AsyncGroupBuffer(_Groups, ReplayBufferAsync):
    """For the trainer that takes the groups that ended first: `trainer.mode = "colocate_async"`."""
