"""Supply: images of the site's store on their way to a node, when a sandbox needs them, or before, when announced.

site's store ── layers that the node lacks ──▶ node's image store
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from skyrl_stack.errors import SandboxLost, SetupError
from skyrl_stack.oci.reference import MADE_HERE, Reference
from skyrl_stack.oci.serve import served
from skyrl_stack.oci.store import SiteStore, StoredImage
from skyrl_stack.sandbox.images import ImageStore, reading_options
from skyrl_stack.sandbox.storage import site_images

LOG = logging.getLogger(__name__)


class Supply:
    """Brings one image at a time by `bring`, each once however many wait for it: first what is needed, then what is
    announced. Belongs to the event loop that first uses it."""

    def __init__(self, bring: Callable[[str], Awaitable[object]]) -> None:
        self._bring = bring
        self._needed: dict[str, asyncio.Future[Exception | None]] = {}
        self._announced: dict[str, None] = {}
        self._work: asyncio.Task[None] | None = None

    async def need(self, reference: str) -> None:
        """Return when the image is there.

        Raises:
            SetupError: it cannot be had.
            Exception: what else `bring` raises.
        """
        coming = self._needed.setdefault(reference, asyncio.get_running_loop().create_future())
        self._begin()
        if error := await asyncio.shield(coming):
            raise error

    def announce(self, references: Iterable[str]) -> None:
        """Bring these when nothing is needed, in the place of what was announced before."""
        self._announced = dict.fromkeys(references)
        self._begin()

    async def close(self) -> None:
        """Bring nothing more; whoever waits is told."""
        if self._work:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._announced.clear()
        for reference in list(self._needed):
            self._settle(reference, SandboxLost("the provider is closed"))

    def _begin(self) -> None:
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._bring_all())

    async def _bring_all(self) -> None:
        while waiting := self._needed or self._announced:
            reference = next(iter(waiting))
            self._announced.pop(reference, None)
            try:
                await self._bring(reference)
            except Exception as error:  # for who needs it; one that is announced only may never be needed
                LOG.warning("image %s: %s", reference, error)
                self._settle(reference, error)
            else:
                self._settle(reference, None)

    def _settle(self, reference: str, error: Exception | None) -> None:
        if coming := self._needed.pop(reference, None):
            coming.set_result(error)


async def on_site(references: Sequence[str]) -> list[str]:
    """Those of `references` that the site's store has, which may be far away."""
    return await asyncio.to_thread(lambda: [reference for reference in references if stored(reference)])


def stored(reference: str) -> StoredImage | None:
    """The image in the site's store, if it is there; `reference` may be no name at all."""
    try:
        return SiteStore(site_images()).find(Reference.parse(reference))
    except SetupError:  # no name of an image
        return None


def how_to_have(reference: str) -> str:
    """What to say of an image that neither a node nor the site's store has: the commands that bring it."""
    if not reference.startswith(MADE_HERE):
        return f"neither this node nor {site_images()} has it; `skyrl-stack images pull {reference}` fetches it"
    save = f"podman {reading_options()} save --format oci-archive -o image.tar {reference}"
    return f"no registry has it; bring it by `{save}` where it was made, and here `skyrl-stack images load image.tar`"


async def bring_to(store: Path, reference: str) -> None:
    """Have an image of the site's store in a node's, `store`.

    Raises:
        SetupError: the site does not have it, or Podman refuses.
    """
    image = stored(reference)
    if image is None:
        raise SetupError(how_to_have(reference))
    site = SiteStore(site_images())
    with served(site, [image.reference]) as registries:
        async with ImageStore(store, registries=registries) as node:
            await node.pull(reference, tls_verify=False)  # it is on loopback
    site.use(image.reference)
    LOG.info("image %s", reference)
