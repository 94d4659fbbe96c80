"""Who runs the containers of sandboxes, as a sandbox and its shells see it: a cell's broker, or a Podman elsewhere."""

from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from skyrl_stack.sandbox.containers import Exec
from skyrl_stack.sandbox.contract import Excess, SandboxSpec
from skyrl_stack.sandbox.oci import Description


class Engine(Protocol):
    """See `Containers`. Every request raises SandboxLost when the container is gone, or the engine with all of them."""

    async def create(self, container: str, description: Description) -> tuple[int, str]: ...

    async def execute(self, container: str, process: Mapping[str, Any]) -> Exec: ...

    async def exit_code(self, process: Exec) -> int | None: ...

    async def is_running(self, container: str) -> bool: ...

    async def open_file(self, container: str, path: str) -> int: ...

    async def write_from(self, container: str, path: str, data: BinaryIO) -> None: ...

    async def kill(self, container: str, pid: int, marker: str) -> None: ...

    async def signal(self, container: str, number: int) -> None: ...

    async def remove(self, container: str) -> None: ...


class Sizes(Protocol):
    """Who holds sandboxes to their sizes, see `Limits`."""

    def watch(self, identifier: str, pid: int, upper: str, spec: SandboxSpec) -> None: ...

    def forget(self, identifier: str) -> None: ...

    async def excess(self, identifier: str) -> Excess | None: ...
