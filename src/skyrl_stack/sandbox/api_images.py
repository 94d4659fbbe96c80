"""The images that a Podman has, as its API tells: which, and in an archive for another node."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from skyrl_stack.errors import SandboxStartFailed
from skyrl_stack.sandbox.api import PodmanApi, Refused

_SAVE_TIMEOUT_S = 1800.0
_PIECE = 1 << 20
_ARCHIVE = "images-"


class ApiImages:
    """The images of the Podman that `api` asks."""

    def __init__(self, api: PodmanApi) -> None:
        self._api = api

    async def lacking(self, references: Sequence[str]) -> list[str]:
        """Those of `references` that Podman does not have.

        Raises:
            SandboxLost: Podman is gone.
        """
        found = await self._api.in_thread(lambda: [self._api.image(reference) for reference in references])
        return [reference for reference, image in zip(references, found, strict=True) if image is None]

    async def save(self, references: Sequence[str], directory: Path) -> Path:
        """An archive of images, in `directory`, with what layers they share once. The caller removes it.

        Raises:
            SandboxStartFailed: Podman refused; an image may be missing.
            SandboxLost: Podman is gone.
        """
        archive = directory / f"{_ARCHIVE}{secrets.token_hex(4)}.tar"

        def save() -> Path:
            query = {"references": references, "format": "docker-archive"}
            export = self._api.stream("GET", "/images/export", None, _SAVE_TIMEOUT_S, **query)
            with export as answer, archive.open("wb") as file:
                shutil.copyfileobj(answer, file, _PIECE)
            return archive

        try:
            return await self._api.in_thread(save)
        except BaseException as error:
            archive.unlink(missing_ok=True)
            if not isinstance(error, Refused):
                raise
            raise SandboxStartFailed(f"cannot save images: {error}") from error


def discard_archives(directory: Path) -> None:
    """Remove what somebody who saved images there, and died, cannot remove any more."""
    for archive in directory.glob(f"{_ARCHIVE}*.tar"):
        archive.unlink()
