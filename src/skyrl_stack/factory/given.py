"""Given: a task file that the user brings, checked before a run starts on it."""

from pathlib import Path

from skyrl_stack.factory.base import Say
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.tasks.manifest import trainable_tasks
from skyrl_stack.tasks.task import Task


async def given_tasks(
    path: Path, say: Say, *, unverified: bool = False, pulling: bool = True, podman_socket: Path | None = None
) -> list[Task]:
    """The tasks of `path` that may be trained on, their images where `ensure_images` has them.

    Quarantined ones are left out. Those that nobody verified are refused, unless `unverified`.

    Raises:
        TaskError: it is missing, or a row is not a task; names the line.
        ProfileError: it has no task to train on, or one that is not verified.
        SetupError: an image cannot be had.
    """
    tasks = trainable_tasks(path, say, unverified=unverified)
    await ensure_images(tasks, say, pulling=pulling, podman_socket=podman_socket)
    return tasks
