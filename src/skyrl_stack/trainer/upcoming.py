"""Upcoming: which tasks verl will take next, so that runtimes can have their images ready."""

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from skyrl_stack.records import Upcoming, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.tasks.task import read_tasks


class Announcer:
    """Tells the runtimes of a run, by a file of its directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = RunDirectory.open(directory)
        self._images = {task.instance_id: task.image for task in read_tasks(self._directory.tasks_file)}

    def announce(self, loader: StatefulDataLoader, tasks: int) -> None:
        """The next `tasks` tasks of `loader`, or what is left of its epoch: in a later one all have been there."""
        images = dict.fromkeys(self._images[name] for name in islice(upcoming(loader), tasks))
        launch_id = self._directory.launch().launch_id
        publish(self._directory.upcoming_file, Upcoming(launch_id=launch_id, images=tuple(images)))


def upcoming(loader: StatefulDataLoader) -> Iterator[str]:
    """The instance ids that `loader` has yet to give in this epoch, in order. It stays where it is."""
    one_dataset = {id(loader.dataset): loader.dataset}  # a copy of verl's has no rows
    ahead: Any = StatefulDataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
        sampler=copy.deepcopy(loader.sampler, one_dataset),
    )
    ahead.load_state_dict(loader.state_dict())
    for batch in ahead:
        yield from batch["instance_id"]
