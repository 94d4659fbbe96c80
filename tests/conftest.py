"""Fixtures that several suites share."""

import asyncio

import pytest

from skyrl_stack.factory.make import make_tasks
from skyrl_stack.profile import TasksSection
from skyrl_stack.sandbox.storage import cache_dir
from skyrl_stack.tasks.task import Task, read_tasks


@pytest.fixture(scope="session")
def inflection_tasks() -> list[Task]:
    """Two real tasks, their images in the image store; made once per machine. For tests marked `podman`."""
    section = TasksSection(projects=("inflection",), per_project=2)
    return list(read_tasks(asyncio.run(make_tasks(section, cache_dir()))))
