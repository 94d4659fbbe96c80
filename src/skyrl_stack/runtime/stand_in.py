"""Stand-ins: runtimes of another launch in this run's directory, as if they were of this one.

    by HTTP                       in our run directory                 who looks there
    GET  /tasks                   tasks.jsonl, without `tasks.file`    the trainer
    their URL, our key file       endpoints/runtime-<n>.json           `Runtimes`: starts go where there is room
    POST /clients/<us>, 2 s       heartbeats/runtime-<n>.json          `Presence`: ends the run when all fell silent

They drop our sandboxes when such a sign of life stops coming, however this process ends.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from skyrl_stack.errors import PeerLost, ProfileError, StackError
from skyrl_stack.presence import INTERVAL_S
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint, Heartbeat, Incarnation, Load, publish, write_atomic
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.external import ExternalRuntime
from skyrl_stack.tasks.manifest import trainable_tasks
from skyrl_stack.tasks.task import read_tasks


@contextmanager
def standing_in(directory: RunDirectory) -> Iterator[None]:
    """Have the runtimes of `runtime.urls`, if there are any, stand in `directory`, which gets its tasks.

    Raises:
        PeerLost: one cannot be reached for `run.peer_timeout_s`.
        ProfileError: one is not what the profile takes it for, or lacks images.
        TaskError: the task file is malformed.
    """
    profile = directory.profile()
    runtimes = ExternalRuntime.all_of(profile.runtime)
    if not runtimes:
        yield
        return
    me = Incarnation.here(directory.launch().launch_id)
    for instance in range(len(runtimes)):  # of a start that was killed: old signs of life are none
        directory.heartbeat_file("runtime", instance).unlink(missing_ok=True)
    loads = [_meet(runtime, profile.run.peer_timeout_s) for runtime in runtimes]
    _provide_tasks(directory, profile, runtimes)
    _say_if_full(profile, loads)
    with ExitStack() as stack:
        for instance, (runtime, load) in enumerate(zip(runtimes, loads, strict=True)):
            stack.enter_context(StandIn(directory, runtime, me.model_copy(update={"instance": instance}), load))
        yield


class StandIn:
    """One runtime of another launch: its endpoint and its heartbeat, while the block runs."""

    def __init__(self, directory: RunDirectory, runtime: ExternalRuntime, me: Incarnation, load: Load) -> None:
        self._directory = directory
        self._runtime = runtime
        self._me = me
        self._client = f"{me.launch_id}.{me.restart}"
        self._load = load
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"stand-in-{me.instance}", daemon=True)

    def __enter__(self) -> Self:
        endpoint = Endpoint(
            **self._me.model_dump(), url=self._runtime.url, token=self._runtime.key, client=self._client
        )
        publish(self._directory.endpoint_file("runtime", self._me.instance), endpoint, mode=0o600)
        self._beat(self._load)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._remove()

    def _keep(self) -> None:
        """Its silence is what is noticed; who notices it is `Presence`."""
        answers = True
        while not self._stop.wait(INTERVAL_S):
            try:
                load = self._runtime.show_life(self._client)
                answers = True
            except StackError as error:
                if answers:
                    print(f"trainer: {error}", flush=True)
                answers = False
                continue
            with suppress(OSError):
                self._beat(load)
        if answers:
            with suppress(StackError):
                self._runtime.leave(self._client)

    def _beat(self, load: Load) -> None:
        record = {**self._me.model_dump(), "load": load, "host": urlsplit(self._runtime.url).hostname}
        publish(self._directory.heartbeat_file("runtime", self._me.instance), Heartbeat.model_validate(record))

    def _remove(self) -> None:
        """It has not ended, we have: a trainer that Slurm starts again must not take it for lost."""
        for file in (self._directory.endpoint_file, self._directory.heartbeat_file):
            file("runtime", self._me.instance).unlink(missing_ok=True)


def _meet(runtime: ExternalRuntime, patience_s: float) -> Load:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return runtime.greet()
        except PeerLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(INTERVAL_S)


def _provide_tasks(directory: RunDirectory, profile: Profile, runtimes: list[ExternalRuntime]) -> None:
    """Those that the run has already, of `tasks.file`, or of the first runtime; every runtime has their images."""
    if not directory.tasks_file.is_file():
        if file := profile.tasks.file:
            tasks = trainable_tasks(file, print, unverified=profile.tasks.unverified)
            rows = "".join(f"{task.model_dump_json()}\n" for task in tasks).encode()
        else:
            rows = runtimes[0].tasks()
        write_atomic(directory.tasks_file, rows)
    images = dict.fromkeys(task.image for task in read_tasks(directory.tasks_file))
    for runtime in runtimes:
        if lacking := runtime.lacking(images):
            raise ProfileError(
                f"runtime {runtime.url}: lacks {len(lacking)} of {len(images)} task images, such as {lacking[0]}: "
                "launch it with the same tasks, or train on its own (no tasks.file)"
            )


def _say_if_full(profile: Profile, loads: list[Load]) -> None:
    places, wanted = sum(load.capacity for load in loads), profile.trainer.concurrent_episodes
    if places < wanted:
        print(f"trainer: {places} sandboxes at most for trainer.concurrent_episodes = {wanted}: some wait", flush=True)
