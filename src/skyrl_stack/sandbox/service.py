"""Calls on a cell's Podman from asyncio: podman-py in threads, and an exec's raw stream on the event loop."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from podman import PodmanClient
from podman.errors import APIError
from requests import RequestException

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.stream import FrameReader

WORKERS = 16


@dataclass(frozen=True)
class Exec:
    """A process in a sandbox, attached."""

    id: str
    output: FrameReader
    input: asyncio.StreamWriter


class PodmanService:
    """Podman in a cell that is up. Close it before the cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self._threads = ThreadPoolExecutor(WORKERS, "podman")
        self._local = threading.local()
        self._clients: list[PodmanClient] = []

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()

    async def call[T](self, function: Callable[[PodmanClient], T]) -> T:
        """`function` with this thread's client.

        Raises:
            SandboxLost: Podman itself is gone.
            APIError: Podman refused; see podman.errors.
        """

        def call() -> T:
            client = getattr(self._local, "client", None)
            if client is None:
                client = self._local.client = self.cell.client()
                self._clients.append(client)
            return function(client)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except (APIError, RequestException, OSError) as error:
            if not self.cell.is_alive:
                raise SandboxLost("Podman's service is gone, and every sandbox with it") from error
            raise

    async def exec(self, container: str, argv: Sequence[str], environment: Mapping[str, str]) -> Exec:
        """Start `argv` in the container, attached to all three of its streams.

        Raises:
            SandboxLost: the container does not run.
            RuntimeError: Podman could not start it; names the reason.
        """
        body = {
            "Cmd": list(argv),
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
        }
        answer = await self._post(f"/containers/{container}/exec", body)
        if answer.status_code >= 400:
            if not await self.is_running(container):
                raise SandboxLost(f"sandbox {container} is gone")
            raise RuntimeError(f"Podman answered {answer.status_code}: {' '.join(answer.text.split())[-300:]}")
        identifier = answer.json()["Id"]
        try:
            reader, writer = await asyncio.open_unix_connection(str(self.cell.socket), limit=1024 * 1024)
        except OSError as error:
            raise SandboxLost("Podman's service is gone, and every sandbox with it") from error
        try:
            await _hijack(reader, writer, f"/v4.0.0/libpod/exec/{identifier}/start")
        except BaseException:
            writer.close()
            raise
        return Exec(identifier, FrameReader(reader), writer)

    async def exit_code(self, exec_id: str, patience_s: float = 2.0) -> int | None:
        """Exit code of a process whose streams closed; None if it is not known, as when the container is gone."""
        for _ in range(max(1, int(patience_s / 0.05))):
            try:
                state = _checked(await self.call(lambda client: client.api.get(f"/exec/{exec_id}/json")))
            except (APIError, SandboxLost):
                return None
            if not state["Running"]:
                return int(state["ExitCode"])
            await asyncio.sleep(0.05)
        return None

    async def is_running(self, container: str) -> bool:
        """Whether the container runs."""
        try:
            answer = await self.call(lambda client: client.api.get(f"/containers/{container}/json"))
            return bool(_checked(answer)["State"]["Running"])
        except (APIError, SandboxLost):
            return False

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        return await self.call(lambda client: client.api.post(path, data=json.dumps(body), headers=headers))


def _checked(answer: Any) -> Any:
    answer.raise_for_status()
    return answer.json()


async def _hijack(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    """Start the exec; from then on the connection is the process's streams and no longer HTTP."""
    body = b'{"Detach":false,"Tty":false}'
    head = f"POST {path} HTTP/1.1\r\nHost: podman\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise SandboxLost("Podman closed the connection: the sandbox is gone") from error
    status = int(answer.split(None, 2)[1])
    if status not in (101, 200):
        refusal = (await reader.read(4096)).decode(errors="replace")
        raise RuntimeError(f"Podman answered {status}: {' '.join(refusal.split())[-300:]}")
