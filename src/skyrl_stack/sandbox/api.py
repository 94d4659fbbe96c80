"""Podman's REST API over a UNIX socket, by the standard library alone: a launcher without podman-py sweeps through it.

An attached stream is a connection that Podman's server took over: our bytes are the process's input, its output comes
in frames of both streams.
"""

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from skyrl_stack.errors import SandboxLost

LABEL = "skyrl-stack.launch"
"Of every container of ours: the launch that it belongs to."
_ROOT = "/v4.0.0/libpod"
"The oldest version that Podman 4 and 5 speak."
_WORKERS = 16
_TIMEOUT_S = 120.0
_CONNECT_TIMEOUT_S = 1.0
_FRAME_HEADER = 8


class Refused(RuntimeError):
    """Podman said no; `status` and `headers` are those of HTTP."""

    def __init__(self, status: int, answer: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        try:
            said = json.loads(answer)["message"]
        except (ValueError, KeyError, TypeError):
            said = answer.decode(errors="replace")
        super().__init__(" ".join(said.split()) or f"HTTP status {status}")


class Frames:
    """The output of an attached process, piece by piece. A cancelled `read` has taken nothing: the next one goes on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transport = writer.transport
        self._reader = reader
        self._writer = writer  # one that nobody holds closes its connection
        self._frame: tuple[int, int] | None = None

    async def read(self) -> tuple[int, bytes] | None:
        """(stream number, data), or None when the process ended."""
        try:
            if self._frame is None:
                header = await self._reader.readexactly(_FRAME_HEADER)
                self._frame = header[0], int.from_bytes(header[4:])
            stream, size = self._frame
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._frame = None
        return stream, data

    def close(self) -> None:
        """Idempotent. A `read` under way ends."""
        self.transport.abort()


class PodmanApi:
    """The Podman that listens at `path`. `ask`, `in_thread` and `attach` are for asyncio, the rest for threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = ThreadPoolExecutor(_WORKERS, "podman")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def is_alive(self) -> bool:
        """Whether somebody listens."""
        try:
            self._connect(_CONNECT_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    async def ask(self, method: str, path: str, body: object = None, /, **parameters: str) -> Any:
        """`call`, in a thread.

        Raises:
            SandboxLost: Podman is gone.
            Refused: it said no.
        """
        return await self.in_thread(lambda: self.call(method, path, body, **parameters))

    async def in_thread[T](self, function: Callable[[], T]) -> T:
        """`function`, which asks Podman.

        Raises:
            SandboxLost: Podman is gone.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except OSError as error:
            raise SandboxLost(f"the Podman behind {self.path} is gone: {error}") from error

    def call(self, method: str, path: str, body: object = None, /, **parameters: str) -> Any:
        """One request, with a JSON `body` or a tar archive; what it answered, read as JSON.

        Raises:
            OSError: nobody answers.
            Refused: Podman said no.
        """
        with self.stream(method, path, body, **parameters) as answer:
            text = answer.read()
            return json.loads(text) if text.strip() else None

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        body: object = None,
        timeout_s: float = _TIMEOUT_S,
        /,
        **parameters: str | Sequence[str],
    ) -> Iterator[http.client.HTTPResponse]:
        """`call`, with the answer yet to be read. Podman may think for `timeout_s` before each part of it."""
        is_archive = hasattr(body, "read")
        data: Any = body if is_archive or body is None else json.dumps(body)
        kind = "application/x-tar" if is_archive else "application/json"
        connection = http.client.HTTPConnection("podman")
        connection.sock = self._connect(timeout_s)
        try:
            connection.request(method, _target(path, parameters), body=data, headers={"Content-Type": kind})
            answer = connection.getresponse()
            if answer.status >= 300:
                raise Refused(answer.status, answer.read(), dict(answer.headers))
            yield answer
        except http.client.HTTPException as error:
            raise ConnectionError(f"half an answer: {error!r}") from error
        finally:
            connection.close()

    async def attach(self, path: str, body: object = None, /, **parameters: str) -> Frames:
        """Begin a stream.

        Raises:
            SandboxLost: Podman is gone.
            Refused: it said no.
        """
        data = b"" if body is None else json.dumps(body).encode()  # what Podman does not read is the process's input
        lines = [f"POST {_target(path, parameters)} HTTP/1.1", "Host: podman", "Connection: Upgrade", "Upgrade: tcp"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}", "", ""]
        try:
            reader, writer = await asyncio.open_unix_connection(self.path)
            frames = Frames(reader, writer)
            try:
                writer.write("\r\n".join(lines).encode() + data)
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head.split(maxsplit=2)[1])
                if status >= 300:
                    raise Refused(status, await reader.readline())
            except BaseException:
                frames.close()
                raise
        except (OSError, EOFError) as error:
            raise SandboxLost(f"the Podman behind {self.path} is gone: {error}") from error
        return frames

    def image(self, reference: str) -> Any:
        """What Podman says of an image, or None where it has none of that name; a reference may be no name at all.

        Raises:
            OSError: nobody answers.
            Refused: Podman said no.
        """
        try:
            return self.call("GET", f"/images/{quote(reference)}/json")
        except Refused as error:
            if error.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.MOVED_PERMANENTLY):  # moved: a path such as `..`
                raise
            return None

    def remove_launch(self, launch_id: str) -> None:
        """Remove every container of a launch.

        Raises:
            OSError: nobody answers.
            Refused: Podman said no.
        """
        filters = json.dumps({"label": [f"{LABEL}={launch_id}"]})
        for container in self.call("GET", "/containers/json", all="true", filters=filters) or ():
            self.remove(container["Id"])

    def remove(self, container: str) -> None:
        """End a container and remove what it wrote. Idempotent."""
        try:
            self.call("DELETE", f"/containers/{container}", force="true", timeout="0", v="true")
        except Refused as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise

    def _connect(self, timeout_s: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection


def _target(path: str, parameters: Mapping[str, str | Sequence[str]]) -> str:
    return f"{_ROOT}{path}?{urlencode(parameters, doseq=True)}" if parameters else f"{_ROOT}{path}"
