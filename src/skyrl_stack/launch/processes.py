"""Processes of one launch on one machine: start a role, stop it in bounded time, find what it left.

Every process carries `SKYRL_LAUNCH_ID` in its environment, which children inherit whatever they do with
their session or parent; so what outlives a role can be told from everybody else's processes.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from skyrl_stack.node import LAUNCH_VARIABLE, LAUNCHER_VARIABLE, PYTHON_VARIABLE, end_with_parent, other_processes

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


def start(
    module: str,
    arguments: Sequence[str],
    *,
    launch_id: str,
    log: Path | None,
    python: Sequence[str] = (sys.executable,),
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in its own session; its output goes to `log`, or to ours where that is None.

    It gets SIGTERM when this process dies, however it dies. Call from the main thread: the kernel ties
    that signal to the thread that forked.
    """
    environment = os.environ | {
        LAUNCH_VARIABLE: launch_id,
        LAUNCHER_VARIABLE: str(os.getpid()),
        PYTHON_VARIABLE: shlex.join(python),
        "PYTHONUNBUFFERED": "1",
    }
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(
            [*python, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def stop(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """SIGTERM, then SIGKILL after `grace_s`; returns when the process is reaped."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def survivors(launch_id: str, *, launcher: int | None = None) -> list[int]:
    """Processes other than this one that carry the launch id, in no order; only those of one launcher if given."""
    marks = {(LAUNCH_VARIABLE, launch_id)} | (set() if launcher is None else {(LAUNCHER_VARIABLE, str(launcher))})
    return [process.pid for process in other_processes() if marks <= process.environment.items()]


def adopt_orphans() -> None:
    """Become the parent of what a role leaves when it dies, in place of process 1."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_adopted(holding: Path) -> None:
    """SIGKILL our children that have the file `holding` open."""
    for process in other_processes():
        if process.parent == os.getpid() and process.has_open_below(holding):
            _signal([process.pid], signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, 0)


def kill_survivors(launch_id: str, *, launcher: int | None = None, grace_s: float = 5.0) -> int:
    """SIGTERM what `survivors` finds, SIGKILL it after `grace_s`; returns how many there were."""
    victims = survivors(launch_id, launcher=launcher)
    _signal(victims, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := survivors(launch_id, launcher=launcher)) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal(left, signal.SIGKILL)
    return len(victims)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
