"""Sandboxes of Podman: the contract over a cell that is this launch's own."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.api import PodmanApi
from skyrl_stack.sandbox.api_images import ApiImages, discard_archives
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.containers import Containers
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.dependent import Dependent
from skyrl_stack.sandbox.engine_sandbox import KEPT, EngineSandbox
from skyrl_stack.sandbox.engine_sandboxes import Common, EngineSandboxes
from skyrl_stack.sandbox.held import HeldSizes, found_sizes, hold_sizes, who_enforces
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.isolation import probe
from skyrl_stack.sandbox.keeping import Kept
from skyrl_stack.sandbox.limits import Limits, of_shell
from skyrl_stack.sandbox.oci import Description, NoSuchImage, Patterns
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from skyrl_stack.sandbox.supply import bring_to

LOG = logging.getLogger(__name__)
_CELL = "cell"
"By this key what sandboxes are in is kept for a server after this one."


class PodmanSandboxes(EngineSandboxes):
    """Sandboxes of a cell."""

    backbone = "Podman's service"

    def __init__(self, launch_id: str, *, image_stores: Sequence[Path], **common: Unpack[Common]) -> None:
        """What the node lacks, and the site's store has, goes into the first of `image_stores`, of one or more."""
        super().__init__(launch_id, **common)
        self.image_stores = tuple(image_stores)
        self._directory: Path | None = None
        self._cell: Cell | None = None
        self._api: PodmanApi | None = None
        self._containers: Containers | None = None
        self._held: HeldSizes | None = None
        self._limits: Limits | None = None
        self._patterns = Patterns(self.image_stores)

    async def _begin(self) -> None:
        async with ImageStore(self.image_stores[0]) as store:
            await store.make()  # Podman sees what is added to those stores that it began with
        helper = await asyncio.to_thread(self._open)
        try:
            self._limits = await Limits.start(helper, held=self._held)
            found = self._store.take_below(KEPT)
            await asyncio.gather(*(self._adopt(name, kept.data) for name, kept in found.items()))
        except BaseException:
            await self._end()
            raise

    async def _end(self) -> None:
        limits, self._limits = self._limits, None
        if limits:
            await limits.close()
        await asyncio.to_thread(self._close)

    @property
    def is_alive(self) -> bool:
        """See `EngineSandboxes.is_alive`."""
        parts = (self._cell, self._containers, self._limits)
        return all(part is not None and part.is_alive for part in parts)

    @property
    def last_words(self) -> str:
        """What Podman's service said last."""
        return self._cell.last_words if self._cell else ""

    async def _prepare(self, name: str, spec: SandboxSpec) -> EngineSandbox:
        if self.rung and not self.rung.has_networks:
            spec = spec.model_copy(update={"network": "host"})
        return self._sandbox(name, await self._describe(name, spec), spec)

    def _sandbox(self, name: str, description: Description, spec: SandboxSpec) -> EngineSandbox:
        assert self._containers and self._limits
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

    async def _describe(self, name: str, spec: SandboxSpec) -> Description:
        assert self._api
        api = self._api

        def describe() -> Description:
            return self._patterns.describe(api, name, spec)

        try:
            return await api.in_thread(describe)
        except NoSuchImage:
            await self._supply.need(spec.image)
            return await api.in_thread(describe)

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `ApiImages.save`."""
        self._require_open()
        assert self._api and self._directory
        return await ApiImages(self._api).save(references, self._directory)

    async def _absent(self, references: Sequence[str]) -> list[str]:
        assert self._api
        return await ApiImages(self._api).lacking(references)

    async def _bring(self, reference: str) -> None:
        await bring_to(self.image_stores[0], reference)

    def _open(self) -> int:
        """Start the cell, or find that of a server before this one; returns the process that holds its namespaces."""
        self.rung = probe()
        self.rung.require(self._least_isolation)
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
            LOG.info("%s; %s", self.rung, who_enforces(held))
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
