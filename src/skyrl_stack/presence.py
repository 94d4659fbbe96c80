"""Presence: how one role shows that it lives, and notices that the other does not.

Both roles and the launcher share only the run directory, so a crash, a `kill -9` and a lost node all look
alike: a heartbeat that stopped. Under a launcher on the same machine its death is noticed too.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from skyrl_stack.errors import RunDirectoryError, StackError
from skyrl_stack.node import LAUNCHER_VARIABLE, Process
from skyrl_stack.records import Failure, Heartbeat, Incarnation, Load, publish, read_if_there
from skyrl_stack.room import NO_ROOM
from skyrl_stack.run_directory import SPARE_BYTES, Role, RunDirectory

INTERVAL_S = 2.0


class Presence:
    """Keeps `role`'s heartbeat fresh while the block runs and calls `on_lost` once if `peer` is gone.

    `peer` counts as gone when all its instances ended, failed, or were seen and then fell silent for the profile's
    `run.peer_timeout_s`; one that never appeared is the business of `RunDirectory.await_endpoint`. Where a job that was
    taken away comes back (`Profile.goes_on`), the silence of
    a role of this launch is the business of this role's job, which can ask the queue. `on_lost` runs in the
    heartbeat's thread and gets the reason in one line.
    """

    def __init__(self, directory: RunDirectory, role: Role, peer: Role, on_lost: Callable[[str], None]) -> None:
        self.directory = directory
        self.role: Role = role
        self.peer: Role = peer
        self.on_lost = on_lost
        self.me = Incarnation.here(directory.launch().launch_id)
        self._launcher = Process(int(os.environ.get(LAUNCHER_VARIABLE, "0")))
        self._launcher_started = self._launcher.started
        profile = directory.profile()
        self._goes_on = profile.goes_on
        # Of another launch's runtime no queue of ours knows whether it comes back.
        may_return = profile.goes_on and profile.is_coupled
        self._watch = Watch(directory, peer, profile.run.peer_timeout_s, may_return=may_return)
        self._state: str = "starting"
        self._load: Callable[[], Load] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"{role}-presence", daemon=True)

    def __enter__(self) -> Self:
        self._write("starting")
        self._thread.start()
        return self

    def ready(self, load: Callable[[], Load] | None = None) -> None:
        """Say that the role now does its work; `load` is asked for each heartbeat, in its thread."""
        self._state, self._load = "ready", load
        self._write("ready")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        failed = error is not None and not isinstance(error, SystemExit | KeyboardInterrupt)
        if failed:
            self.fail(str(error) if isinstance(error, StackError) else f"{type(error).__name__}: {error}")
        told_to_go = error is not None and self._goes_on
        with suppress(OSError):  # or the other role sees silence
            self._write("failed" if failed else "left" if told_to_go else "ended")

    def fail(self, cause: str) -> None:
        """Record why the run stops; the first cause of a launch stays."""
        record_failure(self.directory, self.me, self.role, cause)

    def _write(self, state: str) -> None:
        if not superseded(self.directory, self.role, self.me):
            write_heartbeat(self.directory, self.role, self.me, state, self._load() if self._load else None)

    def _beat(self) -> None:
        lost, written_at = False, time.monotonic()
        while not self._stop.wait(INTERVAL_S):
            try:
                self._write(self._state)
                written_at = time.monotonic()
                reason = self._reason()
            except (OSError, RunDirectoryError) as error:
                # A full or unreachable file system is not the peer's death, but after a while the peer sees ours.
                reason = str(error) if time.monotonic() - written_at > self._watch.timeout_s else None
            if reason and not lost:
                lost = True
                self.on_lost(reason)

    def _reason(self) -> str | None:
        if self._launcher.pid and (self._launcher_started is None or self._launcher.started != self._launcher_started):
            return "the launcher is gone"
        if self.directory.launch().launch_id != self.me.launch_id:
            return "another launch has taken over the run directory"
        if superseded(self.directory, self.role, self.me):
            return "Slurm has started this job again elsewhere"
        return self._watch.lost()


class Watch:
    """What this process sees of a role's heartbeats, by its own clock. To be asked every few seconds.

    The clocks of nodes differ, and a shared file system may show an old file for a while. So an instance is silent
    when its record has not changed for `timeout_s` here, whatever time the record says.
    """

    def __init__(self, directory: RunDirectory, role: Role, timeout_s: float, *, may_return: bool = False) -> None:
        self.directory = directory
        self.role: Role = role
        self.timeout_s = timeout_s
        self.may_return = may_return
        self._changed: dict[int, tuple[Heartbeat, float]] = {}
        self._looked_at = time.monotonic()

    def living(self) -> dict[int, Heartbeat]:
        """By instance: the heartbeats of those that live."""
        self._look()
        return {
            instance: heartbeat
            for instance, (heartbeat, changed_at) in self._changed.items()
            if heartbeat.is_alive and self._looked_at - changed_at <= self.timeout_s
        }

    def lost(self) -> str | None:
        """Why the role counts as gone; None while an instance lives or may be back, or none has appeared."""
        failure = self.directory.failure()
        if failure and failure.role == self.role:  # perhaps told by who started it: a killed role is mute
            return f"the {self.role} failed"
        if self.living() or not self._changed:
            return None
        if self.may_return and not all(heartbeat.is_over for heartbeat, _ in self._changed.values()):
            return None
        heartbeat, changed_at = max(self._changed.values(), key=lambda seen: seen[1])
        who = f"the {self.role}" if len(self._changed) == 1 else f"the last of {len(self._changed)} {self.role}s"
        return f"{who} {self._silent(changed_at) if heartbeat.is_alive else heartbeat.state}"

    def _silent(self, changed_at: float) -> str:
        return f"has been silent for {self._looked_at - changed_at:.0f} s"

    def _look(self) -> None:
        heartbeats, now = self.directory.heartbeats(self.role), time.monotonic()
        if now - self._looked_at > self.timeout_s:  # we were the ones who did not see: stopped, or without the files
            self._changed.clear()
        self._looked_at = now
        for instance, heartbeat in heartbeats.items():
            if instance not in self._changed or self._changed[instance][0] != heartbeat:
                self._changed[instance] = (heartbeat, now)


def write_heartbeat(directory: RunDirectory, role: Role, me: Incarnation, state: str, load: Load | None = None) -> None:
    """A sign of life of this process, or of its end."""
    record = Heartbeat.model_validate({**me.model_dump(), "state": state, "load": load})
    publish(directory.heartbeat_file(role, me.instance), record)


@contextmanager
def declare_gone(
    directory: RunDirectory, role: Role, me: Incarnation, *, comes_back: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """For who started the role, around the role's process.

    One that was killed cannot say that it is gone, and one that was told to go does not know whether it comes back.
    """
    try:
        yield
    finally:
        heartbeat = directory.heartbeats(role).get(me.instance)
        if heartbeat and heartbeat.restart == me.restart and not heartbeat.is_over and not comes_back():
            with suppress(OSError):
                write_heartbeat(directory, role, me, "failed" if heartbeat.is_alive else "ended")


def superseded(directory: RunDirectory, role: Role, me: Incarnation) -> bool:
    """Whether Slurm took this process for lost, and a later one has its place."""
    latest = read_if_there(directory.heartbeat_file(role, me.instance), Heartbeat)
    return latest is not None and latest.launch_id == me.launch_id and latest.restart > me.restart


def record_failure(
    directory: RunDirectory, me: Incarnation, role: Role, cause: str, *, told_to_stop: bool = False
) -> None:
    """Record why the run stops, unless it goes on: other instances live. The first cause of a launch stays."""
    others = [each for instance, each in directory.heartbeats(role).items() if instance != me.instance]
    goes_on = superseded(directory, role, me) or any(not each.is_over for each in others)
    if not goes_on and directory.failure() is None:
        _publish(directory, Failure(launch_id=me.launch_id, role=role, cause=cause, told_to_stop=told_to_stop))


def _publish(directory: RunDirectory, failure: Failure) -> None:
    """Record a failure; where no room is left, that is its cause, and the spare room is used to say so."""
    try:
        if shutil.disk_usage(directory.path).free >= SPARE_BYTES:
            publish(directory.failure_file, failure)
            return
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    directory.spare.unlink(missing_ok=True)
    cause = f"{directory.path}: no room is left; make some, then skyrl-stack resume goes on ({failure.cause})"
    publish(directory.failure_file, failure.model_copy(update={"cause": cause}))
