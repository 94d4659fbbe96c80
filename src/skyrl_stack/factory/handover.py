"""Hand-over: the images of a run's tasks, on a node of the runtime that did not make them.

    an image of a registry      comes from the site's store, as on any node
    one that was made           comes from a runtime that serves it, or where there is none, is made again

Whoever serves has the tasks and all their images. So of several nodes that start together the first makes them, and
the others wait while one before them lives.
"""

import asyncio

from skyrl_stack.factory.base import Say
from skyrl_stack.factory.obtain import ensure_images
from skyrl_stack.oci.reference import MADE_HERE
from skyrl_stack.presence import INTERVAL_S, Watch
from skyrl_stack.records import Endpoint, Incarnation
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.supply import stored
from skyrl_stack.scratch import scratch
from skyrl_stack.tasks.task import read_tasks

_FIRST_SIGNS_S = 3 * INTERVAL_S
"Until the heartbeats of nodes that start together are seen."


async def await_images(directory: RunDirectory, say: Say) -> bool:
    """Have the images of all tasks in this node's store; False if they, or the tasks, are this node's to make.

    Raises:
        SetupError: an image cannot be had.
        RuntimeUnavailable: the runtime that has them does not answer.
    """
    if not directory.tasks_file.is_file() or await _lacking(directory):
        endpoint = await _await_serving(directory, say)  # without the lock of the store, which the maker may need
        if endpoint is None:
            return False
        if made := await _lacking(directory):
            say(f"{len(made)} images: fetching them from {endpoint.url}")
            await _fetch(endpoint, made)
    await ensure_images(read_tasks(directory.tasks_file), say, pulling=directory.profile().tasks.pull)
    return True


async def _lacking(directory: RunDirectory) -> list[str]:
    """Images that were made, and that neither this node nor the site has."""
    images = dict.fromkeys(task.image for task in read_tasks(directory.tasks_file))
    async with ImageStore() as store:
        made = [image for image in images if image.startswith(MADE_HERE) and not await store.has(image)]
    return [image for image in made if not stored(image)]


async def _await_serving(directory: RunDirectory, say: Say) -> Endpoint | None:
    """A runtime that serves, or None if there is none and no instance before this one is alive to be waited for."""
    me = Incarnation.here(directory.launch().launch_id)
    watch = Watch(directory, "runtime", directory.profile().run.peer_timeout_s)
    waited_s, said = 0.0, False
    while True:
        living, endpoints = watch.living(), directory.endpoints("runtime")
        serving = [
            endpoint for instance, endpoint in endpoints.items() if instance in living and instance != me.instance
        ]
        if serving:
            return serving[me.instance % len(serving)]
        is_first = not any(instance < me.instance for instance in living)
        if is_first and (me.instance == 0 or waited_s >= _FIRST_SIGNS_S):
            return None
        if not is_first and not said:
            say("waiting for the node that makes the tasks")
            said = True
        await asyncio.sleep(INTERVAL_S)
        waited_s += INTERVAL_S


async def _fetch(endpoint: Endpoint, images: list[str]) -> None:
    with scratch("images") as folder:
        archive = folder / "images.tar"
        async with RuntimeClient(endpoint) as client:
            await client.fetch_images(images, archive)
        async with ImageStore() as store:
            await store.load(archive)
