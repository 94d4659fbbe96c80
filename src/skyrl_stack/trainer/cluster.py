"""What a trainer keeps on its node while it runs: Ray's sessions and token, and everybody's temporary files."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skyrl_stack.scratch import PREFIX, Owner

_LONGEST_BASE = 9  # Ray puts sockets 98 characters below it, and the kernel takes 107


@contextmanager
def private_directory(launch_id: str, run_directory: Path) -> Iterator[Path]:
    """A node-local directory, mode 0700, that is also TMPDIR of this process and its children in the block.

    After the block, or this process's death, a guard kills those children and removes the directory;
    `skyrl-stack sweep` does it where the guard could not.
    """
    outer = tempfile.gettempdir()
    base = outer if len(outer) <= _LONGEST_BASE else "/tmp"
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{launch_id}-", dir=base))
    Owner.this_process(launch_id, str(run_directory)).sign(path)
    with _guard(path):
        _use_for_temporary_files(str(path))
        try:
            yield path
        finally:
            _use_for_temporary_files(outer)


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    """See `guard.py`. Its pipe is this process's alone: subprocess gives it to no other child."""
    command = [sys.executable, "-m", "skyrl_stack.trainer.guard", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield


def ray_directory(private: Path) -> Path:
    """Ray's own part of the private directory: Ray opens it to everybody, so it must not be the whole."""
    return private / "r"


def write_token(directory: Path, token: str | None = None) -> Path:
    """A token for Ray's own authentication, fresh if none is given; never on a command line, and for us alone."""
    file = directory / "ray_token"
    file.touch(mode=0o600)
    file.write_text(token or secrets.token_hex(32))
    return file


def _use_for_temporary_files(path: str) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = path
