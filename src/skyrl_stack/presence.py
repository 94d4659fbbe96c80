"""Presence: how one role shows that it lives, and notices that the other does not.

Both roles and the launcher share only the run directory, so a crash, a `kill -9` and a lost node all look
alike: a heartbeat that stopped. Under a launcher on the same machine its death is noticed too.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skyrl_stack.errors import StackError
from skyrl_stack.run_directory import Failure, Heartbeat, Role, RunDirectory, publish

INTERVAL_S = 2.0


class Presence:
    """Keeps `role`'s heartbeat fresh while the block runs and calls `on_lost` once if `peer` is gone.

    `peer` counts as gone when it ended, failed, or was seen and then fell silent for the profile's
    `run.peer_timeout_s`; one that never appeared is the business of `RunDirectory.await_endpoint`.
    `on_lost` runs in the heartbeat's thread and gets the reason in one line.
    """

    def __init__(self, directory: RunDirectory, role: Role, peer: Role, on_lost: Callable[[str], None]) -> None:
        self.directory = directory
        self.role: Role = role
        self.peer: Role = peer
        self.on_lost = on_lost
        self.launch_id = directory.launch().launch_id
        self.timeout_s = directory.profile().run.peer_timeout_s
        self.launcher_pid = int(os.environ.get("SKYRL_LAUNCHER_PID", "0"))
        self._state: str = "starting"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"{role}-presence", daemon=True)

    def __enter__(self) -> Self:
        self._write("starting")
        self._thread.start()
        return self

    def ready(self) -> None:
        """Say that the role now does its work."""
        self._state = "ready"
        self._write("ready")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        failed = error is not None and not isinstance(error, SystemExit | KeyboardInterrupt)
        if failed:
            self.fail(str(error) if isinstance(error, StackError) else f"{type(error).__name__}: {error}")
        self._write("failed" if failed else "ended")

    def fail(self, cause: str) -> None:
        """Record why the run stops; the first cause of a launch stays."""
        record_failure(self.directory, self.launch_id, self.role, cause)

    def _write(self, state: str) -> None:
        record = Heartbeat.model_validate({"launch_id": self.launch_id, "at": time.time(), "state": state})
        publish(self.directory.heartbeat_file(self.role), record)

    def _beat(self) -> None:
        lost = False
        while not self._stop.wait(INTERVAL_S):
            try:
                self._write(self._state)
                reason = None if lost else self._reason()
            except OSError:
                continue  # a full or briefly unreachable shared file system is not the peer's death
            if reason:
                lost = True
                self.on_lost(reason)

    def _reason(self) -> str | None:
        if self.launcher_pid and os.getppid() != self.launcher_pid:
            return "the launcher is gone"
        if self.directory.launch().launch_id != self.launch_id:
            return "another launch has taken over the run directory"
        return lost_peer(self.directory, self.peer, self.timeout_s)


def record_failure(
    directory: RunDirectory, launch_id: str, role: Role, cause: str, *, told_to_stop: bool = False
) -> None:
    """Record why the run stops; the first cause of a launch stays."""
    if directory.failure() is None:
        failure = Failure(launch_id=launch_id, role=role, cause=cause, told_to_stop=told_to_stop)
        publish(directory.failure_file, failure)


def lost_peer(directory: RunDirectory, peer: Role, timeout_s: float) -> str | None:
    """Why `peer` counts as gone; None while it lives, or has not appeared."""
    if (
        failure := directory.failure()
    ) and failure.role == peer:  # perhaps told by who started it: a killed role is mute
        return f"the {peer} failed"
    heartbeat = directory.heartbeat(peer)
    if heartbeat is None:
        return None
    if heartbeat.state in ("ended", "failed"):
        return f"the {peer} {heartbeat.state}"
    silent = time.time() - heartbeat.at
    return f"the {peer} has been silent for {silent:.0f} s" if silent > timeout_s else None
