"""Scratch: node-local directories that say who made them, so that what the dead left can be told from what is in use.

    <tmp>/skyrl-<name>…/owner.json

`skyrl-stack sweep`, and the end of every launch, removes those whose owner is gone.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from skyrl_stack.node import LAUNCH_VARIABLE, Process

PREFIX = "skyrl-"
_OWNER = "owner.json"


class Owner(BaseModel):
    """Who made a directory. A process id alone could have been given to another process since."""

    model_config = ConfigDict(frozen=True)

    launch_id: str
    "Empty where it is of no launch."
    pid: int
    started: int
    "Clock ticks between boot and the start of the process."
    boot_id: str
    pid_namespace: str
    run_directory: str = ""

    @classmethod
    def this_process(cls, launch_id: str | None = None, run_directory: str = "") -> Self:
        """Without a `launch_id`, for the launch that the process is part of, if it is of any."""
        own = os.environ.get(LAUNCH_VARIABLE, "") if launch_id is None else launch_id
        return cls.process(os.getpid(), own, run_directory)

    @classmethod
    def process(cls, pid: int, launch_id: str, run_directory: str = "") -> Self:
        return cls(
            launch_id=launch_id,
            pid=pid,
            started=Process(pid).started or 0,
            boot_id=_boot_id(),
            pid_namespace=Process(pid).pid_namespace,
            run_directory=run_directory,
        )

    @property
    def is_alive(self) -> bool:
        """Whether it is, or may be: of a container's processes only the container knows."""
        if self.boot_id != _boot_id():
            return False
        elsewhere = self.pid_namespace != Process(os.getpid()).pid_namespace
        return elsewhere or Process(self.pid).started == self.started

    def sign(self, directory: Path) -> None:
        """Say in `directory` whose it is."""
        (directory / _OWNER).write_text(self.model_dump_json())


def read_owner(directory: Path) -> Owner | None:
    """The owner of a directory, if it says so."""
    try:
        return Owner.model_validate(json.loads((directory / _OWNER).read_bytes()))
    except (OSError, ValueError):
        return None


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """A directory for this block alone, mode 0700; `what` is for whoever finds it."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{what}-") as name:
        directory = Path(name)
        Owner.this_process().sign(directory)
        yield directory


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
