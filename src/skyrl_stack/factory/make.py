"""Make: the tasks that a profile asks for, cached by content, with their images in the image store.

    sdist ─▶ sound repository ─▶ image ─▶ tests, twice ─▶ a bug ─▶ tests ─▶ buggy repository ─▶ image, row

Tests run in sandboxes of the images that agents and grades get, and the seed decides all the rest.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from skyrl_stack.factory.base import Say, ensure_base
from skyrl_stack.factory.candidates import suite_files
from skyrl_stack.factory.catalogue import Project, choose
from skyrl_stack.factory.images import digest, ensure_repository, ensure_requirements
from skyrl_stack.factory.index import fetch
from skyrl_stack.factory.repository import commit, reverse, unpack
from skyrl_stack.factory.rows import fix_of, make_row, recipe
from skyrl_stack.factory.search import find_bugs
from skyrl_stack.factory.suite import Suite
from skyrl_stack.profile import TasksSection
from skyrl_stack.records import write_atomic
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.scratch import scratch
from skyrl_stack.tasks.task import Task, read_tasks

FORMAT = "1"
"Goes up when the same project and seed make other tasks than before."


async def make_tasks(
    section: TasksSection, cache: Path, say: Say = print, *, own: Sequence[Project] | None = None
) -> Path:
    """The task file that `section` describes, below `cache`; all images of its rows are in the image store.

    Of the projects that it names in the catalogue, or of `own`.

    Same section, same bytes. Made once; afterwards only looked up.

    Raises:
        SetupError: a package, a base image or Podman is missing.
        ProfileError: no such project.
        InfrastructureError: a sandbox failed.
    """
    projects = choose(section.projects) if own is None else own
    async with ImageStore() as store:
        workshop = Workshop(store, await ensure_base(store, section.base_image, say), cache, say)
        tasks = [task for project in projects for task in await workshop.tasks(project, section)]
    path = cache / "tasks" / f"{digest(*(task.model_dump_json() for task in tasks))}.jsonl"
    if not path.is_file():
        write_tasks(path, tasks)
    return path


def write_tasks(path: Path, tasks: list[Task]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{task.model_dump_json()}\n" for task in tasks).encode())


class Workshop:
    """Makes tasks and images on one base, in one image store."""

    def __init__(self, store: ImageStore, base: str, cache: Path, say: Say) -> None:
        self.store = store
        self.base = base
        self.cache = cache
        self.downloads = cache / "downloads"
        self.say = say

    async def tasks(self, project: Project, section: TasksSection) -> list[Task]:
        """Tasks of one project, sorted by id, with their images."""
        requirements = await ensure_requirements(self.store, self.base, project.wheels, self.downloads)
        wanted = section.model_dump_json(include={"seed", "per_project", "strategies", "help"})
        key = digest(FORMAT, requirements, project.model_dump_json(), wanted)
        path = self.cache / "tasks" / f"{project.name}-{key}.jsonl"
        if not path.is_file():
            write_tasks(path, await self._make(project, requirements, section))
        tasks = list(read_tasks(path))
        for task in tasks:
            if not await self.store.has(task.image):
                await self._image(project, requirements, task.patch)
        return tasks

    async def _make(self, project: Project, requirements: str, section: TasksSection) -> list[Task]:
        sdist = fetch(project.sdist, self.downloads)
        with scratch("factory") as directory:
            root = directory / "sound"
            unpack(project, sdist, root)
            files = suite_files(project, root)
            image, head = await self._image(project, requirements, "")
            how = recipe(project, files=files, commit=head, image=image)
            async with PodmanSandboxes(secrets.token_hex(8), image_stores=[self.store.path]) as sandboxes:
                bugs = await find_bugs(project, root, Suite(sandboxes, how), section, self.say)
        tasks = []
        for candidate, effect in bugs:
            image, head = await self._image(project, requirements, fix_of(candidate))
            how = recipe(project, files=files, commit=head, image=image)
            tasks.append(make_row(project, candidate, effect, how, section.help))
        return sorted(tasks, key=lambda task: task.instance_id)

    async def _image(self, project: Project, requirements: str, fix: str) -> tuple[str, str]:
        """Image and commit of the project with the bug that `fix` would undo, or without a bug."""
        with scratch("repository") as directory:
            root = directory / "repository"
            unpack(project, fetch(project.sdist, self.downloads), root)
            if fix:
                reverse(root, fix)
            head = commit(root, project)
            return await ensure_repository(self.store, requirements, project, root, head), head
