"""The image store: images that outlive launches, written under a lock and read by every run's own storage.

A run's Podman lists the store under `additionalimagestores`, so starting from an image here copies nothing.
Only one launch writes at a time; the others wait for it, and find its images made.
"""

import asyncio
import json
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from podman import PodmanClient
from podman.errors import APIError, BuildError

from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.healing import heal_store
from skyrl_stack.sandbox.locks import locked
from skyrl_stack.sandbox.namespaces import id_map
from skyrl_stack.sandbox.storage import cache_dir, make_private_directory, remove_private_directory

LOG = logging.getLogger(__name__)
OPERATION_TIMEOUT_S = 1800.0


def image_store_path(cache: Path | None = None) -> Path:
    """The directory of the store in the cache. Its files belong to the users of the cell, so they have one each."""
    return (cache or cache_dir()) / f"images-{id_map().root[0]}"


def reading_options() -> str:
    """By which anybody's Podman reads the image store, as it reads additional ones, and changes nothing in it.

    A root of its own keeps it off the storage of whoever types it, whose driver may be another.
    """
    return f"--root $(mktemp -d) --storage-driver overlay --storage-opt overlay.imagestore={image_store_path()}"


class ImageStore:
    """Makes and finds images while the block runs: `async with ImageStore() as images`.

    The lock is taken and Podman started at the first call, so a block that calls nothing costs nothing.
    Every method raises SetupError, of one line, when Podman refuses.
    """

    def __init__(self, path: Path | None = None, *, registries: Mapping[str, str] | None = None) -> None:
        """`registries` says from where to pull instead: location by name, such as `docker.io/swebench/x`."""
        self.path = path or image_store_path()
        self._registries = dict(registries or {})
        self._closing = ExitStack()
        self._cell: Cell | None = None
        self._opening = threading.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._closing.close)
        self._cell = None

    async def make(self) -> None:
        """Have the store; a new one is empty."""
        if not self.path.is_dir():
            await asyncio.to_thread(self._open)

    async def has(self, reference: str) -> bool:
        """Whether the image is in the store."""
        return await self._call(f"look for {reference}", lambda client: client.images.exists(reference))

    async def import_rootfs(self, tar: Path, reference: str, *, changes: tuple[str, ...] = ()) -> None:
        """Make an image of one layer from the tar of a root file system, with Containerfile `changes` (ENV, CMD)."""

        def send(client: PodmanClient) -> None:
            parameters = {"reference": reference, "changes": list(changes)}
            headers = {"Content-Type": "application/x-tar"}
            with tar.open("rb") as data:
                client.api.post("/images/import", params=parameters, data=data, headers=headers).raise_for_status()

        await self._call(f"import {tar} as {reference}", send)

    async def load(self, archive: Path) -> None:
        """Add the images of an archive that `podman save` or `docker save` wrote; layers that are here are kept."""

        def send(client: PodmanClient) -> None:
            headers = {"Content-Type": "application/x-tar"}
            with archive.open("rb") as data:
                client.api.post("/images/load", data=data, headers=headers).raise_for_status()

        await self._call(f"load {archive}", send)

    async def build(
        self,
        context: Path,
        reference: str,
        *,
        containerfile: str = "Containerfile",
        arguments: Mapping[str, str] | None = None,
        network: Literal["none", "host"] = "none",
    ) -> None:
        """Build `containerfile` of the directory `context`. Its base must be in the store."""

        def build(client: PodmanClient) -> None:
            client.images.build(
                path=str(context),
                dockerfile=containerfile,
                tag=reference,
                buildargs=dict(arguments or {}),
                # Buildah's word: Podman's own, `none`, is silently ignored here. The default is the cell's network.
                network_mode="NetworkDisabled" if network == "none" else None,
                rm=True,
                pull=False,
            )

        await self._call(f"build {reference}", build)

    async def pull(self, reference: str, *, tls_verify: bool = True) -> None:
        """Fetch the image from its registry."""

        def pull(client: PodmanClient) -> None:
            # podman-py returns an image without id, and raises nothing, when Podman 4 finds none: read the answer.
            parameters = {"reference": reference, "tlsVerify": tls_verify}
            answer = client.api.post("/images/pull", params=parameters, timeout=OPERATION_TIMEOUT_S)
            answer.raise_for_status()
            for line in filter(None, answer.text.splitlines()):
                if message := json.loads(line).get("error"):
                    raise SetupError(f"cannot pull {reference}: {_last_line(message)}")

        await self._call(f"pull {reference}", pull)

    async def _call[T](self, what: str, function: Callable[[PodmanClient], T]) -> T:
        def call() -> T:
            cell = self._open()
            with cell.client(OPERATION_TIMEOUT_S) as client:
                try:
                    return function(client)
                except BuildError as error:
                    raise SetupError(f"cannot {what}: {_build_output(error)}") from error
                except (APIError, OSError) as error:
                    raise SetupError(f"cannot {what}: {_last_line(_explanation(error))}") from error

        return await asyncio.to_thread(call)

    def _open(self) -> Cell:
        with self._opening:
            if self._cell is None:
                with ExitStack() as closing:
                    closing.enter_context(locked(self.path.with_suffix(".lock")))
                    directory = make_private_directory(secrets.token_hex(8))
                    closing.callback(remove_private_directory, directory)
                    if healed := heal_store(self.path):
                        LOG.warning(healed)
                    cell = Cell(directory, graphroot=self.path, registries=self._registries)
                    self._cell = closing.enter_context(cell)
                    self._closing = closing.pop_all()
            return self._cell


def _explanation(error: Any) -> str:
    return str(getattr(error, "explanation", None) or error)


def _build_output(error: BuildError) -> str:
    """The end of what a failed build printed, on one line."""
    records = [json.loads(line) for line in error.build_log or ()]
    lines = [" ".join(record.get("stream", "").split()) for record in records]
    return f"{_last_line(error.msg or '')}: {' | '.join(filter(None, lines))[-600:]}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:600] if lines else "Podman gave no reason"
