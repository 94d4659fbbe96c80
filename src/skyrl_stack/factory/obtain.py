"""Obtaining: the images of tasks where sandboxes find them: in this node's store, or in the site's.

registry ── once for all nodes ──▶ site's store ── when one is needed, or announced (`supply`) ──▶ node's image store
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.base import Say
from skyrl_stack.oci.pull import pull
from skyrl_stack.oci.reference import MADE_HERE, Reference
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.sandbox.api import PodmanApi
from skyrl_stack.sandbox.apptainer.trees import Trees
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.outside.images import SocketImages, how_to_bring
from skyrl_stack.sandbox.providers import why_apptainer
from skyrl_stack.sandbox.storage import site_images
from skyrl_stack.sandbox.supply import how_to_have, stored
from skyrl_stack.tasks.task import Task


async def ensure_images(
    tasks: Iterable[Task], say: Say, *, pulling: bool = True, podman_socket: Path | None = None
) -> None:
    """Have the images of `tasks` where this node's sandboxes are started from, a store, a Podman behind a socket or
    Apptainer's trees, or else in the site's store. Without `pulling` no registry is asked.

    Raises:
        SetupError: one cannot be had; names it and the way out.
    """
    images = list(dict.fromkeys(task.image for task in tasks))
    if podman_socket:
        with PodmanApi(podman_socket) as api:
            elsewhere = SocketImages(api)
            lacking = await elsewhere.lacking(images)
            if made := [image for image in lacking if image.startswith(MADE_HERE) and not stored(image)]:
                raise SetupError(f"{made[0]}: {how_to_bring(made, podman_socket)}")
    elif why_apptainer():
        trees = Trees()
        lacking = [image for image in images if not trees.find(image)]
    else:
        async with ImageStore() as node:
            lacking = [image for image in images if not await node.has(image)]
    for number, image in enumerate(lacking, 1):

        def say_which(line: str, number: int = number) -> None:
            say(f"image {number} of {len(lacking)}: {line}")

        await fetch(image, say_which, pulling=pulling)


async def fetch(image: str, say: Say, *, pulling: bool = True) -> None:
    """Have an image that a node lacks in the site's store.

    Raises:
        SetupError: it cannot be had; names it and the way out.
    """
    site, reference = SiteStore(site_images()), Reference.parse(image)
    if site.find(reference) is None:
        if image.startswith(MADE_HERE):
            raise SetupError(f"{image}: {how_to_have(image)}")
        if not pulling:
            raise SetupError(
                f"{image}: not in {site.path}, and tasks.pull = false; run `skyrl-stack images pull {image}` where "
                "there is a way out"
            )
        await asyncio.to_thread(pull, reference, site, say)
    site.use(reference)  # `gc` spares what a run has yet to bring to its nodes
