"""verl's task runner and its trainers as they are, but for two things, by hooks that verl has for its own trainers:

on_train_begin, on_sample_begin   say which images the next steps will need, while this one is played
on_step_end                       leaves in order when time runs out: verl's trainers save every `save_freq` steps
                                  and know no time limit. It comes when a step is done and the rollout servers
                                  still sleep, which is where verl saves, too
"""

import time
from pathlib import Path
from typing import Any

from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo.v1 import PPOTrainer, PPOTrainerColocateAsync, PPOTrainerSync, trainer_base
from verl.utils.debug import marked_timer

from skyrl_stack.trainer.checkpoints import steps_done
from skyrl_stack.trainer.ending import Departure
from skyrl_stack.trainer.upcoming import Announcer


class _OfRun(PPOTrainer):
    """Tells runtimes what comes next, and asks `departure` after each step whether there is time for another."""

    departure: Departure

    def on_train_begin(self) -> None:
        self._announcer = Announcer(Path(self.config.trainer.v1.sampler.sampler_kwargs.run_directory))
        self._announce()
        super().on_train_begin()
        self._step_began = time.time()
        self._longest_step_s = 0.0

    def on_sample_begin(self) -> None:
        super().on_sample_begin()
        self._announce()  # the tasks of this step have been taken

    def _announce(self) -> None:
        # Of two steps, the nearer first: a group without a baseline is replaced by a task of the next.
        self._announcer.announce(self.train_dataloader, 2 * self.config.data.train_batch_size)

    def on_step_end(self) -> None:
        now = time.time()
        self._longest_step_s = max(self._longest_step_s, now - self._step_began)
        self._step_began = now
        what = self.departure.after_step(now, self._longest_step_s)
        if what != "go on" and steps_done(Path(self.config.trainer.default_local_dir)) < self.global_steps:
            with marked_timer("save_checkpoint", self.timing_raw):
                self._save_checkpoint()
        if what == "leave":
            self.departure.asked.touch()
            self.total_training_steps = self.global_steps  # verl's loop ends after this step, in order
        super().on_step_end()


class SyncTrainer(_OfRun, PPOTrainerSync):
    """verl's trainer that waits for all episodes of a step."""


class ColocateAsyncTrainer(_OfRun, PPOTrainerColocateAsync):
    """verl's trainer that interrupts episodes for its updates, on the same GPUs."""


_TaskRunnerV1: Any = TaskRunnerV1  # Ray's decorator hides the class, and says nothing of where


class TaskRunner(_TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner with the trainers above in the place of verl's."""

    def __init__(self, departure: Departure) -> None:
        super().__init__()
        _OfRun.departure = departure
        trainer_base.TRAINER_REGISTRY |= {"sync": SyncTrainer, "colocate_async": ColocateAsyncTrainer}

    def run(self, config: Any) -> None:
        """See verl; a method of this class, so that Ray offers it."""
        super().run(config)
