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
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.outside.images import SocketImages, how_to_bring
from skyrl_stack.sandbox.storage import site_images
from skyrl_stack.tasks.task import Task


async def ensure_images(
    tasks: Iterable[Task], say: Say, *, pulling: bool = True, podman_socket: Path | None = None
) -> None:
    """Have the images of `tasks` in this node's store, or in the Podman behind a socket, or else in the site's store.
    Without `pulling` no registry is asked.

    Raises:
        SetupError: one cannot be had; names it and the way out.
    """
    images = list(dict.fromkeys(task.image for task in tasks))
    if podman_socket:
        with PodmanApi(podman_socket) as api:
            elsewhere = SocketImages(api)
            lacking = await elsewhere.lacking(images)
            if made := [image for image in lacking if image.startswith(MADE_HERE)]:
                raise SetupError(f"{made[0]}: {how_to_bring(made, podman_socket)}")
    else:
        async with ImageStore() as node:
            lacking = [image for image in images if not await node.has(image)]
    await _fetch(lacking, say, pulling=pulling)


async def _fetch(lacking: list[str], say: Say, *, pulling: bool) -> None:
    """Have images in the site's store."""
    if made := [image for image in lacking if image.startswith(MADE_HERE)]:
        raise SetupError(f"{made[0]}: it was made on another machine, and no registry has it")
    site, references = SiteStore(site_images()), [Reference.parse(image) for image in lacking]
    absent = [reference for reference in references if site.find(reference) is None]
    if absent and not pulling:
        raise SetupError(
            f"{absent[0]}: not in {site.path}, and tasks.pull = false; run `skyrl-stack images pull {absent[0]}` where "
            "there is a way out"
        )
    for number, reference in enumerate(absent, 1):
        say(f"image {number} of {len(absent)}: {reference}")
        await asyncio.to_thread(pull, reference, site, say)
    for reference in references:
        site.use(reference)  # `gc` spares what a run has yet to bring to its nodes
