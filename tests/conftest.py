"""Fixtures that several suites share."""

import asyncio
import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import skyrl_stack.agent  # noqa: F401 (prepares the environment, before a test imports OpenHands)
from lanes import cannot_run
from rootfs import build_rootfs
from skyrl_stack.errors import SetupError
from skyrl_stack.factory.make import make_tasks
from skyrl_stack.profile import TasksSection
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.namespaces import require_user_namespaces
from skyrl_stack.sandbox.podman_config import require_podman
from skyrl_stack.sandbox.storage import cache_dir, make_private_directory, remove_private_directory
from skyrl_stack.tasks.task import Task, read_tasks

os.environ |= {"RAY_worker_niceness": "0"}  # its own is 15: beside another file of tests its workers would starve

LONGEST_FIRST = ("slurm", "training", "apptainer", "podman")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that two workers end at about the same time."""

    def rank(item: pytest.Item) -> int:
        marked = (place for place, name in enumerate(LONGEST_FIRST) if item.get_closest_marker(name))
        return min(marked, default=len(LONGEST_FIRST))

    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(rank(item), ranks.get(item.path, len(LONGEST_FIRST)))
    items.sort(key=lambda item: ranks[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("podman") and (reason := _podman_missing()):
        cannot_run(reason)


@cache
def _podman_missing() -> str | None:
    try:
        require_podman()
        require_user_namespaces()
    except SetupError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def inflection_tasks() -> list[Task]:
    """Two real tasks, their images in the image store; made once per machine. For tests marked `podman`."""
    section = TasksSection(projects=("inflection",), per_project=2)
    return list(read_tasks(asyncio.run(make_tasks(section, cache_dir()))))


@pytest.fixture(scope="session")
def tests_cache() -> Path:
    """A cache of the tests' own, so that their images are not a user's; kept from run to run."""
    path = cache_dir() / "tests"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def tiny_image(tests_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with bash, git and a few programs of this machine, in the tests' cache. For tests marked `podman`."""
    tar = tmp_path_factory.mktemp("tiny") / "rootfs.tar"
    reference = f"localhost/skyrl/tests-tiny:{build_rootfs(tar)}"

    async def ensure() -> None:
        async with ImageStore(image_store_path(tests_cache)) as images:
            if not await images.has(reference):
                await images.import_rootfs(tar, reference, changes=("WORKDIR /testbed", "ENV HOME=/root"))

    asyncio.run(ensure())
    return reference


@pytest.fixture(scope="module")
def podman_socket(tests_cache: Path) -> Iterator[Path]:
    """That of a rootless Podman, which has the images of the tests, and containers nowhere else."""
    directory = make_private_directory(secrets.token_hex(8))
    try:
        with Cell(directory, image_stores=[image_store_path(tests_cache)]) as cell:
            yield cell.socket
    finally:
        remove_private_directory(directory)
