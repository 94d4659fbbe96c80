"""Grade: carries a patch to a fresh sandbox, runs the task's tests there and lets swebench decide.

    patch ──▶ fresh sandbox: apply ▶ restore what is protected ▶ eval script ──▶ log ──▶ swebench ──▶ Grade
                                                                     resolved? once more, with broken tests: control.py

No verdict, twice, may be the fault of the machine or of the patch. Every signature by which swebench knows a broken
environment can come from a policy too: it can use up the memory, print "Killed", delete what tests import, or leave
nothing to collect. So the log is not asked. The tests run once more without the patch: if they run then, the patch
is what stopped them, and it is not resolved; if not, the machine is to blame, and there is no grade.
"""

import asyncio
import time
from typing import Literal

from pydantic import BaseModel, ConfigDict

from skyrl_stack.errors import GradingFailed, InfrastructureError, SandboxExpired, SandboxLost, SandboxStartFailed
from skyrl_stack.grading.apply import apply_patch, enters_git_directory
from skyrl_stack.grading.control import Control, control_of, passed_although_broken
from skyrl_stack.grading.start import set_up
from skyrl_stack.grading.verdict import Tally, judge
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxProvider, SandboxSpec
from skyrl_stack.sandbox.script import ScriptRun, run_script
from skyrl_stack.tasks.evaluation import specification
from skyrl_stack.tasks.task import Task

ATTEMPTS = 2
LEASE_MARGIN_S = 60.0


Reason = Literal[
    "Resolved",
    "TestsFailed",
    "EmptyPatch",
    "PatchRefused",  # it would write into .git
    "PatchDoesNotApply",
    "TestsTimedOut",
    "TestsDidNotRun",  # but do so without the patch
    "ReportForged",
]


class Grade(BaseModel):
    """What the tests said of one patch: facts; the reward is made of them elsewhere."""

    model_config = ConfigDict(frozen=True)

    resolved: bool
    reason: Reason
    patch_applied: bool = False
    fail_to_pass: Tally = Tally()
    pass_to_pass: Tally = Tally()
    seconds: float = 0.0


async def grade(
    task: Task, patch: str, sandboxes: SandboxProvider, *, timeout_s: float, limits: RuntimeSection | None = None
) -> Grade:
    """Grade `patch`. `timeout_s` is the wall time of one run of the tests.

    Raises:
        GradingFailed: the tests could not be run; says nothing about the patch.
        RuntimeUnavailable: the runtime server cannot be reached.
    """
    started = time.monotonic()
    trial = _Trial(task, sandboxes, timeout_s=timeout_s, limits=limits or RuntimeSection())
    verdict = await _grade(trial, patch)
    return verdict.model_copy(update={"seconds": round(time.monotonic() - started, 3)})


async def grade_untouched(
    task: Task, sandboxes: SandboxProvider, *, timeout_s: float, limits: RuntimeSection | None = None
) -> Grade:
    """The grade of the repository as it is, which `grade` knows without asking the tests.

    Raises:
        InfrastructureError: the tests could not be run.
    """
    trial = _Trial(task, sandboxes, timeout_s=timeout_s, limits=limits or RuntimeSection())
    if verdict := await trial.run(""):
        return verdict
    raise GradingFailed(f"{task.instance_id}: the tests do not run")


async def _grade(trial: "_Trial", patch: str) -> Grade:
    if not patch.strip():
        return Grade(resolved=False, reason="EmptyPatch")
    if enters_git_directory(patch):
        return Grade(resolved=False, reason="PatchRefused")
    lost: InfrastructureError | None = None
    for _ in range(ATTEMPTS):
        try:
            if verdict := await trial.run(patch):
                return verdict
            lost = None
        except (SandboxLost, SandboxStartFailed) as error:
            lost = error
    if lost is None and await trial.runs_without_patch():
        return Grade(resolved=False, reason="TestsDidNotRun", patch_applied=True)
    raise GradingFailed(f"{trial.task.instance_id}: {lost or 'the tests do not run, even without the patch'}") from lost


class _Trial:
    """Runs of one task's tests, each in a sandbox of its own."""

    def __init__(self, task: Task, sandboxes: SandboxProvider, *, timeout_s: float, limits: RuntimeSection) -> None:
        self.task = task
        self.sandboxes = sandboxes
        self.timeout_s = timeout_s
        self.spec = SandboxSpec(image=task.image, lease_s=timeout_s + LEASE_MARGIN_S, **limits.sizes)

    async def run(self, patch: str) -> Grade | None:
        """The grade of `patch`, which may be empty, or None where the tests gave no verdict.

        Raises:
            SandboxLost, SandboxStartFailed: as the contract says.
        """
        script = (await asyncio.to_thread(specification, self.task.model_dump(mode="json"))).eval_script
        done = await self._play(patch, script)
        if done is None:
            return Grade(resolved=False, reason="PatchDoesNotApply")
        verdict = await asyncio.to_thread(_judge, self.task, done[0])
        if patch and verdict and verdict.resolved and (control := control_of(self.task, script)):
            return await self._confirm(verdict, patch, control)
        return verdict

    async def _play(self, patch: str, *scripts: str) -> list[ScriptRun] | None:
        """What `scripts`, one after the other, say of the repository with `patch`, or None where that does not apply.

        Raises:
            SandboxLost, SandboxStartFailed: as the contract says.
        """
        sandbox = await self.sandboxes.start(self.spec)
        try:
            await set_up(sandbox, self.task)
            if patch and not await apply_patch(sandbox, self.task, patch):
                return None
            return [await run_script(sandbox, script, timeout_s=self.timeout_s) for script in scripts]
        except SandboxExpired:
            return [ScriptRun(log="", timed_out=True, seconds=self.timeout_s)] * len(scripts)
        finally:
            await asyncio.shield(sandbox.stop())

    async def _confirm(self, verdict: Grade, patch: str, control: Control) -> Grade | None:
        """`verdict`, where broken tests fail with this patch, too; None where they do not even run.

        Raises:
            SandboxLost, SandboxStartFailed: as the contract says.
        """
        if not (done := await self._play(patch, *control)):
            return None
        passed = await asyncio.to_thread(passed_although_broken, self.task, *(run.log for run in done))
        if passed:
            return verdict.model_copy(update={"resolved": False, "reason": "ReportForged"})
        return verdict if passed is not None else None

    async def runs_without_patch(self) -> bool:
        """Whether the machine and the image are sound."""
        try:
            control = await self.run("")
        except (SandboxLost, SandboxStartFailed):
            return False
        return control is not None and control.reason != "TestsTimedOut"


def _judge(task: Task, run: ScriptRun) -> Grade | None:
    if run.timed_out:
        return Grade(resolved=False, reason="TestsTimedOut", patch_applied=True)
    verdict = judge(task, run.log)
    if verdict is None:
        return None
    return Grade(
        resolved=verdict.resolved,
        reason="ReportForged" if verdict.forged else "Resolved" if verdict.resolved else "TestsFailed",
        patch_applied=True,
        fail_to_pass=verdict.fail_to_pass,
        pass_to_pass=verdict.pass_to_pass,
    )
