"""Locks of what a node's launches share: whoever makes something holds one, and the others find it made."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skyrl_stack.errors import SetupError

LOG = logging.getLogger(__name__)
LOCK_TIMEOUT_S = 1800.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock `file`, which is made where it is not there; it ends with this process, however that ends.

    Raises:
        SetupError: another launch does not let go of it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _await(descriptor, file)
        yield
    finally:
        os.close(descriptor)


def _await(descriptor: int, file: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    said = False
    while time.monotonic() < deadline:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                LOG.info("waiting for another launch that is making images")
                said = True
            time.sleep(0.2)
    raise SetupError(f"{file.with_suffix('')}: another launch has been making images for {LOCK_TIMEOUT_S:.0f} s")
