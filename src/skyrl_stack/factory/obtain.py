"""Obtaining: the images of tasks in this node's store; each from the site's store, and that from the registry.

registry ── once for all nodes ──▶ site's store ── layers that the node lacks ──▶ node's image store
"""

import asyncio
from collections.abc import Iterable

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.base import Say
from skyrl_stack.oci.pull import pull
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.serve import served
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.storage import site_images
from skyrl_stack.tasks.task import Task

MADE_HERE = "localhost/"
"What the names of images begin with that no registry has."


async def ensure_images(tasks: Iterable[Task], say: Say, *, pulling: bool = True) -> None:
    """Have the images of `tasks` in this node's store. Without `pulling` no registry is asked.

    Raises:
        SetupError: one cannot be had; names it and the way out.
    """
    async with ImageStore() as node:
        images = dict.fromkeys(task.image for task in tasks)
        lacking = [image for image in images if not await node.has(image)]
    if not lacking:
        return
    site, found = SiteStore(site_images()), {}
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
    await _load(found, site)


async def _load(images: dict[str, Reference], site: SiteStore) -> None:
    with served(site, images.values()) as registries:
        async with ImageStore(registries=registries) as node:
            for image, reference in images.items():
                await node.pull(image, tls_verify=False)  # it is on loopback
                site.use(reference)
