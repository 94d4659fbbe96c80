"""The front door: every request of either plane passes here first, and needs its token here.

Both planes are served by one server. The port that a request came in by says whether it is for the control plane or
for one sandbox; so no route can forget to ask for the token, and no body is read before.
"""

import hmac
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skyrl_stack.errors import SandboxLost
from skyrl_stack.runtime.control import control_plane
from skyrl_stack.runtime.data import data_plane
from skyrl_stack.runtime.failures import failure
from skyrl_stack.runtime.leases import Lease, Leases
from skyrl_stack.runtime.wire import API_KEY, SESSION_KEY, STATUSES


class Front:
    """The application of all ports of a runtime. The control plane's is `port`."""

    def __init__(self, leases: Leases, *, token: str, port: int) -> None:
        self._leases = leases
        self._token = token
        self._port = port
        self._control: ASGIApp = control_plane(leases)
        self._data: ASGIApp = data_plane()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        port = scope["server"][1]
        if port == self._port:
            await self._on_control(scope, receive, send)
        else:
            await self._on_data(self._leases.of_port(port), scope, receive, send)

    async def _on_control(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _holds(scope, API_KEY, self._token):
            await _refuse(API_KEY)(scope, receive, send)
            return
        await self._control(scope, receive, send)

    async def _on_data(self, lease: Lease | None, scope: Scope, receive: Receive, send: Send) -> None:
        if lease is None:
            gone = failure(STATUSES[SandboxLost], SandboxLost.__name__, "the sandbox was stopped, or its lease ended")
            await gone(scope, receive, send)
            return
        is_health = scope["path"] == "/health" and scope["method"] == "GET"
        if not is_health and not _holds(scope, SESSION_KEY, lease.key):
            await _refuse(SESSION_KEY)(scope, receive, send)
            return
        scope.setdefault("state", {})["lease"] = lease
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with lease.in_use():
            await self._data(scope, receive, watch)
        if status == STATUSES[SandboxLost]:
            await self._leases.end(lease)  # its place is for another


def _holds(scope: Scope, header: str, token: str) -> bool:
    name = header.lower().encode()
    given = next((value for key, value in scope["headers"] if key == name), b"")
    return hmac.compare_digest(given, token.encode())


def _refuse(header: str) -> Any:
    return failure(401, "Unauthorized", f"the header {header} must hold the token")
