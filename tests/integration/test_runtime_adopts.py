"""The server of a runtime dies while its sandboxes live: the next one has them, and the clients go on."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from a_runtime import Run, eventually, kill_server_of, server_of

from skyrl_stack.errors import RuntimeUnavailable, SandboxExpired, SandboxLost
from skyrl_stack.node import Process
from skyrl_stack.runtime.client import RemoteSandbox, RuntimeClient
from skyrl_stack.runtime.wire import Full
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.scratch import read_owner

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(180)]
ADOPTED = "healed: the server died by signal 9 and was started again; {} of its {} sandboxes live on"
PROCESSES = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done"


class Clients:
    """A runtime of four places, and who calls it: our client, and HTTP."""

    def __init__(self, run: Run, image: str) -> None:
        self.run = run
        self.image = image
        self.ours = RuntimeClient(run.endpoint)
        self.http = httpx.AsyncClient(trust_env=False, timeout=60, headers={"X-API-Key": run.endpoint.token})

    async def start(self, *, wait_s: float | None = None, **fields: object) -> RemoteSandbox:
        return await self.ours.start(SandboxSpec.model_validate({"image": self.image, **fields}), wait_s=wait_s)

    async def start_session(self, name: str, **fields: object) -> dict[str, Any]:
        body = {"image": self.image, "session_id": name, **fields}
        answer = await self.http.post(f"{self.run.endpoint.url}/start", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(self.run.endpoint.url + path)

    async def alive(self) -> int:
        return (await self.get("/health")).json()["alive"]

    async def await_next_server(self, deaths: int = 1) -> None:
        await asyncio.to_thread(eventually, lambda: self.run.log().count("was started again;") == deaths, 30)

    def kill_server(self) -> int:
        return kill_server_of(self.run.process.pid)

    async def require_end(self, code: int) -> None:
        assert await asyncio.to_thread(self.run.process.wait, 60) == code
        self.run.require_nothing_left()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def clients(tmp_path: Path, tests_cache: Path, tiny_image: str) -> AsyncIterator[Clients]:
    run = await asyncio.to_thread(lambda: Run(tmp_path, tests_cache, places=4))
    clients = Clients(run, tiny_image)
    yield clients
    await clients.ours.close()
    await clients.http.aclose()
    run.process.kill()
    run.process.wait()


async def test_sandboxes_live_on_with_all_that_is_in_them(clients: Clients) -> None:
    idle, paused, busy = await asyncio.gather(clients.start(), clients.start(), clients.start(memory_mb=64))
    await idle.run("cd /tmp; export KEPT='a b'; mine=plain; function twice { echo $1$1; }; echo text > file")
    await idle.run("cd /; (while sleep 0.1; do echo tick; done) & setsid sleep 7341 & :", shell="other/one")
    await paused.run("cd /tmp; (while sleep 0.1; do echo $EPOCHREALTIME; done) > clock & :")
    await paused.pause()
    await busy.run("cd /tmp; export KEPT=yes")
    command = asyncio.create_task(busy.run("cd /; KEPT=no; setsid sleep 7342 & sleep 7343", timeout_s=900))
    waiting = asyncio.create_task(clients.start_session("fourth"))
    await waiting
    queued = asyncio.create_task(clients.start())
    await asyncio.sleep(0.5)
    session = (await clients.get(f"/sessions/{paused._info.session_id}")).json()

    clients.kill_server()
    owner = read_owner(clients.run.private)
    assert owner
    assert owner.pid == clients.run.process.pid  # so no sweep takes it meanwhile
    for cut in (command, queued):
        with pytest.raises(RuntimeUnavailable):
            await cut

    said = await idle.run("pwd; echo $KEPT $mine; twice x; cat file")
    assert (said.exit_code, said.stdout) == (0, "/tmp\na b plain\nxx\ntext\n")
    background = (await idle.run(f"pwd; {PROCESSES}", shell="other/one")).stdout.partition("/\n")
    assert set(background[0].split()) == {"tick"}
    assert "sleep 7341" in background[2]

    left = await busy.run(PROCESSES, shell="observer")
    assert left.exit_code == 0
    assert "sleep 734" not in left.stdout
    assert (await busy.run("pwd; echo $KEPT")).stdout == "/tmp\nyes\n"
    hog = await busy.run("head -c 90000000 /dev/zero | tail -c 90000000 | sleep 20", timeout_s=60)
    assert hog.excess
    assert hog.excess.resource == "memory"

    assert (await clients.get(f"/sessions/{paused._info.session_id}")).json() == session
    assert session["status"] == "paused"
    await paused.resume()
    times = "before=$(wc -l < clock); sleep 0.5; after=$(wc -l < clock); pwd; echo $((after > before))"
    assert (await paused.run(times)).stdout == "/tmp\n1\n"

    assert await clients.start_session("fourth") == await waiting
    assert clients.run.directory.endpoint("runtime") == clients.run.endpoint
    assert await clients.alive() == 4
    with pytest.raises(Full):
        await clients.start(wait_s=0.5)
    await idle.stop()
    await (await clients.start(wait_s=10)).run("true")
    assert ADOPTED.format(4, 4) in clients.run.log()
    assert "skyrl_server_restarts_total 1\n" in (await clients.get("/metrics")).text
    clients.kill_server()
    clients.run.process.terminate()  # there is no server now
    await clients.require_end(0)


async def test_deadlines_are_kept(clients: Clients) -> None:
    await clients.start_session("nobody calls", lease_s=2)
    await clients.start_session("its client is gone", client="gone")
    short, gone = await clients.start(wall_s=4), await clients.start(wall_s=0.5)
    await asyncio.sleep(0.6)
    clients.kill_server()
    for expired in (short, gone):
        with pytest.raises(SandboxExpired):
            await expired.run("sleep 60")
        await expired.stop()
    deadline = time.monotonic() + 30
    while await clients.alive():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert clients.run.log().count("; removed") == 2
    await require_no_sandbox_that_is_nobodys(clients)


async def require_no_sandbox_that_is_nobodys(clients: Clients) -> None:
    """After a death in the middle of starts."""
    names = [f"session-{number}" for number in range(6)]
    starts = [asyncio.create_task(clients.start_session(name)) for name in names]
    sandboxes = clients.run.private / "sandboxes"
    await asyncio.to_thread(eventually, lambda: any(sandboxes.glob("sandbox-*")), 30)
    clients.kill_server()
    done = await asyncio.gather(*starts, return_exceptions=True)
    assert any(isinstance(one, httpx.TransportError) for one in done)
    await clients.await_next_server(2)
    assert len(list(sandboxes.glob("sandbox-*"))) == await clients.alive()
    again = [await clients.start_session(name) for name in names[:4]]
    assert await clients.alive() == len({one["runtime_id"] for one in again}) == 4
    assert len(list(sandboxes.glob("sandbox-*"))) == 4


async def test_openhands_goes_on(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENHANDS_SUPPRESS_BANNER", "1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def work() -> None:
        from openhands.workspace import APIRemoteWorkspace

        endpoint = clients.run.endpoint
        workspace = APIRemoteWorkspace(
            runtime_api_url=endpoint.url,
            runtime_api_key=endpoint.token,
            server_image=clients.image,
            working_dir="/testbed",
        )
        workspace.execute_command("cd /tmp; export KEPT=yes; echo text > file")
        clients.kill_server()
        assert workspace.execute_command("pwd; echo $KEPT; cat file").stdout == "/tmp\nyes\ntext\n"
        workspace.cleanup()

    await asyncio.to_thread(work)
    assert await clients.alive() == 0
    old = clients.kill_server()
    await asyncio.to_thread(eventually, lambda: server_of(clients.run.process.pid) != old)
    clients.run.process.terminate()  # it cannot listen to signals yet
    await clients.require_end(0)


async def test_what_nobody_foresaw_ends_the_server_and_not_its_sandboxes(clients: Clients) -> None:
    sandbox = await clients.start()
    obstacle = clients.run.directory.heartbeat_file("trainer")
    obstacle.mkdir()
    await asyncio.to_thread(eventually, lambda: "what nobody foresaw" in clients.run.log(), 30)
    obstacle.rmdir()
    assert (await sandbox.run("echo here")).stdout == "here\n"
    assert "IsADirectoryError" in clients.run.log()
    assert "the server died by exit code 70 and was started again; 1 of its 1" in clients.run.log()
    await require_new_podman(clients, sandbox)


async def require_new_podman(clients: Clients, sandbox: RemoteSandbox) -> None:
    """Where it died together with the server."""
    podman = [pid for pid in clients.run.processes() if Process(pid).command == "podman"]
    os.kill(podman[0], signal.SIGKILL)
    clients.kill_server()
    with pytest.raises(SandboxLost):
        await sandbox.run("true")
    assert await clients.alive() == 0
    assert ADOPTED.format(0, 1) in clients.run.log()
    assert (await (await clients.start()).run("echo new")).stdout == "new\n"


async def test_a_server_that_dies_again_and_again_ends_the_run(clients: Clients) -> None:
    await clients.start()
    for deaths in range(1, 5):
        clients.kill_server()
        if deaths < 4:
            await clients.await_next_server(deaths)
    await clients.require_end(1)
    said = "the server died 4 times, the last time by signal 9"
    assert clients.run.log().splitlines()[-1] == f"runtime: {said}"
    failure = clients.run.directory.failure()
    assert failure
    assert failure.cause == said
