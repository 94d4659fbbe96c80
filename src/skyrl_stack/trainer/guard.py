"""Ends what a trainer leaves, however it ends: a process of its own that waits for the trainer's death.

`python -m skyrl_stack.trainer.guard DIRECTORY` reads standard input until its end, which comes when the trainer closes
the pipe or dies. Then every process that belongs to DIRECTORY is killed, and DIRECTORY removed. Ray's own agents
would stay for a minute after a kill -9, waiting for a server that is dead.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from skyrl_stack.node import other_processes

TIMEOUT_S = 10.0


def main(directory: str) -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # what ends the trainer must not end its guard
        signal.signal(number, signal.SIG_IGN)
    trainer = os.getppid()  # it has files of Ray open, and does not need to be killed: it has ended or is about to
    sys.stdin.buffer.read()
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        left = processes_of(directory) - {trainer}
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left and _removed(directory):
            return 0
        time.sleep(0.05)
    return 0 if _removed(directory) else 1


def _removed(directory: str) -> bool:
    """Remove it. Who was not seen yet, for it was just being started, may have written into it meanwhile."""
    shutil.rmtree(directory, ignore_errors=True)
    return not Path(directory).exists()


def processes_of(directory: str) -> set[int]:
    """Other processes that were started with TMPDIR set to `directory`, or that have a file in it open.

    All below the trainer are one or the other. Ray's processes change their title, which the kernel keeps in front
    of their environment and which may overwrite it; but they all have their logs open.
    """
    return {
        process.pid
        for process in other_processes()
        if process.environment.get("TMPDIR") == directory or process.has_open_below(Path(directory))
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
