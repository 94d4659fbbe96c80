"""Sandboxes of Apptainer: the contract on a node where a runtime can open no cell of its own."""

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skyrl_stack.errors import SandboxStartFailed, SetupError
from skyrl_stack.runtime_section import Isolation
from skyrl_stack.sandbox.apptainer.containers import Instances
from skyrl_stack.sandbox.apptainer.program import probe
from skyrl_stack.sandbox.apptainer.trees import Tree, Trees
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox, opened, start_failed
from skyrl_stack.sandbox.isolation import Rung
from skyrl_stack.sandbox.limits import Limits, of_shell
from skyrl_stack.sandbox.oci import DEFAULTS, Description
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory
from skyrl_stack.sandbox.supply import Supply

LOG = logging.getLogger(__name__)


class _Asked(Description):
    """`config` is what an instance is asked for."""

    def process(self, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        return {"args": argv, "env": environment}


class ApptainerSandboxes:
    """Starts sandboxes while the block runs; when it ends nothing of them is left. See `PodmanSandboxes`."""

    backbone = "the warden of Apptainer's sandboxes"
    last_words = "it said nothing"

    def __init__(
        self,
        launch_id: str,
        *,
        reason: str,
        run_directory: str = "",
        output_limit: int = 256 * 1024,
        isolation: Isolation = "shared-uid",
        owner: int | None = None,
    ) -> None:
        """`reason` is why this node gives nothing better."""
        self.launch_id = launch_id
        self.adopted: dict[str, EngineSandbox] = {}
        "See `PodmanSandboxes`. There are never any: the server's death closed their lifelines."
        self._owner = owner
        self.run_directory = run_directory
        self.output_limit = output_limit
        self.least_isolation: Isolation = isolation
        self.rung = Rung("weak", (f"a sandbox of Apptainer is uid {os.geteuid()}, for there is no Podman's: {reason}",))
        self._trees = Trees()
        self._directory: Path | None = None
        self._supply = Supply(lambda reference: asyncio.to_thread(self._trees.bring, reference))
        self._starting = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self._end()

    async def reopen(self) -> None:
        """Begin anew after the warden died, with no sandbox."""
        await self._end()
        await self._begin()

    @property
    def is_alive(self) -> bool:
        """Whether what keeps sandboxes to their sizes is."""
        return self._directory is not None and self._limits.is_alive

    @property
    def isolation(self) -> str:
        """See `PodmanSandboxes.isolation`."""
        return self.rung.isolation

    async def start(self, spec: SandboxSpec) -> EngineSandbox:
        """See `SandboxProvider.start`."""
        if self._directory is None:
            raise SandboxStartFailed("the provider is closed")
        name = f"sandbox-{secrets.token_hex(6)}"
        try:
            tree = await self._tree(spec.image)
        except (SetupError, OSError) as error:
            raise start_failed(spec, error) from error
        # Without user namespaces the kernel counts the processes of all sandboxes, and the user's own, at once.
        countable = spec if self._apptainer.is_unprivileged else spec.model_copy(update={"pids": None})
        sandbox = EngineSandbox(
            self._instances,
            name,
            self._describe(name, tree, spec),
            limits=self._limits,
            preamble=of_shell(countable),
            output_limit=self.output_limit,
        )
        return await opened(sandbox, spec, self._starting)

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `PodmanSandboxes.save_images`: there are no archives here, only directories."""
        raise SandboxStartFailed(f"cannot save {', '.join(references)}: a runtime with Apptainer has no archive of it")

    async def lacking_images(self, references: Sequence[str]) -> list[str]:
        """See `PodmanSandboxes.lacking_images`."""
        return await asyncio.to_thread(lambda: [name for name in references if not self._trees.can_have(name)])

    async def announce(self, references: Sequence[str]) -> None:
        """See `PodmanSandboxes.announce`."""
        self._supply.announce(await asyncio.to_thread(self._trees.to_bring, references))

    async def _tree(self, reference: str) -> Tree:
        tree = self._trees.find(reference)
        if tree is None:
            await self._supply.need(reference)
            tree = self._trees.find(reference)
        if tree is None:
            raise SetupError(f"{self._trees.path}: its tree was removed")
        return tree

    def _describe(self, name: str, tree: Tree, spec: SandboxSpec) -> Description:
        ours = {"container": "apptainer", "HOME": "/root", "HOSTNAME": name}
        asked = {
            "tree": tree,
            "variables": {**DEFAULTS, **ours, **tree.environment, **spec.environment},
            "own_network": self._apptainer.has_networks and spec.network == "none",
        }
        return _Asked([], asked, {}, spec.workdir or tree.workdir)

    async def _begin(self) -> None:
        self.rung.require(self.least_isolation)
        directory = await asyncio.to_thread(
            make_private_directory, self.launch_id, self.run_directory, owner=self._owner
        )
        try:
            self._apptainer = await asyncio.to_thread(probe, directory)
            self._instances = Instances(self._apptainer, directory / "sandboxes")
            self._limits = await Limits.start(exceeded=self._instances.kill_all)
        except BaseException:
            await asyncio.to_thread(remove_private_directory, directory)
            raise
        self._directory = directory
        LOG.info("%s; %s", self.rung, self._apptainer)

    async def _end(self) -> None:
        await self._supply.close()
        directory, self._directory = self._directory, None
        if directory:
            await self._limits.close()
            await self._instances.close()
            await asyncio.to_thread(remove_private_directory, directory)
