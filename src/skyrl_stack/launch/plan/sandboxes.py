"""Sandboxes against rollouts: places, and the memory, cores and processes of the nodes that they are on."""

from collections.abc import Iterator

from skyrl_stack.launch.plan.findings import Finding, Need
from skyrl_stack.profile import Profile
from skyrl_stack.site import JobSection, SlurmLauncher

CROWDED = 8
"Sandboxes a core from which on tests get slow enough to run into their time limits."


def sandboxes(profile: Profile) -> Iterator[Need | Finding]:
    """What the episodes of a step need, and what the runtime's nodes offer them."""
    nodes, places, runtime = profile.runtime_nodes, profile.sandboxes, profile.runtime
    where = f"{places} ({nodes} × {runtime.max_sandboxes})"
    if profile.is_coupled:
        yield from _rollouts(profile, nodes, places, where)
    else:
        yield Need("sandboxes at once", "as its users need", where)
    if isinstance(profile.launcher, SlurmLauncher):
        yield from _node(profile, profile.launcher.runtime)


def _rollouts(profile: Profile, nodes: int, places: int, where: str) -> Iterator[Need | Finding]:
    trainer, runtime, at_once = profile.trainer, profile.runtime, profile.trainer.concurrent_episodes
    per_step = trainer.tasks_per_step * trainer.rollouts_per_task
    yield Need("sandboxes at once", f"{at_once}, of {per_step} episodes a step", where)
    if at_once > per_step:
        yield Finding(
            "warning",
            f"trainer.concurrent_episodes = {at_once}, but a step has {per_step} episodes "
            f"(tasks_per_step × rollouts_per_task): {per_step} is as fast",
        )
    if places > at_once:
        each = f" on each of {nodes} nodes" if nodes > 1 else ""
        yield Finding(
            "warning",
            f"runtime.max_sandboxes = {runtime.max_sandboxes}{each}, but {at_once} episodes at once "
            f"(trainer.concurrent_episodes) use one each",
        )


def _node(profile: Profile, job: JobSection) -> Iterator[Need | Finding]:
    """One node of the runtime: a job that uses more memory than it asked for is killed, and every sandbox with it."""
    runtime = profile.runtime
    places = runtime.max_sandboxes
    if runtime.memory_mb is not None:
        needed_gb = -(-places * runtime.memory_mb // 1024)
        needed = f"{needed_gb} GB ({places} × {runtime.memory_mb} MB)"
        yield Need("  memory of a node", needed, f"{job.memory_gb} GB asked for")
        if needed_gb > job.memory_gb:
            fitting = job.memory_gb * 1024 // runtime.memory_mb
            enough = fitting * job.nodes >= (profile.trainer.concurrent_episodes if profile.is_coupled else 1)
            yield Finding(
                "error",
                f"runtime.max_sandboxes = {places} of {runtime.memory_mb} MB may use more than "
                f"launcher.runtime.memory_gb = {job.memory_gb}: {needed_gb} works"
                + (f", or max_sandboxes = {fitting}" if enough else ""),
            )
    if runtime.cpus is not None:
        asked = f"{job.cpus} asked for: {places / job.cpus:.1f} sandboxes a core"
        yield Need("  cores of a node", f"{places * runtime.cpus:g} if all work at once", asked)
        if places > CROWDED * job.cpus:
            yield Finding(
                "warning",
                f"{places / job.cpus:.1f} sandboxes share a core: tests may run into their time limit; "
                f"launcher.runtime.cpus = {-(-places // CROWDED)} is better",
            )
    if runtime.pids is not None:
        yield Need("  processes of a node", f"{places * runtime.pids} at most ({places} × {runtime.pids})")
