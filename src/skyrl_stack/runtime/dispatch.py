"""Dispatch: all runtimes of a run as one `SandboxProvider`; they may come, go and be started again meanwhile."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from skyrl_stack.errors import RunDirectoryError, RuntimeUnavailable, SandboxStartFailed
from skyrl_stack.presence import INTERVAL_S, Watch
from skyrl_stack.records import Endpoint, Heartbeat, Load
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RemoteSandbox, RuntimeClient
from skyrl_stack.runtime.wire import Full
from skyrl_stack.sandbox.contract import SandboxSpec

LOG = logging.getLogger(__name__)
_WAIT_S = 2.0
"How long a start waits for a place at one runtime before it looks for another."
_SHUN_S = 30.0
"One that just failed has no load, and would draw every start to itself."
_PAUSE_S = 0.5


@dataclass(eq=False)
class Runtime:
    """One runtime, as far as it is known here."""

    endpoint: Endpoint
    client: RuntimeClient
    capacity: int
    heartbeat: Heartbeat | None = None
    shunned_until: float = 0.0
    _open_then: int = 0
    "How many of the sandboxes that its heartbeat counts are ours."

    def hears(self, heartbeat: Heartbeat) -> None:
        if heartbeat != self.heartbeat:
            self.heartbeat, self._open_then = heartbeat, self.client.open

    def fullness(self) -> float:
        """Sandboxes per place: what it said last, and what we have started or stopped since."""
        load = (self.heartbeat and self.heartbeat.load) or Load(capacity=self.capacity, alive=0, waiting=0)
        return (load.alive + load.waiting + self.client.open - self._open_then) / load.capacity

    def shun(self) -> None:
        self.shunned_until = time.monotonic() + _SHUN_S

    @property
    def is_shunned(self) -> bool:
        return time.monotonic() < self.shunned_until


class Runtimes:
    """Starts each sandbox at the runtime with the most room. Belongs to the event loop that first uses it.

    A start that is refused, finds no place or loses its runtime goes to another. It waits for as long as all are full
    or none is there: whether the run goes on without a runtime is for `Presence` to say, and every place becomes free
    when a lease ends. The sandboxes of a runtime that is lost are lost at once, calls under way included.
    """

    def __init__(self, directory: RunDirectory) -> None:
        profile = directory.profile()
        self._directory = directory
        self._watch = Watch(directory, "runtime", profile.run.peer_timeout_s)
        self._capacity = profile.runtime.max_sandboxes
        self._patience_s = max(profile.runtime.start_timeout_s, profile.run.peer_timeout_s)
        self._runtimes: dict[int, Runtime] = {}
        self._has_looked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._looking:
            self._looking.cancel()
        for instance in list(self._runtimes):
            await self._drop(instance, "closed")

    async def start(self, spec: SandboxSpec) -> RemoteSandbox:
        """See `SandboxProvider.start`.

        Raises:
            SandboxStartFailed: two runtimes refused, or the only one with room.
            RuntimeUnavailable: runtimes show life, but have not answered rightly for `runtime.start_timeout_s`.
        """
        self._looking = self._looking or asyncio.create_task(self._keep_looking())
        await self._has_looked.wait()
        refused_by: Runtime | None = None
        refusal: SandboxStartFailed | None = None
        failing_since: float | None = None
        while True:
            runtime = self._roomiest(refused_by)
            if runtime is None:
                if refusal:
                    raise refusal
                failing_since = None
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                return await runtime.client.start(spec, wait_s=_WAIT_S)
            except Full:
                if refusal:
                    raise refusal from None
                failing_since = None
            except SandboxStartFailed as error:
                runtime.shun()
                if refusal:
                    raise
                refused_by, refusal = runtime, error
            except RuntimeUnavailable as error:
                runtime.shun()
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > self._patience_s:
                    raise
                LOG.warning("a start goes to another runtime: %s", error)
                await asyncio.sleep(_PAUSE_S)

    def _roomiest(self, but: Runtime | None) -> Runtime | None:
        candidates = [runtime for runtime in self._runtimes.values() if runtime is not but]
        return min(candidates, key=lambda runtime: (runtime.is_shunned, runtime.fullness()), default=None)

    async def _keep_looking(self) -> None:
        while True:
            with suppress(OSError, RunDirectoryError):  # a shared file system that is away says nothing
                living, endpoints = await asyncio.to_thread(self._look)
                await self._update(living, endpoints)
                self._has_looked.set()
            await asyncio.sleep(INTERVAL_S)

    def _look(self) -> tuple[dict[int, Heartbeat], dict[int, Endpoint]]:
        return self._watch.living(), self._directory.endpoints("runtime")

    async def _update(self, living: dict[int, Heartbeat], endpoints: dict[int, Endpoint]) -> None:
        there = {
            instance: endpoint
            for instance, endpoint in endpoints.items()
            if instance in living and living[instance].restart == endpoint.restart
        }
        for instance, runtime in list(self._runtimes.items()):
            if there.get(instance) != runtime.endpoint:
                await self._drop(instance, "is gone")
        for instance, endpoint in there.items():
            if instance not in self._runtimes:
                LOG.info("runtime %d at %s", instance, endpoint.url)
                self._runtimes[instance] = Runtime(endpoint, RuntimeClient(endpoint), self._capacity)
            self._runtimes[instance].hears(living[instance])

    async def _drop(self, instance: int, why: str) -> None:
        runtime = self._runtimes.pop(instance)
        await runtime.client.abandon(f"runtime {instance} at {runtime.endpoint.url} {why}")
