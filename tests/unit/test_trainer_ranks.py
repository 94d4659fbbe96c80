"""How the trainer's job becomes verl's ranks, and which sizes verl, vLLM or NCCL would refuse."""

from pathlib import Path

import pytest

from skyrl_stack.profile import Profile, load_profile
from skyrl_stack.trainer.checkpoints import ranks_of
from skyrl_stack.trainer.ranks import Ranks, agent_workers, episodes_per_worker, misfits

PROFILES = Path(__file__).parents[2] / "profiles"
SLICES = ["nvidia_a100_1g.5gb", "nvidia_a100_3g.20gb"]


def dev(*overrides: str) -> Profile:
    return load_profile(PROFILES / "dev.toml", overrides)


def sized(nodes: int, gpus: int, *overrides: str) -> Profile:
    return dev(f"launcher.trainer.nodes={nodes}", f"launcher.trainer.gpus={gpus}", *overrides)


def test_a_rank_is_a_gpu_and_on_the_cpu_a_node() -> None:
    assert Ranks.of(sized(4, 8)) == Ranks(4, 8)
    assert Ranks.of(sized(4, 8)).total == 32
    assert Ranks.of(sized(2, 1, "trainer.device=cpu")) == Ranks(2, 1)
    assert Ranks.of(load_profile(PROFILES / "local.toml")) == Ranks(1, 1)


@pytest.mark.parametrize(
    ("nodes", "concurrent", "tasks", "workers", "each"),
    [(1, 8, 4, 1, 8), (2, 8, 4, 2, 4), (4, 512, 64, 8, 64), (4, 9, 2, 2, 4), (4, 2, 8, 2, 1)],
)
def test_episodes_are_shared_by_workers_on_all_nodes(
    nodes: int, concurrent: int, tasks: int, workers: int, each: int
) -> None:
    overrides = [f"trainer.concurrent_episodes={concurrent}", f"runtime.max_sandboxes={concurrent}"]
    profile = sized(nodes, 1, *overrides, f"trainer.tasks_per_step={tasks}")
    assert (agent_workers(profile), episodes_per_worker(profile)) == (workers, each)


@pytest.mark.parametrize(
    "profile",
    [
        dev(),
        sized(2, 8),
        sized(4, 8, "trainer.tasks_per_step=64", "trainer.tensor_parallel=8"),
        sized(3, 2, "trainer.tasks_per_step=6"),
        sized(2, 0, "trainer.device=cpu"),
        load_profile(PROFILES / "local.toml"),
    ],
)
def test_what_fits_is_not_refused(profile: Profile) -> None:
    assert list(misfits(profile)) == []


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (sized(1, 0), "launcher.trainer.gpus = 0: trainer.device = 'cuda' trains on GPUs, so 1 works"),
        (sized(1, 8, "trainer.tensor_parallel=3"), "does not divide the 8 GPUs of a node (launcher.trainer.gpus): 2"),
        (sized(2, 4, "trainer.tensor_parallel=8"), "does not divide the 4 GPUs of a node (launcher.trainer.gpus): 4"),
        (dev("trainer.device=cpu", "trainer.tensor_parallel=2"), "does not divide the 1 GPUs of a node"),
        (sized(3, 1), "16 episodes, which 3 GPUs cannot share evenly: trainer.tasks_per_step = 3 works"),
        (sized(4, 8), "16 episodes, which 32 GPUs cannot share evenly: trainer.tasks_per_step = 8 works"),
        (sized(1, 8, "trainer.tasks_per_step=5"), "20 episodes, which 8 GPUs cannot share evenly"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(profile: Profile, said: str) -> None:
    (found,) = misfits(profile)
    assert said in found


@pytest.mark.parametrize(("nodes", "gpus", "refused"), [(1, 2, 1), (1, 1, 0), (4, 1, 0)])
def test_one_slice_of_a_gpu_for_each_node(nodes: int, gpus: int, refused: int) -> None:
    found = list(misfits(sized(nodes, gpus), SLICES))
    assert len(found) == refused
    assert all("NCCL does not connect slices of one GPU, so 1 works" in text for text in found)
    assert not list(misfits(sized(nodes, gpus), [*SLICES, "nvidia_h200"]))


def test_a_checkpoint_tells_how_many_ranks_saved_it(tmp_path: Path) -> None:
    actor = tmp_path / "global_step_4" / "actor"
    assert ranks_of(tmp_path, 4) is None
    actor.mkdir(parents=True)
    for rank in range(16):
        (actor / f"model_world_size_16_rank_{rank}.pt").touch()
    assert ranks_of(tmp_path, 4) == 16
