"""Search: tries candidates, a few at a time, until enough of them make a task."""

import asyncio
from collections import Counter
from itertools import islice
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.base import Say
from skyrl_stack.factory.candidates import Candidate, candidates
from skyrl_stack.factory.catalogue import Project
from skyrl_stack.factory.effects import Effect, baseline, effect
from skyrl_stack.factory.suite import Suite
from skyrl_stack.profile import TasksSection

AT_ONCE = 2
"Sandboxes that measure at once: enough for two cores, and what is found does not depend on it."


async def find_bugs(
    project: Project, root: Path, suite: Suite, section: TasksSection, say: Say
) -> list[tuple[Candidate, Effect]]:
    """The first `section.per_project` candidates, in the order of the seed, that make a task.

    Raises:
        SetupError: the project's own tests do not run, or it has too few bugs to give.
    """
    sound = baseline(*await asyncio.gather(suite.run(), suite.run()))
    if not sound:
        raise SetupError(f"{project.name} {project.version}: its tests do not run on this base image")
    say(f"{project.name} {project.version}: {len(sound)} tests")
    found: list[tuple[Candidate, Effect]] = []
    dropped: Counter[str] = Counter()
    supply = candidates(project, root, section.seed, section.strategies)
    while len(found) < section.per_project and (batch := list(islice(supply, AT_ONCE))):
        runs = await asyncio.gather(*(suite.run({candidate.file: candidate.buggy}) for candidate in batch))
        for candidate, run in zip(batch, runs, strict=True):
            outcome = effect(sound, run)
            if isinstance(outcome, Effect):
                found.append((candidate, outcome))
            else:
                dropped[outcome] += 1
    if len(found) < section.per_project:
        raise SetupError(f"{project.name}: gives {len(found)} tasks at most; lower tasks.per_project")
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"
    say(f"{project.name} {project.version}: {section.per_project} tasks; of the bugs tried, {reasons}")
    return found[: section.per_project]
