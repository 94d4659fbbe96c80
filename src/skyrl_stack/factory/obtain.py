"""Obtaining: the images of tasks in this node's store; each from the site's store, and that from the registry.

registry ── once for all nodes ──▶ site's store ── layers that the node lacks ──▶ node's image store
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.base import Say
from skyrl_stack.oci.pull import pull
from skyrl_stack.oci.reference import MADE_HERE, Reference
from skyrl_stack.oci.serve import served
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.sandbox.api import PodmanApi
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.outside.images import SocketImages, how_to_bring
from skyrl_stack.sandbox.storage import site_images
from skyrl_stack.tasks.task import Task


async def ensure_images(
    tasks: Iterable[Task], say: Say, *, pulling: bool = True, podman_socket: Path | None = None
) -> None:
    """Have the images of `tasks` in this node's store, or in the Podman behind a socket. Without `pulling` no registry
    is asked.

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
            await _fetch(lacking, say, pulling=pulling)
            for image in lacking:
                await elsewhere.obtain(image)
        return
    async with ImageStore() as node:
        lacking = [image for image in images if not await node.has(image)]
    if lacking:
        await _load(await _fetch(lacking, say, pulling=pulling))


async def _fetch(lacking: list[str], say: Say, *, pulling: bool) -> dict[str, Reference]:
    """Have images in the site's store."""
    site, found = SiteStore(site_images()), dict[str, Reference]()
    for number, image in enumerate(lacking, 1):
        if image.startswith(MADE_HERE):
            raise SetupError(f"{image}: it was made on another machine, and no registry has it")
        found[image] = reference = Reference.parse(image)
        if not pulling and not site.find(reference):
            raise SetupError(
                f"{image}: not in {site.path}, and tasks.pull = false; run `skyrl-stack images pull {image}` where "
                "there is a way out"
            )
        say(f"image {number} of {len(lacking)}: {image}")
        await asyncio.to_thread(pull, reference, site, say)
    return found


async def _load(images: dict[str, Reference]) -> None:
    site = SiteStore(site_images())
    with served(site, images.values()) as registries:
        async with ImageStore(registries=registries) as node:
            for image, reference in images.items():
                await node.pull(image, tls_verify=False)  # it is on loopback
                site.use(reference)
