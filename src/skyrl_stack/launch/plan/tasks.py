"""The tasks of a file: were they verified?"""

from collections.abc import Iterator

from skyrl_stack.errors import ProfileError
from skyrl_stack.launch.plan.findings import Finding, Need
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.profile import Profile
from skyrl_stack.tasks.manifest import require_verified


def tasks(profile: Profile, survey: Survey) -> Iterator[Need | Finding]:
    """How the tasks of `tasks.file` stand. Those that the factory makes are measured as they are made."""
    file, found = profile.tasks.file, survey.standing
    if file is None or found is None:
        return
    needed = f"{profile.trainer.tasks_per_step} a step" if "trainer" in profile.roles else "as its users need"
    yield Need("tasks", needed, f"{sum(found)}, {found.unverified} never verified")
    try:
        require_verified(file, found, unverified=profile.tasks.unverified)
    except ProfileError as error:
        yield Finding("error", str(error))
    if found.unverified and profile.tasks.unverified:
        yield Finding(
            "warning",
            f"UNVERIFIED: {found.unverified} of the {sum(found)} tasks of {file} were never verified; their "
            "rewards may be noise, or be had by cheating",
        )
