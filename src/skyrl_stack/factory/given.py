"""Given: a task file that the user brings, checked before a run starts on it."""

from collections.abc import Container
from pathlib import Path

from skyrl_stack.errors import ProfileError
from skyrl_stack.factory.base import Say
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.tasks.task import read_tasks


async def given_tasks(path: Path, say: Say, *, only: Container[str] | None = None) -> Path:
    """`path`, when all its rows are tasks whose images are in the image store, pulled where they were not.

    With `only`, the images of the tasks so called.

    Raises:
        TaskError: it is missing, or a row is not a task; names the line.
        ProfileError: it is empty.
        SetupError: an image cannot be had.
    """
    images = list(dict.fromkeys(task.image for task in read_tasks(path) if only is None or task.instance_id in only))
    if not images:
        raise ProfileError(f"tasks.file = {path}: it has no rows")
    async with ImageStore() as store:
        for number, image in enumerate(images, 1):
            if not await store.has(image):
                say(f"image {number} of {len(images)}: pulling {image}")
                await store.pull(image)
    return path
