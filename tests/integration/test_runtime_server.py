"""The runtime's HTTP: who may call, what a mistake is answered with, how leases end and places are given."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from skyrl_stack import __version__
from skyrl_stack.errors import RuntimeUnavailable, SandboxLost
from skyrl_stack.records import Endpoint
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.runtime.server import serving
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.isolation import LADDER
from skyrl_stack.sandbox.podman import PodmanSandboxes

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(120)]

TOKEN = "the-token"
CONTROL_ROUTES = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("POST", "/start"),
    ("POST", "/stop"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("GET", "/sessions/any"),
    ("GET", "/docs"),
]
DATA_ROUTES = [
    ("POST", "/api/bash/start_bash_command"),
    ("POST", "/api/bash/execute_bash_command"),
    ("GET", "/api/bash/bash_events/search"),
    ("POST", "/api/bash/bash_commands/any/stop"),
    ("POST", "/api/file/upload"),
    ("GET", "/api/file/download"),
    ("GET", "/api/git/changes"),
    ("GET", "/api/git/diff"),
    ("GET", "/docs"),
]


@dataclass
class Server:
    """A runtime with its Podman, and a plain HTTP client that has no token."""

    url: str
    podman: PodmanSandboxes
    http: httpx.AsyncClient
    image: str

    async def control(self, method: str, path: str, **request: Any) -> httpx.Response:
        return await self.http.request(method, self.url + path, headers={"X-API-Key": TOKEN}, **request)

    async def start(self, **fields: Any) -> dict[str, Any]:
        body = {"image": self.image, "session_id": secrets.token_hex(4), **fields}
        answer = await self.control("POST", "/start", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def data(self, sandbox: dict[str, Any], method: str, path: str, **request: Any) -> httpx.Response:
        headers = {"X-Session-API-Key": sandbox["session_api_key"]}
        return await self.http.request(method, sandbox["url"] + path, headers=headers, **request)

    async def containers(self) -> int:
        assert self.podman._directory
        return len(list(self.podman._directory.glob("sandboxes/sandbox-*")))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def run_server(cache: Path, image: str, section: RuntimeSection) -> AsyncIterator[Server]:
    podman = PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(cache)])
    async with (
        podman,
        serving(podman, section, TOKEN) as served,
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        yield Server(served.url, podman, http, image)


@pytest.fixture(scope="module")
async def server(tests_cache: Path, tiny_image: str) -> AsyncIterator[Server]:
    async with run_server(tests_cache, tiny_image, RuntimeSection()) as server:
        yield server


@pytest.fixture(scope="module")
async def sandbox(server: Server) -> dict[str, Any]:
    return await server.start()


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"X-API-Key": "wrong"}, {"X-Session-API-Key": TOKEN}])
@pytest.mark.parametrize(("method", "path"), CONTROL_ROUTES)
async def test_the_control_plane_needs_its_token(
    server: Server, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = await server.http.request(method, server.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"] == "Unauthorized"


@pytest.mark.parametrize(("method", "path"), DATA_ROUTES)
async def test_the_data_plane_needs_its_own_key(
    server: Server, sandbox: dict[str, Any], method: str, path: str
) -> None:
    for key in ("", "wrong", TOKEN):
        answer = await server.http.request(method, sandbox["url"] + path, headers={"X-Session-API-Key": key})
        assert answer.status_code == 401


async def test_keys_are_apart(server: Server, sandbox: dict[str, Any]) -> None:
    other = await server.start()
    assert len({TOKEN, sandbox["session_api_key"], other["session_api_key"]}) == 3
    answer = await server.http.get(
        other["url"] + "/api/file/download", headers={"X-Session-API-Key": sandbox["session_api_key"]}
    )
    assert answer.status_code == 401
    await server.control("POST", "/stop", json={"runtime_id": other["runtime_id"]})


async def test_health(server: Server, sandbox: dict[str, Any]) -> None:
    assert (await server.http.get(sandbox["url"] + "/health")).status_code == 200
    assert (await server.control("GET", "/health")).json()["status"] == "ok"


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/start", {"image": "x"}, 422, "NotRight"),
        ("/start", {"image": "localhost/no/such:1", "session_id": "s"}, 422, "SandboxStartFailed"),
        ("/start", {"image": "x", "session_id": "s", "memory_mb": 1}, 422, "NotRight"),
        ("/start", {"image": "x", "session_id": "s", "lease_s": -1}, 422, "NotRight"),
        ("/start", {"image": "x", "session_id": "s", "environment": {"A=B": ""}}, 422, "NotRight"),
        ("/start", {"image": "Not An Image", "session_id": "s"}, 422, "SandboxStartFailed"),
        ("/start", {"image": "x", "session_id": "s", "environment": {"A": "x" * (10 << 20)}}, 413, "HTTPException"),
        ("/stop", {"runtime_id": "none"}, 404, "Unknown"),
        ("/pause", {"runtime_id": "none"}, 404, "Unknown"),
        ("/resume", {}, 422, "NotRight"),
        ("/nothing", {}, 404, "HTTPException"),
    ],
)
async def test_a_mistake_has_an_answer(
    server: Server, path: str, body: dict[str, Any], status: int, error: str
) -> None:
    answer = await server.control("POST", path, json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("POST", "/api/bash/execute_bash_command", {"json": {"command": "a\0b"}}, 400),
        ("POST", "/api/bash/execute_bash_command", {"json": {"command": "x", "timeout": 0}}, 422),
        ("POST", "/api/bash/execute_bash_command", {"json": {"command": "x", "timeout": -1}}, 422),
        ("POST", "/api/bash/execute_bash_command", {"json": {"command": "x" * (10 << 20)}}, 413),
        ("POST", "/api/bash/execute_bash_command", {"content": b"{"}, 422),
        ("GET", "/api/bash/bash_events/search", {"params": {"command_id__eq": "none"}}, 404),
        ("POST", "/api/bash/bash_commands/none/stop", {}, 404),
        ("GET", "/api/file/download", {"params": {"path": "relative"}}, 422),
        ("GET", "/api/file/download", {"params": {"path": "/none"}}, 404),
        ("GET", "/api/file/download", {}, 422),
        ("POST", "/api/file/upload", {"params": {"path": "/tmp"}, "files": {"file": b""}}, 400),
        ("POST", "/api/file/upload", {"params": {"path": "/tmp/../../etc/x"}, "files": {"file": b""}}, 422),
        ("POST", "/api/file/upload", {"params": {"path": "/tmp/x"}}, 422),
        ("GET", "/api/git/changes", {"params": {"path": "/nowhere"}}, 400),
    ],
)
async def test_a_mistake_in_a_sandbox_has_an_answer(
    server: Server, sandbox: dict[str, Any], method: str, path: str, request_: dict[str, Any], status: int
) -> None:
    answer = await server.data(sandbox, method, path, **request_)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "detail"}


async def test_starting_a_session_twice_gives_one_sandbox(server: Server) -> None:
    first = await server.start(session_id="twice")
    assert await server.start(session_id="twice") == first
    other = {"image": server.image, "session_id": "twice", "workdir": "/"}
    refused = await server.control("POST", "/start", json=other)
    assert (refused.status_code, refused.json()["error"]) == (409, "Conflict")
    await server.control("POST", "/stop", json={"runtime_id": first["runtime_id"]})


async def test_a_started_command_can_be_stopped(server: Server, sandbox: dict[str, Any]) -> None:
    body = {"command": "sleep 600", "timeout": 900}
    command = (await server.data(sandbox, "POST", "/api/bash/start_bash_command", json=body)).json()["id"]
    await server.data(sandbox, "POST", f"/api/bash/bash_commands/{command}/stop")
    found = await server.data(sandbox, "GET", "/api/bash/bash_events/search", params={"command_id__eq": command})
    assert found.json()["items"][0]["exit_code"] == -1


async def test_a_client_that_hangs_up_ends_its_command(server: Server) -> None:
    sandbox = await server.start()
    with pytest.raises(httpx.ReadTimeout):
        await server.data(
            sandbox, "POST", "/api/bash/execute_bash_command", json={"command": "sleep 7780", "timeout": 900}, timeout=1
        )
    next_one = await server.data(sandbox, "POST", "/api/bash/execute_bash_command", json={"command": "echo next"})
    assert next_one.json()["stdout"] == "next\n"
    await server.control("POST", "/stop", json={"runtime_id": sandbox["runtime_id"]})


async def test_a_paused_sandbox_says_so(server: Server) -> None:
    sandbox = await server.start()
    identity = {"runtime_id": sandbox["runtime_id"]}
    assert (await server.control("POST", "/pause", json=identity)).json() == {"status": "paused"}
    refused = await server.data(sandbox, "POST", "/api/bash/execute_bash_command", json={"command": "true"})
    assert (refused.status_code, refused.json()["error"]) == (409, "Conflict")
    assert (await server.control("POST", "/resume", json=identity)).json() == {"status": "running"}
    answer = await server.data(sandbox, "POST", "/api/bash/execute_bash_command", json={"command": "true"})
    assert answer.json()["exit_code"] == 0
    await server.control("POST", "/stop", json=identity)


async def test_a_lease_ends_and_leaves_no_container(server: Server) -> None:
    before = await server.containers()
    client = RuntimeClient(Endpoint(launch_id="l", url=server.url, token=TOKEN))
    sandbox = await client.start(SandboxSpec(image=server.image, lease_s=2))
    for _ in range(4):
        await asyncio.sleep(1)
        await sandbox.run("true")  # each call renews it
    assert (await sandbox.run("sleep 3; echo kept")).stdout == "kept\n"  # so does one that lasts
    assert await server.containers() == before + 1
    await asyncio.sleep(4)
    assert await server.containers() == before
    with pytest.raises(SandboxLost):
        await sandbox.run("true")
    await client.close()


async def test_places_are_given_in_order_and_the_wait_ends(tests_cache: Path, tiny_image: str) -> None:
    section = RuntimeSection(max_sandboxes=1, start_timeout_s=2)
    async with (
        run_server(tests_cache, tiny_image, section) as server,
        RuntimeClient(Endpoint(launch_id="l", url=server.url, token=TOKEN)) as client,
    ):
        spec = SandboxSpec(image=server.image)
        first = await client.start(spec)
        waiting = [asyncio.create_task(client.start(spec))]
        await asyncio.sleep(0.3)
        waiting.append(asyncio.create_task(client.start(spec)))
        await asyncio.sleep(0.3)
        health = (await server.control("GET", "/health")).json()
        assert (health["alive"], health["waiting"]) == (1, 2)
        assert 0.5 < health["oldest_wait_s"] < 2
        await first.stop()
        second = await waiting[0]
        with pytest.raises(RuntimeUnavailable, match=r"max_sandboxes = 1"):
            await waiting[1]
        await second.stop()
        metrics = (await server.control("GET", "/metrics")).text
        assert "skyrl_sandboxes_capacity 1\n" in metrics
        assert 'skyrl_starts_total{result="started"} 2\n' in metrics
        assert 'skyrl_starts_total{result="full"} 1\n' in metrics
        assert 'skyrl_start_seconds_bucket{le="+Inf"} 2\n' in metrics


async def test_a_client_that_hangs_up_gives_up_its_place_in_the_queue(tests_cache: Path, tiny_image: str) -> None:
    section = RuntimeSection(max_sandboxes=1, start_timeout_s=60)
    async with run_server(tests_cache, tiny_image, section) as server:
        first = await server.start()
        body = {"image": server.image, "session_id": "impatient"}
        with pytest.raises(httpx.ReadTimeout):
            await server.control("POST", "/start", json=body, timeout=0.5)
        await asyncio.sleep(1.5)
        await server.control("POST", "/stop", json={"runtime_id": first["runtime_id"]})
        await asyncio.sleep(0.5)
        assert await server.containers() == 0
        health = (await server.control("GET", "/health")).json()
        assert (health.pop("version"), health.pop("isolation")) == (__version__, server.podman.isolation)
        assert server.podman.isolation in LADDER
        assert health == {"status": "ok", "capacity": 1, "alive": 0, "waiting": 0, "oldest_wait_s": 0}


async def test_no_runtime_is_an_error_of_its_own() -> None:
    async with RuntimeClient(Endpoint(launch_id="l", url="http://127.0.0.1:1", token="t")) as client:
        with pytest.raises(RuntimeUnavailable, match=r"127\.0\.0\.1:1"):
            await client.start(SandboxSpec(image="x"))


async def test_a_wrong_token_is_an_error_of_its_own(server: Server) -> None:
    async with RuntimeClient(Endpoint(launch_id="l", url=server.url, token="wrong")) as client:
        with pytest.raises(RuntimeUnavailable, match="401"):
            await client.start(SandboxSpec(image=server.image))
