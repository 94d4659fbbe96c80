"""Checks: grades the patches of one task whose grade is known beforehand, and decides whether it may be trained on."""

from collections.abc import Sequence

from skyrl_stack.grading.grade import Grade, grade, grade_untouched
from skyrl_stack.grading.start import set_up
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import FileMissing, SandboxProvider, SandboxSpec
from skyrl_stack.tasks.manifest import Check, Verification, digest_of
from skyrl_stack.tasks.task import REPOSITORY, Task
from skyrl_stack.verification.tampers import files_to_read, tampered

GOLD, NO_OP = "gold", "no-op"


async def verify_task(
    task: Task, sandboxes: SandboxProvider, *, repeats: int, timeout_s: float, limits: RuntimeSection
) -> Verification:
    """The gold patch `repeats` times, no patch, and every tamper that the task allows. Stops at what decides.

    Raises:
        InfrastructureError: it cannot be decided; says nothing about the task.
    """
    checks: list[Check] = []

    async def check(name: str, patch: str | None) -> None:
        if patch is None:
            verdict = await grade_untouched(task, sandboxes, timeout_s=timeout_s, limits=limits)
        else:
            verdict = await grade(task, patch, sandboxes, timeout_s=timeout_s, limits=limits)
        checks.append(_check(name, verdict))

    for _ in range(repeats):
        await check(GOLD, task.patch)
        if not checks[-1].resolved:
            break
    if not why_not(checks):
        await check(NO_OP, None)
        for name, patch in tampered(task, await _files(task, sandboxes, limits)).items():
            await check(name, patch)
    why = why_not(checks)
    return Verification(
        instance_id=task.instance_id, digest=digest_of(task), accepted=not why, why=why, checks=tuple(checks)
    )


def why_not(checks: Sequence[Check]) -> str:
    """Why the task must not be trained on; empty where it may."""
    gold = [check for check in checks if check.name == GOLD]
    if failed := next((check for check in gold if not check.resolved), None):
        return f"flaky: gold is {failed.reason} once in {len(gold)}" if len(gold) > 1 else f"gold: {failed.reason}"
    fooled = [check.name for check in checks if check.name != GOLD and check.resolved]
    return f"resolved by: {', '.join(fooled)}" if fooled else ""


def _check(name: str, verdict: Grade) -> Check:
    return Check(name=name, resolved=verdict.resolved, reason=verdict.reason, seconds=verdict.seconds)


async def _files(task: Task, sandboxes: SandboxProvider, limits: RuntimeSection) -> dict[str, str | None]:
    """What the tampers start from, as the grader's sandbox has it."""
    sandbox = await sandboxes.start(SandboxSpec(image=task.image, workdir=REPOSITORY, **limits.sizes))
    try:
        await set_up(sandbox, task)
        files: dict[str, str | None] = {}
        for path in files_to_read(task):
            try:
                files[path] = (await sandbox.read_file(f"{REPOSITORY}/{path}")).decode(errors="replace")
            except FileMissing:
                files[path] = None
        return files
    finally:
        await sandbox.stop()
