"""The unmodified `APIRemoteWorkspace` of OpenHands against the runtime, from start to stop."""

import asyncio
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from skyrl_stack.runtime.server import serving
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]

TOKEN = "the-token"


@pytest.fixture(scope="module")
def runtime_url(tests_cache: Path, tiny_image: str) -> Iterator[str]:
    """A runtime on a thread of its own: the workspace under test is synchronous."""
    started, url, stop, loop = threading.Event(), [""], asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        podman = PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(tests_cache)])
        async with podman, serving(podman, RuntimeSection(), TOKEN) as served:
            url[0] = served.url
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def workspace(runtime_url: str, tiny_image: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENHANDS_SUPPRESS_BANNER", "1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    from openhands.workspace import APIRemoteWorkspace

    monkeypatch.setenv("GREETING", "good day")
    workspace = APIRemoteWorkspace(
        runtime_api_url=runtime_url,
        runtime_api_key=TOKEN,
        server_image=tiny_image,
        working_dir="/testbed",
        forward_env=["GREETING"],
    )
    yield workspace
    workspace.cleanup()


def session(runtime_url: str, name: str | None) -> httpx.Response:
    return httpx.get(f"{runtime_url}/sessions/{name}", headers={"X-API-Key": TOKEN}, trust_env=False)


def test_commands(workspace) -> None:
    result = workspace.execute_command("pwd; echo $GREETING; echo problem >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "/testbed\ngood day\n", "problem\n")
    assert not result.timeout_occurred
    workspace.execute_command("cd /tmp; export KEPT=1")
    assert workspace.execute_command("pwd; echo $KEPT").stdout == "/tmp\n1\n"
    assert workspace.execute_command("pwd", cwd="/testbed").stdout == "/testbed\n"


def test_a_command_that_takes_longer_than_a_poll(workspace) -> None:
    result = workspace.execute_command("sleep 2; echo done", timeout=3)
    assert (result.exit_code, result.stdout) == (0, "done\n")


def test_a_timeout(workspace) -> None:
    result = workspace.execute_command("echo before; sleep 600", timeout=1)
    assert result.timeout_occurred
    assert result.exit_code == -1
    assert workspace.execute_command("echo next").stdout == "next\n"


def test_files(workspace, tmp_path: Path) -> None:
    data = secrets.token_bytes(300_000)
    assert workspace.file_upload(data, "/tmp/a b/data").success
    assert workspace.file_download("/tmp/a b/data", tmp_path / "back").success
    assert (tmp_path / "back").read_bytes() == data
    missing = workspace.file_download("/tmp/none", tmp_path / "none")
    assert not missing.success
    assert "404" in missing.error


def test_git(workspace) -> None:
    made = workspace.execute_command(
        "git init -q . && git config user.email a@b && git config user.name n && mkdir d && echo 1 > kept && "
        "echo 1 > d/changed && echo 1 > gone && git add -A && git commit -qm first && "
        "echo 2 > d/changed && rm gone && echo 3 > 'new file'"
    )
    assert made.exit_code == 0, made.stderr
    changes = {(change.status.value, str(change.path)) for change in workspace.git_changes("/testbed")}
    assert changes == {("UPDATED", "d/changed"), ("DELETED", "gone"), ("ADDED", "new file")}
    diff = workspace.git_diff("d/changed")
    assert (diff.original, diff.modified) == ("1\n", "2\n")
    assert workspace.git_diff("gone").modified is None
    assert workspace.git_diff("new file").original is None
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        workspace.git_changes("/tmp")


def test_pause_stops_every_process_and_resume_continues(workspace, runtime_url: str) -> None:
    workspace.execute_command("cd /tmp; (for n in {1..1000}; do echo $n > ticks; sleep 0.05; done) & sleep 0.3")
    before = int(workspace.execute_command("cat /tmp/ticks").stdout)
    workspace.pause()
    assert session(runtime_url, workspace.session_id).json()["status"] == "paused"
    assert workspace.execute_command("true").exit_code == -1
    time.sleep(2)  # 40 ticks, were it not paused
    workspace.resume()
    after = int(workspace.execute_command("cat /tmp/ticks").stdout)
    assert after < before + 30
    assert int(workspace.execute_command("sleep 0.5; cat /tmp/ticks").stdout) > after


def test_the_session_is_found_again_and_gone_when_stopped(workspace, runtime_url: str, tiny_image: str) -> None:
    from openhands.workspace import APIRemoteWorkspace

    workspace.execute_command("echo here > /tmp/mark")
    again = APIRemoteWorkspace(
        runtime_api_url=runtime_url,
        runtime_api_key=TOKEN,
        server_image=tiny_image,
        session_id=workspace.session_id,
        keep_alive=True,
    )
    assert again.execute_command("cat /tmp/mark").stdout == "here\n"
    again.cleanup()
    assert session(runtime_url, workspace.session_id).status_code == 200
    workspace.cleanup()
    assert session(runtime_url, workspace.session_id).status_code == 404
