"""A sandbox is shut in as Podman shuts in a container: what one can do and see, the other can."""

import asyncio
import base64
import errno
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from podman import PodmanClient

from rootfs import build_rootfs
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.engine_sandbox import EngineSandbox
from skyrl_stack.sandbox.images import ImageStore, image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.podman_config import find_program

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(120)]

STATUS = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters")
OURS = {"/run/skyrl-init", "/dev/shm"}
"Mounts that are ours: Podman's /dev/shm is a mount of a mount."


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["crun", "runc"])
async def sandboxes(request: pytest.FixtureRequest, tests_cache: Path) -> AsyncIterator[PodmanSandboxes]:
    if not find_program(request.param):
        pytest.skip(f"{request.param} is not installed")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        if request.param == "runc":
            Path(directory).chmod(0o755)
            patch.setenv("PATH", str(programs_but("crun", Path(directory))))
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path(tests_cache)]) as sandboxes:
            assert sandboxes._cell
            assert Path(sandboxes._cell.runtime).name == request.param
            yield sandboxes


def programs_but(name: str, directory: Path) -> Path:
    """`directory`, with links to the programs of PATH except for that one."""
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*"):
            link = directory / program.name
            link.unlink(missing_ok=True)
            if program.name != name:
                link.symlink_to(program)
    return directory


@pytest.fixture
async def sandbox(sandboxes: PodmanSandboxes, tiny_image: str) -> AsyncIterator[EngineSandbox]:
    sandbox = await sandboxes.start(SandboxSpec(image=tiny_image))
    yield sandbox
    await sandbox.stop()


def first_process(variable: str) -> Path:
    """/proc of the process 1 of a container that has `variable` in its environment."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            inner = (directory / "status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
            if inner == "1" and variable.encode() in (directory / "environ").read_bytes().split(b"\0"):
                return directory
        except (OSError, IndexError):  # ended meanwhile
            continue
    raise LookupError(variable)


def status(process: Path) -> dict[str, str]:
    lines = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    return {name: lines[name] for name in STATUS}


def mounts(process: Path) -> set[tuple[str, str, str]]:
    """(place, options, kind) of each mount."""
    rows = (line.split() for line in (process / "mountinfo").read_text().splitlines())
    return {(row[4], row[5], row[row.index("-") + 1]) for row in rows if row[4] not in OURS}


async def test_it_is_shut_in_like_a_container_of_podman(
    sandboxes: PodmanSandboxes, sandbox: EngineSandbox, tiny_image: str
) -> None:
    def start(client: PodmanClient) -> None:
        command = ["/bin/bash", "-c", "sleep 60; :"]
        client.containers.create(
            tiny_image, command=command, environment={"THE": "other"}, network_mode="none", name="other"
        ).start()

    assert sandboxes._cell
    with sandboxes._cell.client() as client:
        await asyncio.to_thread(start, client)
    ours = await asyncio.to_thread(first_process, f"HOSTNAME={sandbox.id}")
    theirs = await asyncio.to_thread(first_process, "THE=other")
    assert status(ours) == status(theirs)
    assert mounts(ours) == mounts(theirs)
    for kind in ("pid", "net", "ipc", "uts", "mnt"):
        assert (ours / "ns" / kind).readlink() != (theirs / "ns" / kind).readlink()
        assert (ours / "ns" / kind).readlink() != Path("/proc/self/ns", kind).readlink()
    shell = (await sandbox.run('grep=$(</proc/self/status); echo "$grep"')).stdout
    said = dict(line.split(":\t", 1) for line in shell.splitlines() if ":\t" in line)
    assert {name: said[name] for name in STATUS if name.startswith(("Cap", "Sec"))} == {
        name: value for name, value in status(theirs).items() if name.startswith(("Cap", "Sec"))
    }


async def test_a_profile_of_seccomp_is_translated_once(
    sandboxes: PodmanSandboxes, tiny_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By crun, which takes the filter that it made of the same profile; runc gets none and translates each."""
    cell, takes_filters = sandboxes._cell, find_program("crun") is not None

    async def start() -> tuple[bytes, dict[str, str]]:
        """The filter of a new container, and what it was given."""
        assert cell
        sandbox = await sandboxes.start(SandboxSpec(image=tiny_image))
        made = cell.directory / "sandboxes" / "state" / sandbox.id / "seccomp.bpf"
        given = json.loads((cell.directory / "sandboxes" / sandbox.id / "config.json").read_text())["annotations"]
        return made.read_bytes() if takes_filters else b"", given

    (first, _), (second, given) = await start(), await start()
    (pattern,) = sandboxes._patterns._patterns.values()
    monkeypatch.setitem(pattern.config["linux"]["seccomp"], "defaultErrnoRet", errno.EADDRINUSE)
    (third, nothing), (fourth, other) = await start(), await start()
    assert (first, third, nothing) == (second, fourth, {})
    if takes_filters:
        assert first != third
        assert [base64.b64decode(text) for each in (given, other) for text in each.values()] == [first, third]
    else:
        assert given == other == {}


@pytest.mark.parametrize("path", ["/tmp/out", "/tmp/absolute", "/../../etc/hostname-of-the-host"])
async def test_no_path_leads_out(sandbox: EngineSandbox, tmp_path: Path, path: str) -> None:
    await sandbox.run(
        f"mkdir -p {tmp_path}; ln -s ../../../../../../..{tmp_path}/loot /tmp/out; ln -s {tmp_path}/loot /tmp/absolute"
    )
    await sandbox.write_file(path, b"theirs")
    assert not (tmp_path / "loot").exists()
    assert not Path("/etc/hostname-of-the-host").exists()
    assert await sandbox.read_file(path) == b"theirs"


async def test_sandboxes_share_nothing(sandboxes: PodmanSandboxes, sandbox: EngineSandbox, tiny_image: str) -> None:
    other = await sandboxes.start(SandboxSpec(image=tiny_image))
    for path in ("/etc/hosts", "/etc/passwd", "/dev/shm/x", "/run/x", "/testbed/x"):
        await sandbox.run(f"echo mine >> {path}")
        assert "mine" not in (await other.run(f"cat {path}")).stdout
    await other.stop()
    assert (await sandbox.run("echo $(</etc/hostname) $HOSTNAME")).stdout.split() == [sandbox.id] * 2


async def test_a_name_that_moves_to_another_image_is_followed() -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        tar, store, name = Path(place, "rootfs.tar"), Path(place, "store"), "localhost/moves:latest"
        build_rootfs(tar)

        async def says() -> str:
            sandbox = await sandboxes.start(SandboxSpec(image=name))
            said = (await sandbox.run("echo $WHICH")).stdout
            await sandbox.stop()
            return said

        async with ImageStore(store) as images:
            await images.import_rootfs(tar, name, changes=("WORKDIR /testbed", "ENV WHICH=first"))
            async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
                assert [await says(), await says()] == ["first\n"] * 2
                await images.import_rootfs(tar, name, changes=("WORKDIR /testbed", "ENV WHICH=second"))
                assert await says() == "second\n"
