"""The runtime server: one uvicorn server, listening on the control plane's port and on one port per sandbox."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from skyrl_stack.records import Load
from skyrl_stack.runtime.front import Front
from skyrl_stack.runtime.leases import Leases
from skyrl_stack.runtime.ports import BACKLOG, inherited_port, open_port
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.engine_sandboxes import EngineSandboxes
from skyrl_stack.sandbox.keeping import UNKEPT, Store

_KEEP_ALIVE_S = 600
"An idle connection is closed by the client: one closed by the server may break a request that is on its way."
_GRACE_S = 3
_CONTROL = "control"
"By which the control plane's port is kept."


class _Server(uvicorn.Server):
    """uvicorn that opens ports while it runs, and leaves signals to the process that it is in."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def listen(self, place: socket.socket) -> asyncio.Server:
        """Serve on one more port until the result is closed; as uvicorn does it for its own."""
        protocol: Any = self.config.http_protocol_class
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state),
            sock=place,
            backlog=BACKLOG,
        )


@dataclass(frozen=True)
class Served:
    """A runtime that answers."""

    url: str
    "Of the control plane."
    load: Callable[[], Load]
    "From any thread."
    end_all: Callable[[], Awaitable[None]]
    "Remove every sandbox that there is now."


@asynccontextmanager
async def serving(
    sandboxes: EngineSandboxes,
    section: RuntimeSection,
    token: str,
    *,
    tasks_file: Path | None = None,
    client_timeout_s: float = 30.0,
    store: Store = UNKEPT,
) -> AsyncIterator[Served]:
    """Serve both planes while the block runs. At its end every sandbox is removed.

    Nobody is answered before the sandboxes of a server before this one are there again.
    """
    found = store.take(_CONTROL)
    place = inherited_port(found) if found else open_port(section.host)
    store.put(_CONTROL, None, [place.fileno()])
    port = place.getsockname()[1]
    leases = Leases(
        sandboxes, section, lambda place: server.listen(place), client_timeout_s=client_timeout_s, store=store
    )
    server = _Server(
        uvicorn.Config(
            Front(leases, token=token, port=port, tasks_file=tasks_file),
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    running = asyncio.create_task(server.serve([]))
    try:
        await server.ready.wait()
        async with leases:
            control = await server.listen(place)
            try:
                yield Served(f"http://{section.host}:{port}", leases.load, leases.end_all)
            finally:
                control.close()
    finally:
        server.should_exit = True
        await running
