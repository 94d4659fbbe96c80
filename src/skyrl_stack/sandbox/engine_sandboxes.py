"""What starts sandboxes, whatever the engine: as long as its block runs, a few at a time, of images that it brings."""

import asyncio
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self, TypedDict, Unpack

from skyrl_stack.errors import SandboxLost, SandboxStartFailed, SetupError
from skyrl_stack.runtime_section import Isolation
from skyrl_stack.sandbox.api import Refused
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.isolation import Rung
from skyrl_stack.sandbox.keeping import UNKEPT, Store
from skyrl_stack.sandbox.supply import Supply, on_site


class Common(TypedDict, total=False):
    """What one of any engine may be told."""

    run_directory: str
    output_limit: int
    "Bytes of a command's stdout and stderr, each, that are kept."
    isolation: Isolation
    "The least that will do."
    store: Store
    "What a server before this one has put away is in it."


class EngineSandboxes(ABC):
    """Starts sandboxes while the block runs; when it ends nothing of them is left."""

    backbone: ClassVar[str]
    "What sandboxes cannot do without, for people."

    def __init__(self, launch_id: str, **common: Unpack[Common]) -> None:
        self.launch_id = launch_id
        self.run_directory = common.get("run_directory", "")
        self.output_limit = common.get("output_limit", 256 * 1024)
        self.adopted: dict[str, EngineSandbox] = {}
        "Once the block runs: those of a server before this one, for who takes them."
        self.rung: Rung | None = None
        "Of the ladder, that this node gives; known once the block runs."
        self._least_isolation: Isolation = common.get("isolation", "shared-uid")
        self._store = common.get("store", UNKEPT)
        self._is_open = False
        self._supply = Supply(self._bring)
        self._starting = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    async def __aenter__(self) -> Self:
        await self._begin()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        was_open, self._is_open = self._is_open, False
        await self._supply.close()
        if was_open:
            await self._end()

    async def reopen(self) -> None:
        """Begin anew after the backbone died, with no sandbox."""
        await self.__aexit__(None, None, None)
        await self.__aenter__()

    @property
    def isolation(self) -> str:
        """What sandboxes are apart from, once the block runs."""
        return self.rung.isolation if self.rung else ""

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether the backbone is, and all else that makes sandboxes and keeps them to their sizes."""

    @property
    @abstractmethod
    def last_words(self) -> str:
        """What the backbone said last."""

    async def start(self, spec: SandboxSpec) -> EngineSandbox:
        """See `SandboxProvider.start`."""
        if not self._is_open:
            raise SandboxStartFailed("the provider is closed")
        name = f"sandbox-{secrets.token_hex(6)}"
        try:
            sandbox = await self._prepare(name, spec)
        except (Refused, SetupError, OSError) as error:
            raise _start_failed(spec, error) from error
        try:
            async with self._starting:  # one that has begun is ready sooner than if all shared the CPUs
                await sandbox.open(spec)
        except BaseException as error:
            await asyncio.shield(sandbox.stop())
            if not isinstance(error, Exception):
                raise
            raise _start_failed(spec, error) from error
        return sandbox

    async def lacking_images(self, references: Sequence[str]) -> list[str]:
        """Those of `references` that no sandbox could be started from.

        Raises:
            SandboxLost: the backbone is gone.
        """
        self._require_open()
        absent = await self._absent(references)
        there = await on_site(absent)
        return [reference for reference in absent if reference not in there]

    async def announce(self, references: Sequence[str]) -> None:
        """Have these images on the node soon, as far as the site's store has them and nothing is needed sooner."""
        if self._is_open:
            self._supply.announce(await on_site(await self._absent(references)))

    @abstractmethod
    async def save_images(self, references: Sequence[str]) -> Path:
        """An archive of images for another node, which the caller removes.

        Raises:
            SandboxStartFailed: it cannot be made.
            SandboxLost: the backbone is gone.
        """

    def _require_open(self) -> None:
        if not self._is_open:
            raise SandboxLost("the provider is closed")

    @abstractmethod
    async def _begin(self) -> None:
        """Make what sandboxes need; of what fails nothing is left."""

    @abstractmethod
    async def _end(self) -> None:
        """Remove all that `_begin` and sandboxes made."""

    @abstractmethod
    async def _prepare(self, name: str, spec: SandboxSpec) -> EngineSandbox:
        """A sandbox that can be opened: its image is here."""

    @abstractmethod
    async def _absent(self, references: Sequence[str]) -> list[str]:
        """Those of `references` that this node would first have to bring."""

    @abstractmethod
    async def _bring(self, reference: str) -> None:
        """Have an image of the site's store on this node."""


def _start_failed(spec: SandboxSpec, error: Exception) -> SandboxStartFailed:
    """What to raise for `error`: the image, and why, on one line."""
    return SandboxStartFailed(f"{spec.image}: {' '.join(str(error).split())}")
