"""Leases: which sandboxes live, for how long, and on which port each one answers.

Every call renews a lease; one that nobody called for its duration ends, so a client that died leaves nothing. Starts
wait in order for one of `max_sandboxes` places.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from skyrl_stack.records import Load
from skyrl_stack.runtime.clients import Clients
from skyrl_stack.runtime.commands import Commands
from skyrl_stack.runtime.metrics import Metrics
from skyrl_stack.runtime.places import Places
from skyrl_stack.runtime.wire import Conflict, Full, RuntimeInfo, StartRequest, Unknown
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.podman import PodmanSandbox
from skyrl_stack.sandbox.providers import NodeSandboxes

LOG = logging.getLogger(__name__)
REAP_INTERVAL_S = 0.5

Listen = Callable[[], Awaitable[asyncio.Server]]


@dataclass(eq=False)
class Lease:
    """A sandbox, its address and key, and when it ends."""

    request: StartRequest
    sandbox: PodmanSandbox
    listener: asyncio.Server
    host: str
    port: int
    duration_s: float
    client: str | None = None
    "Without whom it ends, whatever its duration; None where the whole runtime ends with its one trainer."
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    status: Literal["running", "paused"] = "running"

    def __post_init__(self) -> None:
        self.commands = Commands(self.sandbox, self.in_use)
        self._calls = 0
        self._deadline = time.monotonic() + self.duration_s

    @property
    def id(self) -> str:
        return self.sandbox.id

    @property
    def session_id(self) -> str:
        return self.request.session_id

    @property
    def is_over(self) -> bool:
        """Whether nobody called for `duration_s`. A call under way keeps it, however long it takes."""
        return not self._calls and time.monotonic() > self._deadline

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the lease while the block runs, and for its duration from then on."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._deadline = time.monotonic() + self.duration_s

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(
            runtime_id=self.id,
            session_id=self.session_id,
            url=f"http://{self.host}:{self.port}",
            session_api_key=self.key,
            status=self.status,
        )


class Leases:
    """All leases of one runtime; when the block ends so do they.

    `listen` serves the data plane on one more port.
    """

    def __init__(
        self, sandboxes: NodeSandboxes, section: RuntimeSection, listen: Listen, *, client_timeout_s: float
    ) -> None:
        self.clients = Clients(client_timeout_s)
        self._sandboxes = sandboxes
        self._section = section
        self._listen = listen
        self._places = Places(section.max_sandboxes)
        self._metrics = Metrics()
        self._leases: dict[str, Lease] = {}
        self._starting: set[str] = set()

    async def __aenter__(self) -> Self:
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
        return lease

    async def end(self, lease: Lease) -> None:
        """Remove a sandbox and give its place to the next. Idempotent."""
        if self._leases.pop(lease.id, None) is None:
            return
        try:
            lease.listener.close()
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
            listener = await self._listen()
        except BaseException:
            await asyncio.shield(sandbox.stop())
            raise
        return Lease(
            request=request,
            sandbox=sandbox,
            listener=listener,
            host=section.host,
            port=listener.sockets[0].getsockname()[1],
            duration_s=request.lease_s or section.lease_s,
            client=request.client,
        )

    async def _reap(self) -> None:
        """End the leases that are over."""
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            for lease, why in [(lease, why) for lease in self._leases.values() if (why := self._why_over(lease))]:
                LOG.warning("sandbox %s: %s; removed", lease.id, why)
                with suppress(Exception):  # one that will not go must not keep the others; the run's end takes it
                    await self.end(lease)

    def _why_over(self, lease: Lease) -> str | None:
        if lease.client and self.clients.is_gone(lease.client):
            return f"its client {lease.client} is gone"
        return f"nobody called for {lease.duration_s:g} s" if lease.is_over else None
