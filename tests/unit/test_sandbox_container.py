"""When a container of the OCI runtime is there."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from skyrl_stack.sandbox.container import Container, Refused


@contextmanager
def process_1(script: str) -> Iterator[Container]:
    """A container as it is once the runtime has returned, when its process 1 may still be the runtime's own."""
    container = Container("sandbox", ["crun"])
    with subprocess.Popen(["sh", "-c", script]) as process:
        container.pid, container._life = process.pid, os.pidfd_open(process.pid)
        try:
            yield container
        finally:
            process.kill()
            os.close(container._life)


def test_it_is_there_when_its_process_1_is() -> None:
    with process_1("sleep 0.3; exec sleep 60") as container:
        container._await_program("sleep")
        assert Path(f"/proc/{container.pid}/cmdline").read_text().split("\0")[:2] == ["sleep", "60"]


def test_one_whose_process_1_ends_before_that_is_refused() -> None:
    with process_1("sleep 0.3") as container, pytest.raises(Refused, match="does not become /run/init"):
        container._await_program("/run/init")
