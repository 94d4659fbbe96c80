"""Sandboxes of Podman: the contract over a cell that is this launch's own."""

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyrl_stack.errors import SandboxLost, SandboxStartFailed, SetupError
from skyrl_stack.runtime_section import Isolation
from skyrl_stack.sandbox.api import PodmanApi, Refused
from skyrl_stack.sandbox.api_images import ApiImages, discard_archives
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.containers import Containers
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.dependent import Dependent
from skyrl_stack.sandbox.engine_sandbox import KEPT, EngineSandbox, opened, start_failed
from skyrl_stack.sandbox.held import HeldSizes, found_sizes, hold_sizes, who_enforces
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.isolation import Rung, probe
from skyrl_stack.sandbox.keeping import UNKEPT, Kept, Store
from skyrl_stack.sandbox.limits import Limits, of_shell
from skyrl_stack.sandbox.oci import Description, NoSuchImage, Patterns
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from skyrl_stack.sandbox.supply import Supply, bring_to, on_site

LOG = logging.getLogger(__name__)
_CELL = "cell"
"By this key what sandboxes are in is kept for a server after this one."


class PodmanSandboxes:
    """Starts sandboxes while the block runs; when it ends nothing of them is left."""

    backbone = "Podman's service"
    "What sandboxes cannot do without, for people."

    def __init__(
        self,
        launch_id: str,
        *,
        image_stores: Sequence[Path],
        run_directory: str = "",
        output_limit: int = 256 * 1024,
        isolation: Isolation = "shared-uid",
        store: Store = UNKEPT,
    ) -> None:
        """What the node lacks, and the site's store has, goes into the first of `image_stores`, of one or more."""
        self.adopted: dict[str, EngineSandbox] = {}
        "Once the block runs: those of a server before this one, for who takes them."
        self.launch_id = launch_id
        self.run_directory = run_directory
        self.image_stores = tuple(image_stores)
        self.output_limit = output_limit
        self.least_isolation: Isolation = isolation
        self._store = store
        self._rung: Rung | None = None
        self._directory: Path | None = None
        self._cell: Cell | None = None
        self._api: PodmanApi | None = None
        self._containers: Containers | None = None
        self._held: HeldSizes | None = None
        self._limits: Limits | None = None
        self._patterns = Patterns(self.image_stores)
        self._supply = Supply(partial(bring_to, self.image_stores[0]))
        self._starting = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._end()

    async def reopen(self) -> None:
        """Begin anew after Podman's service died, with no sandbox."""
        await self._end()
        await self._begin()

    async def _begin(self) -> None:
        async with ImageStore(self.image_stores[0]) as store:
            await store.make()  # Podman sees what is added to those stores that it began with
        helper = await asyncio.to_thread(self._open)
        try:
            self._limits = await Limits.start(helper, held=self._held)
            found = self._store.take_below(KEPT)
            await asyncio.gather(*(self._adopt(name, kept.data) for name, kept in found.items()))
        except BaseException:
            await asyncio.to_thread(self._close)
            raise

    async def _end(self) -> None:
        await self._supply.close()
        limits, self._limits = self._limits, None
        if limits:
            await limits.close()
        await asyncio.to_thread(self._close)

    @property
    def isolation(self) -> str:
        """The rung of the ladder that this node gives, once the block runs."""
        return self._rung.isolation if self._rung else ""

    @property
    def is_alive(self) -> bool:
        """Whether Podman's service still is, what makes containers, and what keeps them to their sizes."""
        parts = (self._cell, self._containers, self._limits)
        return all(part is not None and part.is_alive for part in parts)

    @property
    def last_words(self) -> str:
        """What Podman's service said last."""
        return self._cell.last_words if self._cell else ""

    async def start(self, spec: SandboxSpec) -> EngineSandbox:
        """See `SandboxProvider.start`."""
        api = self._api
        if api is None or self._containers is None or self._limits is None:
            raise SandboxStartFailed("the provider is closed")
        if self._rung and not self._rung.has_networks:
            spec = spec.model_copy(update={"network": "host"})
        name = f"sandbox-{secrets.token_hex(6)}"
        try:
            description = await self._describe(api, name, spec)
        except (Refused, SetupError) as error:
            raise start_failed(spec, error) from error
        return await opened(self._sandbox(name, description, spec), spec, self._starting)

    def _sandbox(self, name: str, description: Description, spec: SandboxSpec) -> EngineSandbox:
        assert self._containers and self._limits, "the provider is closed"
        return EngineSandbox(
            self._containers,
            name,
            description,
            limits=self._limits,
            preamble=of_shell(spec),
            output_limit=self.output_limit,
            store=self._store,
        )

    async def _adopt(self, name: str, record: Mapping[str, Any]) -> None:
        """Go on with a sandbox of a server before this one. What was only being started, or is lost, is removed."""
        spec = SandboxSpec.model_validate(record["spec"])
        sandbox = self._sandbox(name, Description(**record["description"]), spec)
        try:
            await sandbox.go_on(record)
        except (SandboxLost, RuntimeError) as error:
            LOG.warning("not adopted: %s", error)
            await sandbox.stop()
        else:
            self.adopted[name] = sandbox

    async def _describe(self, api: PodmanApi, name: str, spec: SandboxSpec) -> Description:
        def describe() -> Description:
            return self._patterns.describe(api, name, spec)

        try:
            return await api.in_thread(describe)
        except NoSuchImage:
            await self._supply.need(spec.image)
            return await api.in_thread(describe)

    async def announce(self, references: Sequence[str]) -> None:
        """Have these images on the node soon, as far as the site's store has them and nothing is needed sooner."""
        if self._api:
            absent = await ApiImages(self._api).lacking(references)
            self._supply.announce(await on_site(absent))

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `ApiImages.save`."""
        if self._api is None or self._directory is None:
            raise SandboxLost("the provider is closed")
        return await ApiImages(self._api).save(references, self._directory)

    async def lacking_images(self, references: Sequence[str]) -> list[str]:
        """Those of `references` that no sandbox could be started from.

        Raises:
            SandboxLost: Podman is gone.
        """
        if self._api is None:
            raise SandboxLost("the provider is closed")
        absent = await ApiImages(self._api).lacking(references)
        there = await on_site(absent)
        return [reference for reference in absent if reference not in there]

    def _open(self) -> int:
        """Start the cell, or find that of a server before this one; returns the process that holds its namespaces."""
        self._rung = probe()
        self._rung.require(self.least_isolation)
        kept = self._store.take(_CELL)
        if not kept or not self._has_found(kept):
            self._make()
        assert self._cell
        self._api = PodmanApi(self._cell.socket)
        return self._cell.helper

    def _has_found(self, kept: Kept) -> bool:
        """Whether the cell of a server before this one lives; where it does not, nothing of it is left."""
        self._directory = Path(kept.data["directory"])
        self._held = found_sizes(self._directory)
        self._cell = Cell(self._directory)
        self._containers = Containers(self._cell)
        self._cell.process = Dependent(kept.data["helper"], *kept.descriptors[:2])
        self._containers.process = Dependent(kept.data["broker"], *kept.descriptors[2:])
        if self._cell.is_alive and self._containers.is_alive:
            discard_archives(self._directory)
            return True
        self._close()
        return False

    def _make(self) -> None:
        self._directory = make_private_directory(self.launch_id, self.run_directory, owner=self._store.owner)
        try:
            held = hold_sizes(self.launch_id, self._directory)
            LOG.info("%s; %s", self._rung, who_enforces(held))
            self._held = held if isinstance(held, HeldSizes) else None
            self._cell = Cell(self._directory, image_stores=[path for path in self.image_stores if path.is_dir()])
            self._cell.start()
            self._containers = Containers(self._cell, self._held.group.path if self._held else None)
            self._containers.start()
            helper, broker = self._cell.process, self._containers.process
            assert helper and broker
            record = {"directory": str(self._directory), "helper": helper.pid, "broker": broker.pid}
            self._store.put(_CELL, record, [*helper.descriptors, *broker.descriptors])
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._store.drop(_CELL)  # or its lifelines would still be held
        api, self._api = self._api, None
        containers, self._containers = self._containers, None
        cell, self._cell = self._cell, None
        held, self._held = self._held, None
        directory, self._directory = self._directory, None
        if api:
            api.close()
        if containers:
            containers.close()
        if cell:
            cell.stop()
        if held:
            held.close()
        if directory:
            remove_private_directory(directory)
