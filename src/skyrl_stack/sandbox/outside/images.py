"""Images of a Podman behind a socket: its own, and those of the site's store."""

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from skyrl_stack.errors import SandboxStartFailed, SetupError
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.serve import served
from skyrl_stack.oci.store import SiteStore
from skyrl_stack.sandbox.outside.api import PodmanApi, Refused
from skyrl_stack.sandbox.storage import site_images

_PIECE = 1 << 20


@dataclass(frozen=True)
class SocketImage:
    """An image that Podman has."""

    workdir: str


class SocketImages:
    """The images that sandboxes can be started from."""

    def __init__(self, api: PodmanApi) -> None:
        self._api = api

    async def obtain(self, reference: str) -> SocketImage:
        """The image, which Podman takes from the site's store where it lacks it.

        Raises:
            SetupError: neither has it.
            Refused: Podman cannot take it.
            SandboxLost: Podman is gone.
        """
        return await self._api.in_thread(lambda: self._inspect(reference) or self._fetch(reference))

    async def lacking(self, references: Sequence[str]) -> list[str]:
        """Those of `references` that Podman does not have.

        Raises:
            SandboxLost: Podman is gone.
        """
        found = await self._api.in_thread(lambda: [self._inspect(reference) for reference in references])
        return [reference for reference, image in zip(references, found, strict=True) if image is None]

    async def save(self, references: Sequence[str], directory: Path) -> Path:
        """An archive of images, in `directory`.

        Raises:
            SandboxStartFailed: Podman refused; an image may be missing.
            SandboxLost: Podman is gone.
        """
        archive = directory / f"images-{secrets.token_hex(4)}.tar"

        def save() -> Path:
            query = {"references": ",".join(references), "format": "docker-archive"}
            with self._api.stream("GET", "/images/export", **query) as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file, _PIECE)
            return archive

        try:
            return await self._api.in_thread(save)
        except BaseException as error:
            archive.unlink(missing_ok=True)
            if not isinstance(error, Refused):
                raise
            raise SandboxStartFailed(f"cannot save images: {error}") from error

    def _inspect(self, reference: str) -> SocketImage | None:
        try:
            found = self._api.call("GET", f"/images/{reference}/json")
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        return SocketImage(found["Config"].get("WorkingDir") or "/")

    def _fetch(self, reference: str) -> SocketImage:
        """Have Podman pull the image from the site's store: of its layers those that it lacks."""
        site, wanted = SiteStore(site_images()), Reference.parse(reference)
        if site.find(wanted) is None:
            raise SetupError(f"neither the Podman behind {self._api.path} nor {site.path} has it")
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
        if image := self._inspect(reference):
            return image
        raise SetupError(f"Podman pulled it from {site.path}, and does not know it by this name")
