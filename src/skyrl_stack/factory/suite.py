"""Suite: the tests of a project in fresh sandboxes of its image, with or without a bug."""

import asyncio
from collections.abc import Mapping
from typing import Any

from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxProvider, SandboxSpec
from skyrl_stack.sandbox.script import run_script
from skyrl_stack.tasks.evaluation import specification, statuses
from skyrl_stack.tasks.task import REPOSITORY

TIMEOUT_S = 120.0
"Wall time of one run; a bug that loops for ever makes no task."


class Suite:
    """Runs what `recipe` says, under the limits that a profile gives sandboxes by default."""

    def __init__(self, sandboxes: SandboxProvider, recipe: Mapping[str, Any]) -> None:
        self.sandboxes = sandboxes
        self.recipe = recipe
        self.spec = SandboxSpec(image=recipe["image"], lease_s=2 * TIMEOUT_S, **RuntimeSection().sizes)

    async def run(self, changed: Mapping[str, str] | None = None) -> dict[str, str] | None:
        """Status by test id with the files `changed`, or None where the tests did not run to their end.

        Raises:
            InfrastructureError: of the sandbox.
        """
        script = (await asyncio.to_thread(specification, self.recipe)).eval_script
        sandbox = await self.sandboxes.start(self.spec)
        try:
            for file, content in (changed or {}).items():
                await sandbox.write_file(f"{REPOSITORY}/{file}", content.encode())
            run = await run_script(sandbox, script, timeout_s=TIMEOUT_S)
        finally:
            await asyncio.shield(sandbox.stop())
        return None if run.timed_out else await asyncio.to_thread(statuses, self.recipe, run.log)
