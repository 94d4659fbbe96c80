"""Stop: end a run from outside, wherever it runs, and wait until it has ended."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from skyrl_stack.errors import RunDirectoryError
from skyrl_stack.launch import processes
from skyrl_stack.launch.runs import ROLES, look
from skyrl_stack.launch.slurm import client
from skyrl_stack.launch.slurm.render import job_name
from skyrl_stack.records import Launch
from skyrl_stack.run_directory import RunDirectory

END_TIMEOUT_S = 90.0
"Longer than a role's grace and Slurm's KillWait together."
POLL_S = 1.0


def stop_run(directory: RunDirectory, *, say: Callable[[str], None]) -> None:
    """Stop the run and return when it has ended.

    Raises:
        RunDirectoryError: it is not over in time, or belongs to another machine.
        SlurmUnreachable, SlurmRefused
    """
    run = look([directory])[0]
    if run.launch is None or run.is_over:
        say(f"{directory.path}: not running ({run.state})")
        return
    if run.is_slurm:
        client.cancel([job_name(role, run.launch.launch_id) for role in ROLES])
    else:
        _stop_here(run.launch)
    deadline = time.monotonic() + END_TIMEOUT_S
    while not (run := look([directory])[0]).is_over:
        if time.monotonic() > deadline:
            raise RunDirectoryError(f"{directory.path}: still {run.state} {END_TIMEOUT_S:.0f} s after it was stopped")
        time.sleep(POLL_S)
    say(f"{directory.path}: {run.state}")


def _stop_here(launch: Launch) -> None:
    """Tell the launcher, which ends its roles; where it is gone, end what it left."""
    if launch.host != Launch().host:
        raise RunDirectoryError(f"the run is one of {launch.host}; stop it there")
    if processes.survivors(launch.launch_id, launcher=launch.pid):
        with contextlib.suppress(ProcessLookupError):  # its processes name it as theirs, so it is no other's pid
            os.kill(launch.pid, signal.SIGTERM)
            return
    processes.kill_survivors(launch.launch_id)
