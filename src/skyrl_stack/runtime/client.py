"""The runtime's client: sandboxes as `SandboxProvider` and `Sandbox` define them, on another machine perhaps."""

import asyncio
import io
import json
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import aiohttp

from skyrl_stack.errors import InfrastructureError, RuntimeUnavailable, SandboxLost
from skyrl_stack.records import Endpoint
from skyrl_stack.runtime.wire import API_KEY, ERRORS, SESSION_KEY, BashOutput, BashRequest, RuntimeInfo, StartRequest
from skyrl_stack.sandbox.contract import READ_LIMIT_MB, CommandResult, FileTooLarge, SandboxSpec

_CONNECT_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 3600.0
"A start waits for a place; how long is the server's business."
_CALL_TIMEOUT_S = 120.0
"For a call, beyond the time that its command may take."
_KEEP_ALIVE_S = 60.0

_Take = Callable[[aiohttp.ClientResponse], Coroutine[Any, Any, bytes]]


class RuntimeClient:
    """Starts sandboxes by the runtime at `endpoint`. Belongs to the event loop that first uses it.

    Nothing is sent twice: a command that may have run is not run again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.url
        self._headers = {API_KEY: endpoint.token}
        self._name = endpoint.client
        self.open = 0
        "Sandboxes started, or being started, and not stopped."
        self._calls: set[asyncio.Future[bytes]] = set()
        self._abandoned: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session:
            await session.close()

    async def abandon(self, why: str) -> None:
        """The runtime is lost: calls under way and calls to come are answered so at once."""
        self._abandoned = why
        for call in self._calls:
            call.cancel()
        await self.close()

    async def start(self, spec: SandboxSpec, *, wait_s: float | None = None) -> "RemoteSandbox":
        """See `SandboxProvider.start`. `wait_s` is how long to wait for a place; None leaves it to the runtime.

        Raises:
            Full: no place became free in time.
        """
        session_id = secrets.token_hex(16)
        body = StartRequest(
            session_id=session_id, client=self._name, wait_s=wait_s, **spec.model_dump(exclude_none=True)
        )
        self.open += 1
        try:
            request = body.model_dump(exclude_none=True)
            answer = await self.control("POST", "/start", request, timeout_s=_START_TIMEOUT_S)
        except BaseException:
            self.open -= 1
            raise
        return RemoteSandbox(self, RuntimeInfo.model_validate(answer))

    async def fetch_images(self, references: Sequence[str], to: Path) -> None:
        """Write an archive of images that the runtime has.

        Raises:
            RuntimeUnavailable: it does not answer, or broke off.
            SandboxStartFailed: it does not have them all.
        """
        await self.fetch(f"{self._url}/images", [("reference", each) for each in references], self._headers, to)

    async def fetch(self, url: str, query: Sequence[tuple[str, str]], headers: dict[str, str], to: Path) -> None:
        """Write what a GET answers to a file, piece by piece; raises as `send` does."""

        async def write(answer: aiohttp.ClientResponse) -> bytes:
            with to.open("wb") as file:
                async for piece in answer.content.iter_any():
                    file.write(piece)
            return b""

        await self.send("GET", url, _START_TIMEOUT_S, take=write, params=query, headers=headers)

    async def control(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = _CALL_TIMEOUT_S
    ) -> Any:
        """One call of the control plane."""
        return json.loads(await self.send(method, f"{self._url}{path}", timeout_s, headers=self._headers, json=body))

    async def send(
        self,
        method: str,
        url: str,
        timeout_s: float,
        *,
        take: _Take = aiohttp.ClientResponse.read,
        **request: Any,
    ) -> bytes:
        """One request; what `take` makes of its answer.

        Raises:
            RuntimeUnavailable: no answer, or one that is no error of ours.
            Exception: the error that the answer names, of `wire.ERRORS`.
        """
        if self._abandoned:
            raise RuntimeUnavailable(self._abandoned)
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_TIMEOUT_S, sock_read=timeout_s)
        call = asyncio.ensure_future(self._ask(take, method, url, timeout=timeout, **request))
        self._calls.add(call)
        try:
            return await call
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeUnavailable(f"runtime at {url}: {type(error).__name__}: {error}") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._abandoned or (task and task.cancelling()):
                raise
            raise RuntimeUnavailable(self._abandoned) from error
        finally:
            self._calls.discard(call)

    async def _ask(self, take: _Take, method: str, url: str, **request: Any) -> bytes:
        async with self._http().request(method, url, **request) as answer:
            if answer.ok:
                return await take(answer)
            raise named_error(answer.status, await answer.read())

    def _http(self) -> aiohttp.ClientSession:
        """Connections, to each sandbox its own. They are dropped before the server would."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class RemoteSandbox:
    """A sandbox of a runtime."""

    def __init__(self, runtime: RuntimeClient, info: RuntimeInfo) -> None:
        self.id = info.runtime_id
        self._runtime = runtime
        self._info = info
        self._headers = {SESSION_KEY: info.session_api_key}
        self._is_open = True

    async def run(
        self, command: str, *, timeout_s: float = 60.0, shell: str = "main", cwd: str | None = None
    ) -> CommandResult:
        """See `Sandbox.run`."""
        if not timeout_s > 0:
            raise ValueError(f"timeout_s = {timeout_s}: must be positive")
        body = BashRequest(command=command, timeout=timeout_s, shell=shell, cwd=cwd)
        answer = await self._call(
            "POST", "/api/bash/execute_bash_command", json=body.model_dump(), timeout_s=timeout_s + _CALL_TIMEOUT_S
        )
        return BashOutput.model_validate_json(answer).result()

    async def read_file(self, path: str) -> bytes:
        """See `Sandbox.read_file`."""

        async def take(answer: aiohttp.ClientResponse) -> bytes:
            data = bytearray()
            async for piece in answer.content.iter_any():
                data += piece
                if len(data) > READ_LIMIT_MB << 20:
                    raise FileTooLarge(path)
            return bytes(data)

        return await self._call("GET", "/api/file/download", params={"path": path}, take=take)

    async def write_file(self, path: str, data: bytes) -> None:
        """See `Sandbox.write_file`."""
        await self._upload(io.BytesIO(data), path)

    async def download(self, path: str, to: Path) -> None:
        """`read_file` into a file, piece by piece."""
        try:
            await self._runtime.fetch(f"{self._info.url}/api/file/download", [("path", path)], self._headers, to)
        except RuntimeUnavailable as error:
            await self._require_alive(error)
            raise

    async def upload(self, file: Path, path: str) -> None:
        """`write_file` of what a file holds, piece by piece."""
        with file.open("rb") as data:
            await self._upload(data, path)

    async def pause(self) -> None:
        """See `Sandbox.pause`."""
        await self._manage("/pause")

    async def resume(self) -> None:
        """See `Sandbox.resume`."""
        await self._manage("/resume")

    async def stop(self) -> None:
        """See `Sandbox.stop`."""
        if self._is_open:
            self._is_open, self._runtime.open = False, self._runtime.open - 1
        with suppress(InfrastructureError):  # gone already, or it goes when its lease or its runtime ends
            await self._manage("/stop")

    async def _manage(self, path: str) -> None:
        try:
            await self._runtime.control("POST", path, {"runtime_id": self.id})
        except LookupError as error:
            raise SandboxLost(f"sandbox {self.id} was stopped, or its lease ended") from error

    async def _upload(self, data: BinaryIO, path: str) -> None:
        form = aiohttp.FormData()
        form.add_field("file", data, filename="file")
        await self._call("POST", "/api/file/upload", timeout_s=_START_TIMEOUT_S, params={"path": path}, data=form)

    async def _call(self, method: str, path: str, *, timeout_s: float = _CALL_TIMEOUT_S, **request: Any) -> bytes:
        url = f"{self._info.url}{path}"
        try:
            return await self._runtime.send(method, url, timeout_s, headers=self._headers, **request)
        except RuntimeUnavailable as error:
            await self._require_alive(error)
            raise

    async def _require_alive(self, error: RuntimeUnavailable) -> None:
        """Tell a call that failed from a sandbox that is gone, alone or with its runtime."""
        try:
            await self._runtime.control("GET", f"/sessions/{self._info.session_id}")
        except LookupError:
            raise SandboxLost(f"sandbox {self.id} was stopped, or its lease ended") from error
        except RuntimeUnavailable:
            raise SandboxLost(f"sandbox {self.id} is lost with its runtime: {error}") from error


def named_error(status: int, answer: bytes) -> Exception:
    """What an answer that is no success says."""
    try:
        body = json.loads(answer)
        kind, detail = ERRORS.get(body["error"], RuntimeUnavailable), body["detail"]
    except (ValueError, KeyError, TypeError):
        kind, detail = RuntimeUnavailable, answer[:200].decode(errors="replace")
    return kind(detail if kind is not RuntimeUnavailable else f"runtime answered {status}: {detail}")
