"""Fixtures that several suites share."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import skyrl_stack.agent  # noqa: F401 (prepares the environment, before a test imports OpenHands)
from frozen_site import Site, ordinary_user
from lanes import cannot_run
from rootfs import CHANGES, build_rootfs
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
def tiny_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of bash, git and a few programs of this machine."""
    tar = tmp_path_factory.mktemp("tiny") / "rootfs.tar"
    build_rootfs(tar)
    return tar


@pytest.fixture(scope="session")
def tiny_image(tests_cache: Path, tiny_rootfs: Path) -> str:
    """Its image, in the tests' cache. For tests marked `podman`."""
    with tiny_rootfs.open("rb") as tar:
        reference = f"localhost/skyrl/tests-tiny:{hashlib.file_digest(tar, 'sha256').hexdigest()[:16]}"

    async def ensure() -> None:
        async with ImageStore(image_store_path(tests_cache)) as images:
            if not await images.has(reference):
                await images.import_rootfs(tiny_rootfs, reference, changes=CHANGES)

    asyncio.run(ensure())
    return reference


@pytest.fixture(scope="module")
def ordinary_site() -> Iterator[Site]:
    """Of an ordinary user who has Apptainer."""
    with ordinary_user() as site:
        yield site


@pytest.fixture(scope="module")
def frozen_site(ordinary_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Of one who has runtime.sif, too: built once in a run of tests, by the worker that needs it first."""
    shared = tmp_path_factory.getbasetemp()
    ordinary_site.build_once(shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared)
    return ordinary_site


@pytest.fixture(scope="module")
def podman_socket(tests_cache: Path) -> Iterator[Path]:
    """That of a rootless Podman, which has the images of the tests, and containers nowhere else."""
    directory = make_private_directory(secrets.token_hex(8))
    try:
        with Cell(directory, image_stores=[image_store_path(tests_cache)]) as cell:
            yield cell.socket
    finally:
        remove_private_directory(directory)
