"""The front door: every request of either plane passes here first, and needs its token here.

Both planes are served by one server. The port that a request came in by says whether it is for the control plane or
for one sandbox; so no route can forget to ask for the token, and no body is read before.
"""

import hmac
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skyrl_stack.errors import SandboxLost
from skyrl_stack.runtime.control import control_plane
from skyrl_stack.runtime.data import UPLOAD, data_plane
from skyrl_stack.runtime.failures import failure
from skyrl_stack.runtime.lease import Lease
from skyrl_stack.runtime.leases import Leases
from skyrl_stack.runtime.wire import API_KEY, SESSION_KEY, STATUSES

BODY_LIMIT = 4 << 20
"Bytes of a body that is not a file."


class Front:
    """The application of all ports of a runtime. The control plane's is `port`."""

    def __init__(self, leases: Leases, *, token: str, port: int, tasks_file: Path | None) -> None:
        self._leases = leases
        self._token = token
        self._port = port
        self._control: ASGIApp = control_plane(leases, tasks_file)
        self._data: ASGIApp = data_plane()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != UPLOAD:
            receive = _at_most(BODY_LIMIT, receive)
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


def _at_most(limit: int, receive: Receive) -> Receive:
    """`receive`, until the body is longer than `limit` bytes: then an answer of 413."""
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise HTTPException(413, f"the body is longer than {limit >> 20} MiB; files are sent to {UPLOAD}")
        return message

    return counted


def _holds(scope: Scope, header: str, token: str) -> bool:
    return hmac.compare_digest(_header(scope, header), token.encode())


def _header(scope: Scope, header: str) -> bytes:
    name = header.lower().encode()
    return next((value for key, value in scope["headers"] if key == name), b"")


def _refuse(header: str) -> Any:
    return failure(401, "Unauthorized", f"the header {header} must hold the token")
