"""Other sandbox services in the same image and by the same Podman: SWE-ReX, and OpenHands' agent server.

Each is a server in a container. It runs by a Python that is mounted into it, for the image has neither.
"""

import asyncio
import secrets
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

Run = Callable[[str], float]
"Runs a shell command where Podman is, to its end."


@dataclass(frozen=True)
class Service:
    """How to start one, and how to ask it for a command; in `argv`, `{port}` and `{key}` are filled in."""

    name: str
    argv: str
    alive: str
    "A GET that succeeds once it is up."
    prepare: dict[str, dict[str, Any]]
    "Bodies by path, before the first command."
    path: str
    body: dict[str, Any]
    environment: tuple[str, ...] = ()


SERVICES = (
    Service(
        name="SWE-ReX 1.4",
        argv="-m swerex.server --host 127.0.0.1 --port {port} --auth-token {key}",
        alive="/is_alive",
        prepare={"/create_session": {"session": "default", "session_type": "bash"}},
        path="/run_in_session",
        body={"command": "true", "session": "default", "action_type": "bash"},
    ),
    Service(
        name="OpenHands agent-server 1.58",
        argv="-m openhands.agent_server --host 127.0.0.1 --port {port}",
        alive="/health",
        prepare={},
        path="/api/bash/execute_bash_command",
        body={"command": "true", "timeout": 60},
        # All that it would start or fetch besides.
        environment=("OH_ENABLE_VSCODE=false", "OH_PRELOAD_TOOLS=false", "LITELLM_LOCAL_MODEL_COST_MAP=True"),
    ),
)


async def measure(
    service: Service, run: Run, podman: list[str], image: str, python: Path, trips: int
) -> tuple[float, list[float]]:
    """Seconds from `podman run` to the end of the first command, and of each of `trips` round trips."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key, name = secrets.token_hex(8), f"beside-{secrets.token_hex(4)}"
    argv = service.argv.format(port=port, key=key).split()
    options = ["--name", name, "--network=host", "--volume", f"{python}:{python}:ro"]
    environment = [f"LD_LIBRARY_PATH={python}/lib", *service.environment]
    options += [*(f"--env={variable}" for variable in environment), image, f"{python}/bin/python3"]
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers={"X-API-Key": key}, timeout=timeout) as http:
        try:
            began = time.perf_counter()
            await asyncio.to_thread(run, shlex.join([*podman, "run", "--detach", *options, *argv]))
            async with asyncio.timeout(120):
                await _until_alive(http, service.alive)
            for path, body in service.prepare.items():
                await _post(http, path, body)
            await _post(http, service.path, service.body)
            first = time.perf_counter() - began
            return first, [await _post(http, service.path, service.body) for _ in range(trips)]
        finally:
            await asyncio.to_thread(run, shlex.join([*podman, "rm", "--force", "--time=0", name]))


async def _until_alive(http: aiohttp.ClientSession, path: str) -> None:
    while True:
        with suppress(aiohttp.ClientError):
            async with http.get(path) as answer:
                if answer.ok:
                    return
        await asyncio.sleep(0.01)


async def _post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    async with http.post(path, json=body) as answer:
        said = await answer.json()
    if not answer.ok or said.get("exit_code") not in (0, None):
        raise SystemExit(f"{path}: {answer.status} {said}")
    return time.perf_counter() - began
