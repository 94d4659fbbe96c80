"""Tests beside each other and on any machine: what becomes of one that cannot run here, and of two that cannot meet."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

from skyrl_stack.sandbox.storage import cache_dir


def cannot_run(reason: str) -> NoReturn:
    """Fails CI; on a person's machine the test is skipped, with the reason."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def sweeping_alone() -> Iterator[None]:
    """A sweep is of the whole machine: no other test sweeps what this one has just left."""
    (cache_dir() / "tests").mkdir(exist_ok=True)
    with (cache_dir() / "tests/sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
