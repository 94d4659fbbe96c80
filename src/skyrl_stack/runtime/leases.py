"""Leases: which sandboxes live, for how long, and on which port each one answers.

Every call renews a lease; one that nobody called for its duration ends, so a client that died leaves nothing. Starts
wait in order for one of `max_sandboxes` places.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from skyrl_stack.records import Load
from skyrl_stack.runtime.clients import Clients
from skyrl_stack.runtime.lease import KEPT, Lease
from skyrl_stack.runtime.metrics import Metrics
from skyrl_stack.runtime.places import Places
from skyrl_stack.runtime.ports import inherited_port, open_port
from skyrl_stack.runtime.wire import Conflict, Full, StartRequest, Unknown
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.engine_sandboxes import EngineSandboxes
from skyrl_stack.sandbox.keeping import UNKEPT, Kept, Store

LOG = logging.getLogger(__name__)
REAP_INTERVAL_S = 0.5

Listen = Callable[[socket.socket], Awaitable[asyncio.Server]]


class Leases:
    """All leases of one runtime; when the block ends so do they.

    `listen` serves the data plane on one more port. Those of a server before this one are in `store`, and go on.
    """

    def __init__(
        self,
        sandboxes: EngineSandboxes,
        section: RuntimeSection,
        listen: Listen,
        *,
        client_timeout_s: float,
        store: Store = UNKEPT,
    ) -> None:
        self.clients = Clients(client_timeout_s)
        self._sandboxes = sandboxes
        self._section = section
        self._listen = listen
        self._places = Places(section.max_sandboxes)
        self._store = store
        self._metrics = Metrics(restarts=store.deaths)
        self._leases: dict[str, Lease] = {}
        self._starting: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._adopt_all()
        self._reaper = asyncio.create_task(self._reap())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._reaper.cancel()
        await self.end_all()

    def __len__(self) -> int:
        return len(self._leases)

    async def save_images(self, references: Sequence[str]) -> Path:
        """See `PodmanSandboxes.save_images`."""
        return await self._sandboxes.save_images(references)

    async def lacking_images(self, references: Sequence[str]) -> list[str]:
        """See `PodmanSandboxes.lacking_images`."""
        return await self._sandboxes.lacking_images(references)

    @property
    def isolation(self) -> str:
        """See `PodmanSandboxes.isolation`."""
        return self._sandboxes.isolation

    def load(self) -> Load:
        """How full the runtime is; one that is being started counts as alive."""
        waiting = self._places.waiting
        alive = len(self._leases) + len(self._starting) - waiting
        return Load(capacity=self._places.capacity, alive=alive, waiting=waiting)

    @property
    def oldest_wait_s(self) -> float:
        """How long the first in the queue has waited for a place; 0 where nobody waits."""
        return self._places.oldest_wait_s

    def metrics(self) -> str:
        """What Prometheus reads."""
        return self._metrics.text(self.load(), self.oldest_wait_s)

    def get(self, runtime_id: str) -> Lease:
        """The lease of a sandbox.

        Raises:
            Unknown: there is none, or no longer.
        """
        if runtime_id not in self._leases:
            raise Unknown(f"no sandbox {runtime_id}; it was stopped, or its lease ended")
        return self._leases[runtime_id]

    def of_session(self, session_id: str) -> Lease:
        """The lease that the client named.

        Raises:
            Unknown: there is none, or no longer.
        """
        found = self._find(lambda lease: lease.session_id == session_id)
        if found is None:
            raise Unknown(f"no sandbox for session {session_id}")
        return found

    def of_port(self, port: int) -> Lease | None:
        """The lease that answers on a port."""
        return self._find(lambda lease: lease.port == port)

    async def start(self, request: StartRequest) -> Lease:
        """Start a sandbox for a session, or find the one it has.

        Raises:
            Conflict: the session is being started by another call, or was by a request that differs.
            Full: no place became free in time.
            SandboxStartFailed: Podman refused.
        """
        if request.client:
            self.clients.heard(request.client)
        if existing := self._find(lambda lease: lease.session_id == request.session_id):
            if existing.request != request:
                raise Conflict(f"session {request.session_id} has a sandbox already, by a request that differs")
            return existing
        if request.session_id in self._starting:
            raise Conflict(f"session {request.session_id} is being started")
        self._starting.add(request.session_id)
        try:
            await self._take_place(request.wait_s or self._section.start_timeout_s)
            lease = await self._create_in_place(request)
        finally:
            self._starting.discard(request.session_id)
        self._leases[lease.id] = lease
        lease.keep()
        return lease

    async def pause(self, lease: Lease) -> None:
        """Let every process of a sandbox stand still."""
        with lease.in_use():
            await lease.sandbox.pause()
            lease.status = "paused"
            lease.keep()

    async def resume(self, lease: Lease) -> None:
        """Let every process of a sandbox go on."""
        with lease.in_use():
            await lease.sandbox.resume()
            lease.status = "running"
            lease.keep()

    async def end(self, lease: Lease) -> None:
        """Remove a sandbox and give its place to the next. Idempotent."""
        if self._leases.pop(lease.id, None) is None:
            return
        try:
            lease.close()
            await asyncio.shield(asyncio.gather(lease.sandbox.stop(), lease.commands.stop_all()))
        finally:
            self._places.give_back()

    async def end_all(self) -> None:
        """Remove every sandbox that there is now."""
        await asyncio.gather(*(self.end(lease) for lease in list(self._leases.values())))

    async def end_client(self, client: str) -> None:
        """Remove every sandbox of a client; one that is being started for it follows."""
        self.clients.leaves(client)
        await asyncio.gather(*(self.end(lease) for lease in list(self._leases.values()) if lease.client == client))

    async def _adopt_all(self) -> None:
        """Go on with what a server before this one had: its leases, and of its sandboxes those that have one."""
        found = self._store.take_below(KEPT)
        for identifier, kept in found.items():
            await self._adopt(identifier, kept)
        await asyncio.gather(*(sandbox.stop() for sandbox in self._sandboxes.adopted.values()))
        self._sandboxes.adopted.clear()
        self._store.forget_the_rest()
        if self._store.died:
            LOG.warning(
                "healed: the server died by %s and was started again; %d of its %d sandboxes live on",
                *(self._store.died, len(self._leases), len(found)),
            )

    async def _adopt(self, identifier: str, kept: Kept) -> None:
        place, sandbox = inherited_port(kept), self._sandboxes.adopted.pop(identifier, None)
        if sandbox is None:
            place.close()
            self._store.drop(f"{KEPT}/{identifier}")
            return
        await self._places.take(self._section.start_timeout_s)
        request = StartRequest.model_validate(kept.data["request"])
        lease = self._leases[identifier] = await self._serve(request, sandbox, place)
        lease.go_on(kept.data)
        if lease.client:
            self.clients.heard(lease.client)

    def _find(self, matches: Callable[[Lease], bool]) -> Lease | None:
        return next(filter(matches, self._leases.values()), None)

    async def _take_place(self, wait_s: float) -> None:
        try:
            waited_s = await self._places.take(min(wait_s, self._section.start_timeout_s))
        except Full:
            self._metrics.starts["full"] += 1
            raise
        self._metrics.waited.observe(waited_s)

    async def _create_in_place(self, request: StartRequest) -> Lease:
        """Create what has its place; one that fails gives it back."""
        began = time.monotonic()
        try:
            lease = await self._create(request)
        except BaseException:
            self._metrics.starts["failed"] += 1
            self._places.give_back()
            raise
        self._metrics.starts["started"] += 1
        self._metrics.took.observe(time.monotonic() - began)
        return lease

    async def _create(self, request: StartRequest) -> Lease:
        section = self._section
        spec = SandboxSpec(
            image=request.image,
            workdir=request.directory,
            environment=request.environment,
            cpus=request.cpus or section.cpus,
            memory_mb=request.memory_mb or section.memory_mb,
            pids=request.pids or section.pids,
            disk_mb=request.disk_mb or section.disk_mb,
            wall_s=request.wall_s or section.wall_s,
            network=request.network or section.network,
        )
        sandbox = await self._sandboxes.start(spec)
        try:
            return await self._serve(request, sandbox, open_port(section.host))
        except BaseException:
            await asyncio.shield(sandbox.stop())
            raise

    async def _serve(self, request: StartRequest, sandbox: EngineSandbox, place: socket.socket) -> Lease:
        return Lease(
            request=request,
            sandbox=sandbox,
            listener=await self._listen(place),
            host=self._section.host,
            port=place.getsockname()[1],
            duration_s=request.lease_s or self._section.lease_s,
            store=self._store,
        )

    async def _reap(self) -> None:
        """End the leases that are over."""
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            for lease in self._leases.values():
                lease.keep()
            for lease, why in [(lease, why) for lease in self._leases.values() if (why := self._why_over(lease))]:
                LOG.warning("sandbox %s: %s; removed", lease.id, why)
                with suppress(Exception):  # one that will not go must not keep the others; the run's end takes it
                    await self.end(lease)

    def _why_over(self, lease: Lease) -> str | None:
        if lease.client and self.clients.is_gone(lease.client):
            return f"its client {lease.client} is gone"
        return f"nobody called for {lease.duration_s:g} s" if lease.is_over else None
