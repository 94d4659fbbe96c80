"""Sandboxes of Apptainer: the contract on a node where a runtime can open no cell of its own."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from skyrl_stack.errors import SandboxStartFailed, SetupError
from skyrl_stack.sandbox.apptainer.containers import Instances
from skyrl_stack.sandbox.apptainer.program import probe
from skyrl_stack.sandbox.apptainer.trees import Tree, Trees
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.engine_sandboxes import Common, EngineSandboxes
from skyrl_stack.sandbox.isolation import Rung
from skyrl_stack.sandbox.limits import Limits, of_shell
from skyrl_stack.sandbox.oci import DEFAULTS, Description
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory

LOG = logging.getLogger(__name__)


class _Asked(Description):
    """`config` is what an instance is asked for."""

    def process(self, argv: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        return {"args": argv, "env": environment}


class ApptainerSandboxes(EngineSandboxes):
    """Sandboxes of Apptainer. None is ever adopted: a server's death closes their lifelines."""

    backbone = "the warden of Apptainer's sandboxes"

    def __init__(self, launch_id: str, *, reason: str, **common: Unpack[Common]) -> None:
        """`reason` is why this node gives nothing better."""
        super().__init__(launch_id, **common)
        self.rung = Rung("weak", (f"a sandbox of Apptainer is uid {os.geteuid()}, for there is no Podman's: {reason}",))
        self._trees = Trees()

    @property
    def is_alive(self) -> bool:
        """See `EngineSandboxes.is_alive`."""
        return self._is_open and self._limits.is_alive

    @property
    def last_words(self) -> str:
        """A warden has none."""
        return "it said nothing"

    async def _prepare(self, name: str, spec: SandboxSpec) -> EngineSandbox:
        tree = await self._tree(spec.image)
        # Without user namespaces the kernel counts the processes of all sandboxes, and the user's own, at once.
        countable = spec if self._apptainer.is_unprivileged else spec.model_copy(update={"pids": None})
        return EngineSandbox(
            self._instances,
            name,
            self._describe(name, tree, spec),
            limits=self._limits,
            preamble=of_shell(countable),
            output_limit=self.output_limit,
        )

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `EngineSandboxes.save_images`: there are no archives here, only directories."""
        raise SandboxStartFailed(f"cannot save {', '.join(references)}: a runtime with Apptainer has no archive of it")

    async def _absent(self, references: Sequence[str]) -> list[str]:
        return await asyncio.to_thread(lambda: [name for name in references if not self._trees.find(name)])

    async def _bring(self, reference: str) -> None:
        await asyncio.to_thread(self._trees.bring, reference)

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
        assert self.rung
        self.rung.require(self._least_isolation)
        directory = await asyncio.to_thread(
            make_private_directory, self.launch_id, self.run_directory, owner=self._store.owner
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
        await self._limits.close()
        await self._instances.close()
        await asyncio.to_thread(remove_private_directory, self._directory)
