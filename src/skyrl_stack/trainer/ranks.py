"""Ranks: verl's training processes, one for each GPU of the trainer's job. Pure functions of the profile."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Self

from skyrl_stack.profile import Profile

EPISODES_PER_WORKER = 64
"An agent loop worker is one Python process, which so many agents between two model calls keep busy."
_MIG_TYPE = re.compile(r"\dg\.\d+gb")
"In what Slurm calls the slices of a GPU, as `nvidia_a100_3g.20gb`."


@dataclass(frozen=True)
class Ranks:
    """How many there are, and where. On the CPU each node has one."""

    nodes: int
    per_node: int

    @classmethod
    def of(cls, profile: Profile) -> Self:
        if profile.launcher.kind == "local":
            return cls(1, 1)
        job = profile.launcher.trainer
        return cls(job.nodes, job.gpus if profile.trainer.device == "cuda" else 1)

    @property
    def total(self) -> int:
        return self.nodes * self.per_node


def agent_workers(profile: Profile) -> int:
    """Processes that play the episodes, which verl spreads over the nodes: one each, if there is work for all."""
    episodes = profile.trainer.concurrent_episodes
    wanted = max(Ranks.of(profile).nodes, -(-episodes // EPISODES_PER_WORKER))
    return min(wanted, episodes, profile.trainer.tasks_per_step)


def episodes_per_worker(profile: Profile) -> int:
    """Each worker's share of `trainer.concurrent_episodes`, rounded down: the sandboxes are not more."""
    return profile.trainer.concurrent_episodes // agent_workers(profile)


def misfits(profile: Profile, gpu_types: Collection[str] = ()) -> Iterator[str]:
    """What verl, vLLM or NCCL would refuse of the ranks, each with the nearest that works.

    Args:
        gpu_types: what Slurm offers in the trainer's partition.
    """
    trainer, ranks = profile.trainer, Ranks.of(profile)
    if ranks.per_node == 0:
        yield "launcher.trainer.gpus = 0: trainer.device = 'cuda' trains on GPUs, so 1 works"
        return
    if ranks.per_node > 1 and gpu_types and all(_MIG_TYPE.search(name) for name in gpu_types):
        yield (
            f"launcher.trainer.gpus = {ranks.per_node} of type {' or '.join(sorted(gpu_types))}: NCCL does not connect "
            f"slices of one GPU, so 1 works, on each of several launcher.trainer.nodes if need be"
        )
    if ranks.per_node % trainer.tensor_parallel:
        works = max(
            size
            for size in range(1, ranks.per_node + 1)
            if not ranks.per_node % size
            if size <= trainer.tensor_parallel
        )
        yield (
            f"trainer.tensor_parallel = {trainer.tensor_parallel} does not divide the {ranks.per_node} GPUs of a node "
            f"(launcher.trainer.gpus): {works} works"
        )
    episodes = trainer.tasks_per_step * trainer.rollouts_per_task
    if episodes % ranks.total:
        works = _nearest_multiple(trainer.tasks_per_step, ranks.total // gcd(ranks.total, trainer.rollouts_per_task))
        yield (
            f"trainer.tasks_per_step × trainer.rollouts_per_task = {episodes} episodes, which {ranks.total} GPUs "
            f"cannot share evenly: trainer.tasks_per_step = {works} works"
        )


def _nearest_multiple(number: int, of: int) -> int:
    return max(1, round(number / of)) * of
