"""Images of a Podman behind a socket: its own, and those of the site's store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError
from skyrl_stack.oci.reference import MADE_HERE
from skyrl_stack.oci.serve import served
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.sandbox.api_images import ApiImages
from skyrl_stack.sandbox.images import reading_options
from skyrl_stack.sandbox.storage import site_images
from skyrl_stack.sandbox.supply import stored


def how_to_bring(references: Sequence[str], socket: Path) -> str:
    """What to say of images that were made, and that the Podman behind `socket` lacks: the command that brings them."""
    save = f"podman {reading_options()} save -m {' '.join(references)}"
    where = f"no registry has it, nor the Podman behind {socket}"
    return f"{where}; bring what was made by `{save} | podman --url unix://{socket} load`"


class SocketImages(ApiImages):
    """The images that sandboxes can be started from."""

    async def find(self, reference: str) -> Any:
        """What Podman says of an image, or None where it has none of that name.

        Raises:
            SandboxLost: Podman is gone.
        """
        return await self._api.in_thread(lambda: self._api.image(reference))

    async def bring(self, reference: str) -> None:
        """Have Podman pull an image from the site's store: of its layers those that it lacks.

        Raises:
            SetupError: the site does not have it.
            Refused: Podman cannot take it.
            SandboxLost: Podman is gone.
        """
        await self._api.in_thread(lambda: self._bring(reference))

    def _bring(self, reference: str) -> None:
        image, site = stored(reference), SiteStore(site_images())
        if image is None and reference.startswith(MADE_HERE):
            raise SetupError(how_to_bring([reference], self._api.path))
        if image is None:
            raise SetupError(f"neither the Podman behind {self._api.path} nor {site.path} has it")
        wanted = image.reference
        with served(site, [wanted]) as places:
            separator = "@" if wanted.digest else ":"
            place = f"{places[wanted.name]}{separator}{wanted.version}"
            with self._api.stream("POST", "/images/pull", reference=place, tlsVerify="false") as answer:
                said = [json.loads(line) for line in answer if line.strip()]
        if errors := [line["error"] for line in said if line.get("error")]:
            raise SetupError(f"Podman cannot pull it from {site.path}: {errors[-1]}")
        tag = wanted.version.replace(":", "-")
        self._api.call("POST", f"/images/{place}/tag", repo=wanted.name, tag=tag)
        self._api.call("DELETE", f"/images/{place}")  # of two names it loses this one
        site.use(wanted)
        if self._api.image(reference) is None:
            raise SetupError(f"Podman pulled it from {site.path}, and does not know it by this name")
