"""State that a power cut, a purge, a full disk or another Podman left is planted, and sandboxes start all the same."""

import asyncio
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import ImageStore
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.storage import make_private_directory, remove_private_directory

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]
IMAGE = "localhost/heals:1"


@pytest.fixture
def filled(store: Path, rootfs: Path) -> Iterator[Path]:
    """A store with one image."""
    asyncio.run(fill(store, rootfs))
    yield store
    for aside in store.parent.glob(f"{store.name}.damaged-*"):
        remove_private_directory(aside)


async def fill(store: Path, rootfs: Path) -> bool:
    """Whether the image had to be made."""
    async with ImageStore(store) as images:
        if await images.has(IMAGE):
            return False
        await images.import_rootfs(rootfs, IMAGE, changes=("WORKDIR /testbed",))
        return True


async def says(store: Path) -> str:
    async with PodmanSandboxes(secrets.token_hex(8), image_stores=[store]) as sandboxes:
        sandbox = await sandboxes.start(SandboxSpec(image=IMAGE))
        return (await sandbox.run("echo alive")).stdout


def power_cut(store: Path) -> None:
    """The list of layers was being written."""
    (store / "overlay-layers/layers.json").write_bytes(b"")


def power_cut_of_images(store: Path) -> None:
    file = store / "overlay-images/images.json"
    file.write_bytes(file.read_bytes()[:-20])


def purge(store: Path) -> None:
    """A scratch file system removes what is old, file by file."""
    for link in (store / "overlay").glob("*/link"):
        link.unlink()


@pytest.mark.parametrize("damage", [power_cut, power_cut_of_images, purge])
def test_a_damaged_image_store_is_begun_anew(
    filled: Path, rootfs: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(filled)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(fill(filled, rootfs))
    assert [record.message.startswith(f"healed: image store {filled}: ") for record in caplog.records] == [True]
    assert asyncio.run(says(filled)) == "alive\n"
    assert not asyncio.run(fill(filled, rootfs))


KILLED = """
import os, signal, sys
from pathlib import Path
from skyrl_stack.sandbox.cell import Cell
from skyrl_stack.sandbox.healing import heal_store
heal_store(Path(sys.argv[2]))
with Cell(Path(sys.argv[1]), graphroot=Path(sys.argv[2])) as cell, cell.client() as client:
    container = client.containers.create(sys.argv[3], name="left", command=["sleep", "600"])
    container.start()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_on_which_a_podman_was_killed_with_its_containers(filled: Path) -> None:
    """What gives `invalid internal status`, a stale run root and, with Podman 5, a database of another place."""
    directory = make_private_directory(secrets.token_hex(8))
    try:
        killed = subprocess.run([sys.executable, "-c", KILLED, directory, filled, IMAGE], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert list(filled.glob("libpod/*.db")) or list(filled.glob("db.sql*"))
        assert not asyncio.run(fill(filled, filled))
        assert asyncio.run(says(filled)) == "alive\n"
    finally:
        remove_private_directory(directory)


def test_the_state_of_the_users_own_podman_is_not_looked_at(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause process that is another's, two locks in all, a run root that is a file, a storage driver that is none."""
    run, config = tmp_path / "run", tmp_path / "config/containers"
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        for folder in (run / "libpod/tmp", config):
            folder.mkdir(parents=True)
        (run / "libpod/tmp/pause.pid").write_text(str(stranger.pid))
        (run / "libpod/tmp/alive").touch()
        (run / "containers").write_text("not a directory")
        (config / "containers.conf").write_text('[engine]\nnum_locks = 2\nruntime = "none"\n')
        (config / "storage.conf").write_text(f'[storage]\ndriver = "none"\nrunroot = "{run}/containers"\n')
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(config.parent))
        monkeypatch.setenv("CONTAINERS_CONF", str(config / "containers.conf"))
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(config / "storage.conf"))

        async def start_three() -> None:
            async with PodmanSandboxes(secrets.token_hex(8), image_stores=[filled]) as sandboxes:
                await asyncio.gather(*(sandboxes.start(SandboxSpec(image=IMAGE)) for _ in range(3)))

        asyncio.run(start_three())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


FULL = """
import os, subprocess, sys
from pathlib import Path
from skyrl_stack import scratch
from skyrl_stack.errors import SetupError
from skyrl_stack.sandbox import storage, sweep
dead = storage.make_private_directory("dead")
owner = scratch.read_owner(dead).model_copy(update={"boot_id": "before the node was started again"})
(dead / "owner.json").write_text(owner.model_dump_json())
living = storage.make_private_directory("living")
for path, size in ((dead, 200 << 20), (living, 30 << 20)):
    with (path / "file").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
print(sweep.make_room(), dead.exists(), living.exists())
with (living / "more").open("wb") as file:
    os.posix_fallocate(file.fileno(), 0, 200 << 20)
try:
    sweep.make_room()
except SetupError as error:
    print(error)
"""


def test_a_full_temporary_directory_loses_what_dead_launches_left() -> None:
    tmp_path = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, for sockets
    script = f"mount -t tmpfs -o size=1100m none {tmp_path} && exec {sys.executable} -c '{FULL}'"
    argv = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    try:
        printed = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    finally:
        tmp_path.rmdir()
    healed = f"healed: {tmp_path} was full; removed what 1 dead launches had left there"
    assert printed[0] == f"{healed} False True"
    assert printed[1].startswith(f"{tmp_path}: less than 1024 MiB or 10000 files are free; make room")
