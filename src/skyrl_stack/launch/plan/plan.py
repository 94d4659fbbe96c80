"""Plan: does the profile fit where it is to run? Asked before anything is submitted.

`plan` is pure: a profile and what `survey` saw of the place, to needs and findings. An error names the nearest value
that works, and refuses the launch.
"""

from collections.abc import Iterator

from skyrl_stack.launch.plan.disk import disk, images
from skyrl_stack.launch.plan.findings import Finding, Need, Plan
from skyrl_stack.launch.plan.gpu import gpus
from skyrl_stack.launch.plan.queue import queue
from skyrl_stack.launch.plan.sandboxes import sandboxes
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.launch.plan.tasks import tasks
from skyrl_stack.profile import Profile
from skyrl_stack.site import SlurmLauncher


def plan(profile: Profile, survey: Survey) -> Plan:
    """What the profile needs beside what there is, and what speaks against it."""
    return Plan.of(_parts(profile, survey))


def _parts(profile: Profile, survey: Survey) -> Iterator[Need | Finding]:
    launcher = profile.launcher
    if isinstance(launcher, SlurmLauncher):
        yield from queue(launcher, profile.roles, survey)
        yield from _jobs(profile, launcher)
    yield from tasks(profile, survey)
    if "runtime" in profile.roles:
        yield from sandboxes(profile)
    if "trainer" in profile.roles:
        yield from gpus(profile, survey)
        yield from disk(profile, survey)
    if "runtime" in profile.roles:
        yield from images(profile)


def _jobs(profile: Profile, launcher: SlurmLauncher) -> Iterator[Finding]:
    runtime, trainer = launcher.runtime, launcher.trainer
    if profile.is_coupled and runtime.time_limit_s < trainer.time_limit_s:
        yield Finding(
            "error",
            f"launcher.runtime.time_limit = {runtime.time_limit} ends before the trainer's {trainer.time_limit} does: "
            f"at least {trainer.time_limit} works",
        )
    if runtime.gpus and "runtime" in profile.roles:
        yield Finding("warning", f"launcher.runtime.gpus = {runtime.gpus}: the runtime uses none")
    if trainer.gpus and profile.trainer.device == "cpu" and "trainer" in profile.roles:
        yield Finding("warning", f"launcher.trainer.gpus = {trainer.gpus}, but trainer.device = 'cpu' leaves them idle")
