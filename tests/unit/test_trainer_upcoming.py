"""What is announced is what verl takes next."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from skyrl_stack.profile import Profile
from skyrl_stack.records import Launch, publish
from skyrl_stack.run_directory import RunDirectory
from toys import toy_task

pytest.importorskip("verl")

NAMES = [f"task-{number}" for number in range(10)]


def loader(*, shuffle: bool, batch_size: int = 1) -> Any:
    """As verl makes it."""
    from omegaconf import OmegaConf
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.trainer.ppo.utils import create_rl_sampler
    from verl.utils.dataset.rl_dataset import collate_fn

    rows: Any = [{"instance_id": name} for name in NAMES]
    sampler = create_rl_sampler(OmegaConf.create({"shuffle": shuffle, "seed": 3}), rows)
    return StatefulDataLoader(rows, batch_size=batch_size, drop_last=True, collate_fn=collate_fn, sampler=sampler)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_comes_next_is_known_and_still_comes(shuffle: bool, batch_size: int) -> None:
    from skyrl_stack.trainer.upcoming import upcoming

    looked_at, plain = loader(shuffle=shuffle, batch_size=batch_size), loader(shuffle=shuffle, batch_size=batch_size)
    for _ in range(2):  # the second epoch is in another order
        expected = [name for batch in plain for name in batch["instance_id"]]
        assert sorted(expected) == sorted(NAMES)
        came: list[str] = []
        for batch in looked_at:
            came.extend(batch["instance_id"])
            assert list(upcoming(looked_at)) == expected[len(came) :]
        assert came == expected


def test_before_the_first_task_all_are_to_come() -> None:
    from skyrl_stack.trainer.upcoming import upcoming

    given = loader(shuffle=True)
    ahead = list(upcoming(given))
    assert [name for batch in given for name in batch["instance_id"]] == ahead


def test_a_loader_that_was_resumed_goes_on(tmp_path: Path) -> None:
    from skyrl_stack.trainer.upcoming import Announcer

    directory = RunDirectory.create(tmp_path, Profile(name="local"))
    publish(directory.launch_file, Launch())
    tasks = [toy_task(instance_id=name, image=f"registry.test/{name}:1") for name in NAMES]
    directory.tasks_file.write_text("".join(f"{task.model_dump_json()}\n" for task in tasks))
    first, resumed = loader(shuffle=True), loader(shuffle=True)
    list(islice(steps := iter(first), 4))
    resumed.load_state_dict(first.state_dict())
    Announcer(directory.path).announce(resumed, 3)
    then = [name for batch in islice(steps, 3) for name in batch["instance_id"]]
    assert directory.upcoming() == tuple(f"registry.test/{name}:1" for name in then)
    publish(directory.launch_file, Launch())
    assert directory.upcoming() == ()  # a launch's announcement is its own
