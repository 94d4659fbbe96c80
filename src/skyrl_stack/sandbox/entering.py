"""Namespaces that exist, entered: a program of ours that lives in a cell, a signal to all processes of a sandbox."""

import os
import traceback
from collections.abc import Callable
from contextlib import suppress

from skyrl_stack.sandbox.namespaces import become_root


def run_in_cell(helper: int, program: Callable[[], None]) -> int:
    """Run `program` as root of the namespaces that the process `helper` made; returns the exit code.

    In a child, for a process does not change its own pid namespace.
    """
    kinds = {"user": os.CLONE_NEWUSER, "mnt": os.CLONE_NEWNS, "pid_for_children": os.CLONE_NEWPID}
    opened = [(os.open(f"/proc/{helper}/ns/{name}", os.O_RDONLY), kind) for name, kind in kinds.items()]
    for descriptor, kind in opened:
        os.setns(descriptor, kind)
        os.close(descriptor)
    become_root()
    return _in_child(program)


def signal_all(pid: int, number: int) -> None:
    """Send a signal to all processes of the pid namespace that `pid` is process 1 of, but for itself.

    By one call from inside: the kernel forks none while it is at it, so that no bomb escapes.

    Raises:
        OSError: the process is gone.
    """
    namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)

    def send() -> None:
        with suppress(ProcessLookupError):  # there are none
            os.kill(-1, number)

    def enter() -> None:
        os.setns(namespace, os.CLONE_NEWPID)
        _in_child(send)

    try:
        _in_child(enter)
    finally:
        os.close(namespace)


def _in_child(function: Callable[[], None]) -> int:
    """Call `function` in a child; returns its exit code, 1 where it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF
