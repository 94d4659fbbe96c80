"""Calls on a cell's Podman from asyncio: podman-py in threads."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from podman import PodmanClient
from podman.errors import APIError
from requests import RequestException

from skyrl_stack.errors import SandboxLost
from skyrl_stack.sandbox.cell import Cell

WORKERS = 16


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
